"""One group's sampler alone, without a VAE: compiled here, eager here, and in PyTorch.

The base prior is N(0, I) and there is no context, so that nothing but the sampler and
its discriminator is compared.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
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
Calls = dict[str, Callable[[], Any]]
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
      num_repeats: rounds, at least, in which all versions take turns.
      max_seconds: rounds end after the one that reaches this.

    Yields:
      A row per sampler and size: median seconds of ours, of a Python loop over compiled
      steps, of one over steps that are not compiled, of PyTorch in several ways; and
      the three quartiles over rounds of what each takes as a multiple of ours, the
      median in the middle.
    """
    shape = (num_chains, *latent_shape)
    variables = random_variables(network, latent_shape, rng.stream(key, "weights"))
    in_torch = _Torch(network, variables, shape)
    log_r = partial(log_ratio, network, variables)
    base = Normal(jnp.zeros(shape), jnp.ones(shape))
    keys = jax.random.split(rng.stream(key, "chains"), num_chains)

    def ours(draw: Any) -> Callable[[], Any]:
        target = Target(base, log_r, jnp.array(0))
        return partial(jax.jit(lambda keys: draw(keys, target)), keys)

    calls: Calls
    timed = partial(_row, num_repeats, max_seconds)
    for m in num_proposals:
        at_once = jax.jit(partial(_sir_at_once, log_r, m, shape))
        calls = {
            "seconds": ours(SIR(m, chunk_size(m))),
            "at_once": partial(at_once, key),
            **in_torch.calls("sir", m),
        }
        yield timed("sir", m, calls)
    eager = partial(_langevin_step, log_r, step_size)
    compiled = jax.jit(eager)
    for t in num_steps:
        few = min(t, MAX_EAGER_STEPS)
        calls = {
            "seconds": ours(Langevin(step_size, t)),
            "loop_of_compiled_steps": partial(_loop, compiled, key, shape, t),
            "loop_of_eager_steps": partial(_loop, eager, key, shape, few),
            **in_torch.calls("langevin", t, step_size),
        }
        yield timed("langevin", t, calls, {"loop_of_eager_steps": t / few})


def _row(
    num_rounds: int,
    max_seconds: float,
    sampler: str,
    size: int,
    calls: Calls,
    times: Mapping[str, float] = MappingProxyType({}),
) -> Row:
    """Times versions of one sampler in turns, `times` as long where they are parts."""
    for call in calls.values():
        jax.block_until_ready(call())  # compiled now
    taken = timing.time_in_turns(calls, num_rounds, max_seconds)
    taken = {name: times.get(name, 1.0) * t for name, t in taken.items()}
    quartiles = {
        name: np.quantile(t / taken["seconds"], (0.25, 0.5, 0.75)).tolist()
        for name, t in taken.items()
        if name != "seconds"
    }
    medians = {name: float(np.median(t)) for name, t in taken.items()}
    found = {"sampler": sampler, "size": size, "num_rounds": len(taken["seconds"])}
    return found | medians | {"quartiles": quartiles}


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

    def calls(self, sampler: str, *settings: Any) -> dict[str, Callable[[], None]]:
        """Draws by PyTorch: eager, compiled and, of maps, with channels last."""
        if not self._is_here:
            return {}
        compiled = self._torch.torch.compile(self._log_r)
        ways = {"torch_eager": self._log_r, "torch_compile": compiled}
        if len(self._shape) == 4:
            ways["torch_channels_last"] = self._torch.channels_last(compiled)
        function = getattr(self._torch, sampler)

        def call(log_r: Any) -> None:
            function(log_r, self._shape, *settings)
            self._torch.wait()

        return {name: partial(call, log_r) for name, log_r in ways.items()}
