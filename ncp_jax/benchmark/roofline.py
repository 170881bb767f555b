"""What a sampler moves, and what the machine allows for so much arithmetic per byte.

Williams, Waterman & Patterson, "Roofline: an insightful visual performance model for
multicore architectures" (2009): a program of I FLOP per byte reaches at most
min(ceiling, I * bandwidth).

FLOPs are those of `arithmetic`: products and convolutions.  Bytes are those that XLA
counts in the compiled program, after fusion: every operation that is left reads its
operands and writes its result, once.  XLA counts the body of a loop once, so that here
the body is compiled by itself, for all chains, and counted as often as it runs:

- a chunk of proposals: made from their keys, weighed, log r written;
- a step of Langevin dynamics or MALA: value, gradient and noise, z written.

For pictures each group's base prior and its way through the decoder, and the decoder's
end, come on top.  What is left out is small: the choice among the log-weights, and
MALA's acceptance.

The count does not know of caches.  A chunk that fits into them does not wait for the
memory, and then a sampler may reach more than its roof: its share is above one.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.models.distributions import Normal
from ncp_jax.models.shared import sample_each
from ncp_jax.priors.group_samplers import (
    MALA,
    SIR,
    AdaptiveSIR,
    IteratedSIR,
    Langevin,
    SIRThenMALA,
)
from ncp_jax.priors.latents import prior_of
from ncp_jax.priors.ncp_prior import LogRatio, NCPPrior

Array = jax.Array
Row = dict[str, Any]


class Pass(NamedTuple):
    """The body of one of a sampler's loops."""

    num_proposals: int  # of each chain, weighed at a time; 0: one gradient in z
    times: float  # that it runs for one group


class Machine(NamedTuple):
    """What there is at best; see `timing`."""

    ceiling: float  # FLOP/s of a large product
    bandwidth: float  # bytes/s of arrays that are in no cache


def bytes_accessed(function: Callable[..., Any], *args: Any) -> float:
    """Bytes that XLA counts in a compiled function; the body of a loop once.

    Args:
      function: compiled, not computed.
      *args: arrays or their shapes.
    """
    analysis: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    return float(analysis["bytes accessed"])


def passes(draw: Any, weighed: float = 0.0) -> list[Pass]:
    """What a sampler runs for one group.

    Args:
      draw: one of `group_samplers`.
      weighed: proposals of a chain, where the sampler ends by itself.
    """
    return _PASSES[type(draw)](draw, weighed)


def _chunks(num_proposals: int, chunk_size: int, times: int = 1) -> list[Pass]:
    size = min(num_proposals, chunk_size)
    whole, rest = divmod(num_proposals, size)
    return [Pass(size, times * whole), *([Pass(rest, times)] if rest else [])]


_PASSES: dict[type, Callable[[Any, float], list[Pass]]] = {
    SIR: lambda d, _: _chunks(d.num_proposals, d.chunk_size),
    AdaptiveSIR: lambda d, weighed: [
        Pass(d.min_proposals, (weighed or d.max_proposals) / d.min_proposals)
    ],
    IteratedSIR: lambda d, _: [
        Pass(1, 1),
        *_chunks(d.num_proposals - 1, d.chunk_size, d.num_steps),
    ],
    Langevin: lambda d, _: [Pass(0, d.num_steps)],
    MALA: lambda d, _: [Pass(0, d.num_steps + 1)],
    SIRThenMALA: lambda d, _: [
        *_chunks(d.num_proposals, d.chunk_size),
        Pass(0, d.num_steps + 1),
    ],
}


def pass_bytes(
    network: nn.Module,
    params: Any,
    latent_shape: tuple[int, ...],
    context_shape: tuple[int, ...],
    num_chains: int,
    num_proposals: int,
) -> float:
    """Bytes of one `Pass` of one group, from a normal base prior.

    Args:
      network: the discriminator.
      params: its parameters, of one group, or their shapes.
      latent_shape: of z.
      context_shape: read once, before the loop: only its feature is in the pass.
      num_chains: B.
      num_proposals: as of `Pass`.
    """
    keys = _keys(num_chains)
    z = jax.ShapeDtypeStruct((num_chains, *latent_shape), jnp.float32)
    context = jax.ShapeDtypeStruct((num_chains, *context_shape), jnp.float32)
    embed = partial(network.apply, method="embed")
    feature = jax.eval_shape(embed, {"params": params}, context)

    def run(params: Any, keys: Array, z: Array, feature: Any) -> Any:
        def log_r(z: Array) -> Array:
            return network.apply({"params": params}, z, feature, method="log_ratio")

        if num_proposals:
            return _weigh(keys, Normal(z, jnp.ones_like(z)), log_r, num_proposals)
        return _move(keys, z, log_r)

    with jax.default_matmul_precision("float32"):  # as samplers have it
        return bytes_accessed(run, params, keys, z, feature)


