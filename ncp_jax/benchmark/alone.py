"""One group's sampler alone, without a VAE: compiled here, eager here, and in PyTorch.

The base prior is N(0, I) and there is no context, so that nothing but the sampler and
its discriminator is compared.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.benchmark import timing
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.distributions import Normal
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.priors.group_samplers import SIR, Langevin
from ncp_jax.priors.ncp_prior import Target

Array = jax.Array
Row = dict[str, Any]
MAX_EAGER_STEPS = 5  # every operation is dispatched by itself: the rest is scaled up


def rows(
    network: nn.Module,
    latent_shape: tuple[int, ...],
    key: Array,
    *,
    num_chains: int,
    num_proposals: Sequence[int],
    num_steps: Sequence[int],
    chunk_size: Callable[[int], int],
    step_size: float,
    num_repeats: int,
    max_seconds: float,
) -> Iterator[Row]:
    """Times SIR and Langevin dynamics of one group, with random weights.

    Args:
      network: the discriminator.
      latent_shape: of z.
      key: PRNG key; consumed here.
      num_chains: B.
      num_proposals: values of M.
      num_steps: values of T.
      chunk_size: of M, how many proposals at a time.
      step_size: lambda.
      num_repeats: calls of each after the first.
      max_seconds: repeats end after the one that reaches this.

    Yields:
      A row per sampler and size: seconds of ours, of a Python loop over compiled steps,
      of one over steps that are not compiled, of PyTorch eager and compiled.
    """
    shape = (num_chains, *latent_shape)
    variables = random_variables(network, latent_shape, rng.stream(key, "weights"))
    in_torch = _Torch(network, variables, shape)
    log_r = partial(log_ratio, network, variables)
    base = Normal(jnp.zeros(shape), jnp.ones(shape))
    keys = jax.random.split(rng.stream(key, "chains"), num_chains)
    sizes: Any = {"num_repeats": num_repeats, "max_seconds": max_seconds}

    def median(call: Callable[[], Any]) -> float:
        call()
        return float(np.median(timing.time_calls(call, **sizes)))

    def ours(draw: Any) -> float:
        target = Target(base, log_r, jnp.array(0))
        took, _ = timing.time_compiled(lambda keys: draw(keys, target), keys, **sizes)
        return took.median

    for m in num_proposals:
        at_once = jax.jit(partial(_sir_at_once, log_r, m, shape))
        yield {
            "sampler": "sir",
            "size": m,
            "seconds": ours(SIR(m, chunk_size(m))),
            "at_once": median(partial(at_once, key)),
            **in_torch.times("sir", median, m),
        }
    eager = partial(_langevin_step, log_r, step_size)
    compiled = jax.jit(eager)
    for t in num_steps:
        few = min(t, MAX_EAGER_STEPS)
        yield {
            "sampler": "langevin",
            "size": t,
            "seconds": ours(Langevin(step_size, t)),
            "loop_of_compiled_steps": median(partial(_loop, compiled, key, shape, t)),
            "loop_of_eager_steps": median(partial(_loop, eager, key, shape, few))
            * (t / few),
            **in_torch.times("langevin", median, t, step_size),
        }


def random_variables(
    network: nn.Module, latent_shape: tuple[int, ...], key: Array
) -> Any:
    """Variables without the zeros that a discriminator starts with."""
    z, context = jnp.zeros((1, *latent_shape)), jnp.zeros((1, 0))
    variables = jax.jit(network.init)(key, z, context)
    return shaken(variables, rng.stream(key, "leaves"))


def shaken(params: Any, key: Array) -> Any:
    """The same plus noise: a discriminator starts as r = 1."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def log_ratio(network: nn.Module, variables: Any, z: Array) -> Array:
    """log r of z [B, *latent_shape] without a context: [B], nats."""
    feature = network.apply(variables, jnp.zeros((1, 0)), method="embed")
    return network.apply(variables, z, feature, method="log_ratio")


def _sir_at_once(log_r: Any, m: int, shape: tuple[int, ...], key: Array) -> Array:
    z = jax.random.normal(rng.stream(key, "proposals"), (m, *shape))
    log_w = log_r(z.reshape(m * shape[0], *shape[1:])).reshape(m, shape[0])
    chosen = jax.random.categorical(rng.stream(key, "choice"), log_w, axis=0)
    return z[chosen, jnp.arange(shape[0])]


def _langevin_step(log_r: Any, step_size: float, z: Array, key: Array) -> Array:
    def log_density(z: Array) -> Array:
        return jnp.sum(log_r(z)) - 0.5 * jnp.sum(z**2)

    noise = jax.random.normal(key, z.shape)
    return z + 0.5 * step_size * jax.grad(log_density)(z) + step_size**0.5 * noise


def _loop(step: Any, key: Array, shape: tuple[int, ...], num_steps: int) -> Array:
    z = jax.random.normal(rng.stream(key, "initial"), shape)
    for step_key in jax.random.split(rng.stream(key, "steps"), num_steps):
        z = step(z, step_key)
    return z


class _Torch:
    """The same in PyTorch, or nothing where that, or our network there, is missing."""

    def __init__(self, network: nn.Module, variables: Any, shape: tuple[int, ...]):
        is_ours = isinstance(network, MLPDiscriminator | ResidualDiscriminator)
        self._is_here = is_ours and importlib.util.find_spec("torch") is not None
        if not self._is_here:
            return
        from ncp_jax.benchmark import in_torch

        self._torch = in_torch
        self._log_r = in_torch.build(network, variables["params"])
        z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        there = in_torch.from_ours(z)
        self._shape = tuple(there.shape)
        ours = np.asarray(log_ratio(network, variables, jnp.asarray(z)))
        theirs = self._log_r(there).cpu().numpy()
        np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-2)

    def times(self, sampler: str, median: Any, *settings: Any) -> Row:
        """Seconds of PyTorch, eager and compiled."""
        if not self._is_here:
            return {}
        function = getattr(self._torch, sampler)

        def call(log_r: Any) -> None:
            function(log_r, self._shape, *settings)
            self._torch.wait()

        compiled = self._torch.torch.compile(self._log_r)
        return {
            "torch_eager": median(partial(call, self._log_r)),
            "torch_compile": median(partial(call, compiled)),
        }
