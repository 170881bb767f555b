"""The discriminators and the samplers' loops in PyTorch, to compare speeds with.

Imported only where PyTorch is installed.  Weights come from our parameters, and the
caller compares log r before it compares seconds.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import ResidualDiscriminator, num_norm_groups

LogRatio = Callable[[Tensor], Tensor]  # z [B, ...] -> log r [B]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "swish": functional.silu,
    "softplus": functional.softplus,
}


def build(network: nn.Module, params: Any) -> LogRatio:
    """Our discriminator with our weights, for z in PyTorch's layout."""
    tensors = jax.tree.map(_parameter, params)
    if isinstance(network, ResidualDiscriminator):
        return _residual(tensors, network.blocks)
    if isinstance(network, MLPDiscriminator):
        return _mlp(tensors, network.activation)
    raise InputError(f"there is no {type(network).__name__} in PyTorch here")


def from_ours(z: np.ndarray) -> Tensor:
    """z [B, H, W, C] or [B, D] in PyTorch's layout, on its device."""
    if z.ndim == 4:
        z = z.transpose(0, 3, 1, 2)
    return torch.tensor(np.ascontiguousarray(z), device=device())


def _parameter(array: Any) -> Tensor:
    array = np.asarray(array)
    if array.ndim == 4:  # HWIO to OIHW
        array = array.transpose(3, 2, 0, 1)
    return torch.tensor(np.ascontiguousarray(array), device=device())


def device() -> str:
    """The name of the device that PyTorch computes on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def channels_last(log_r: LogRatio) -> LogRatio:
    """The same of maps that PyTorch is to keep with their channels last."""
    return lambda z: log_r(z.contiguous(memory_format=torch.channels_last))


def wait() -> None:
    """Returns when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _mlp(params: Any, activation: str) -> LogRatio:
    """`MLPDiscriminator.log_ratio` without a context."""
    names = [f"Dense_{i}" for i in range(sum(n.startswith("Dense_") for n in params))]
    act = ACTIVATIONS[activation]

    def log_r(z: Tensor) -> Tensor:
        h = z.flatten(1)
        for name in names[:-1]:
            h = act(h @ params[name]["kernel"] + params[name]["bias"])
        return (h @ params[names[-1]]["kernel"] + params[names[-1]]["bias"])[:, 0]

    return log_r


def _residual(params: Any, blocks: str) -> LogRatio:
    """`ResidualDiscriminator.log_ratio` of maps [B, C, H, W] without a context."""

    def conv(x: Tensor, p: Any, stride: int = 1) -> Tensor:
        return functional.conv2d(x, p["kernel"], p["bias"], stride, padding=1)

    def dense(x: Tensor, p: Any) -> Tensor:
        return x @ p["kernel"] + p["bias"]

    def norm(x: Tensor, p: Any) -> Tensor:
        count = num_norm_groups(x.shape[1])
        return functional.group_norm(x, count, p["scale"], p["bias"], eps=1e-6)

    def halve(x: Tensor, p: Any) -> Tensor:
        odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        if any(odd):
            x = functional.pad(x, odd, mode="replicate")
        parts = [
            functional.conv2d(
                x[:, :, i:, j:],
                p[f"offset_{i}{j}"]["kernel"].T[:, :, None, None],
                p[f"offset_{i}{j}"]["bias"],
                stride=2,
            )
            for i in (0, 1)
            for j in (0, 1)
        ]
        return torch.cat(parts, 1)

    def block(x: Tensor, p: Any, is_reduction: bool) -> Tensor:
        skip = halve(functional.silu(x), p["skip"]) if is_reduction else x
        h = x
        for i in (0, 1):
            if f"norm_{i}" in p:
                h = norm(h, p[f"norm_{i}"])
            stride = 2 if is_reduction and i == 0 else 1
            h = conv(functional.silu(h), p[f"conv_{i}"], stride)
        first, second = (p["squeeze_excite"][n] for n in ("reduce", "expand"))
        gate = dense(torch.relu(dense(h.mean((2, 3)), first)), second)
        return skip + h * torch.sigmoid(gate)[:, :, None, None]

    def log_r(z: Tensor) -> Tensor:
        h = functional.silu(conv(z, params["from_z"]))
        for i, letter in enumerate(blocks):
            h = block(h, params[f"trunk_{i}"], letter == "B")
        return dense(h.mean((2, 3)), params["last"])[:, 0]

    return log_r


def sir(log_r: LogRatio, shape: tuple[int, ...], num_proposals: int) -> Tensor:
    """One group by SIR from N(0, I), all proposals at once; shape [B, ...]."""
    with torch.inference_mode():
        z = torch.randn(num_proposals, *shape, device=device())
        log_w = log_r(z.flatten(0, 1)).reshape(num_proposals, shape[0])
        chosen = torch.multinomial(torch.softmax(log_w.T, 1), 1)[:, 0]  # [B]
        return z[chosen, torch.arange(shape[0], device=device())]


def langevin(
    log_r: LogRatio, shape: tuple[int, ...], num_steps: int, step_size: float
) -> Tensor:
    """One group by Langevin dynamics started at N(0, I); shape [B, ...]."""
    z = torch.randn(*shape, device=device())
    for _ in range(num_steps):
        z = z.detach().requires_grad_()
        log_density = log_r(z).sum() - 0.5 * (z**2).sum()
        (slope,) = torch.autograd.grad(log_density, z)
        with torch.no_grad():
            noise = torch.randn_like(z)
            z = z + 0.5 * step_size * slope + step_size**0.5 * noise
    return z.detach()