def _weigh(keys: Array, base: Normal, log_r: LogRatio, num_proposals: int) -> Array:
    """log r of some proposals of every chain, [num_proposals, B]."""
    chain_keys = rng.stream(keys, "proposals")

    def weigh(m: Array) -> Array:
        return log_r(sample_each(rng.at_step(chain_keys, m), base))

    return jax.vmap(weigh)(jnp.arange(num_proposals))


def _move(keys: Array, z: Array, log_r: LogRatio) -> Any:
    base = Normal(jnp.zeros_like(z), jnp.ones_like(z))

    def log_density(z: Array) -> Array:
        return base.log_prob(z) + log_r(z)

    return samplers.langevin(keys, z, log_density, step_size=1e-2, num_steps=1)


def _keys(num_chains: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(rng.root(0), num_chains))


class Traffic:
    """Bytes that draws from an NCP prior move.

    Args:
      ncp: the prior; its base priors are normal.
    """

    def __init__(self, ncp: NCPPrior):
        self._ncp = ncp
        self._of_pass = cache(self._count)
        self._of_base = cache(partial(_base_bytes, ncp))

    def num_bytes(self, draw: Any, num_images: int, weighed: float = 0.0) -> float:
        """Those of one call; `weighed` as of `passes`."""
        of_groups = sum(
            len(self._ncp.reweighted_in(b))
            * sum(
                each.times * self._of_pass(b, num_images, each.num_proposals)
                for each in passes(draw, weighed)
            )
            for b in self._ncp.reweighted_blocks
        )
        return self._of_base(num_images) + of_groups

    def _count(self, b: int, num_chains: int, num_proposals: int) -> float:
        ncp, block = self._ncp, self._ncp.vae.blocks[b]
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ncp.params[b]
        )
        return pass_bytes(
            ncp.discriminator,
            params,
            block.latent_shape,
            block.context_shape,
            num_chains,
            num_proposals,
        )


def _base_bytes(ncp: NCPPrior, num_chains: int) -> float:
    """Bytes of ancestral draws from the base prior, decoded."""
    keys = _keys(num_chains)
    carry = jax.eval_shape(lambda ncp: ncp.vae.root(num_chains), ncp)
    number = jax.ShapeDtypeStruct((), jnp.int32)

    def step(b: int, ncp: NCPPrior, k: Array, carry: Any, keys: Array) -> Any:
        base, _ = prior_of(ncp.vae, b, k, carry, num_chains)
        return ncp.vae.absorb(b, k, carry, sample_each(keys, base))

    def decode(ncp: NCPPrior, carry: Any) -> Array:
        return ncp.vae.decode(carry).mean

    of_groups = sum(
        block.num_groups * bytes_accessed(partial(step, b), ncp, number, carry, keys)
        for b, block in enumerate(ncp.vae.blocks)
    )
    return of_groups + bytes_accessed(decode, ncp, carry)


def placed(flops: float, num_bytes: float, seconds: float, machine: Machine) -> Row:
    """Where a call lies under the roof.

    Args:
      flops: of the call.
      num_bytes: that it moves, as counted here.
      seconds: that it took.
      machine: what there is at best.

    Returns:
      The FLOPs, FLOP/s and `share_of_ceiling`; the bytes, `intensity` (FLOP per byte),
      `share_of_bandwidth` and `share_of_roofline`, the FLOP/s over those that intensity
      allows.
    """
    rate, intensity = flops / seconds, flops / num_bytes
    roof = min(machine.ceiling, intensity * machine.bandwidth)
    return {
        "flops": flops,
        "flops_per_second": rate,
        "share_of_ceiling": rate / machine.ceiling,
        "bytes_moved": num_bytes,
        "intensity": intensity,
        "share_of_bandwidth": num_bytes / seconds / machine.bandwidth,
        "share_of_roofline": rate / roof,
    }
