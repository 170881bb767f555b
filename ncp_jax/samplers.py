"""Draw z ~ r(z) p(z) / Z by resampling (SIR) or by Langevin dynamics (Sec. 4.3).

Samplers see arrays and functions, never a VAE, a config or a checkpoint.  Every one
has the shape `sampler(key, ...) -> (draws, info)`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.distributions import sum_non_batch

Array = jax.Array
Sample = Callable[[Array], Array]  # keys [B] -> draws [B, ...], one chain per key
LogDensity = Callable[[Array], Array]  # z [B, ...] -> [B], nats


class SIRInfo(NamedTuple):
    """Diagnostics of resampling; every field is [B]."""

    ess: Array  # effective sample size of the weights, in [1, num_proposals]
    log_z: Array  # log (1/M) sum_m r_m: exp(log_z) is unbiased for Z_k


class LangevinInfo(NamedTuple):
    """The course of the chains, summarised; every field is [num_steps, B]."""

    log_density: Array  # log p(z) + log r(z) before each update, nats
    gradient_norm: Array  # Euclidean norm of its gradient


def sir(
    key: Array,
    sample: Sample,
    log_r: LogDensity,
    *,
    num_chains: int,
    num_proposals: int,
    chunk_size: int,
) -> tuple[Array, SIRInfo]:
    """Keeps one of M proposals per chain, with probability proportional to r.

    Proposals are made in chunks and forgotten; only their log-weights are kept, and
    the chosen proposal is made again from its key.  The draws follow r(z) p(z) / Z as M
    grows; at finite M their bias is O(1/M), which `info.ess` makes visible.

    Args:
      key: PRNG key; consumed here, so do not use it again.
      sample: keys [B] -> [B, ...] draws from p; draw b depends on key b alone.
      log_r: z [B, ...] -> [B] log r (nats); NaN counts as r = 0.
      num_chains: B.
      num_proposals: M.
      chunk_size: proposals per chain weighed at a time; memory grows with it, the
        draws do not depend on it.

    Returns:
      [B, ...] draws and their `SIRInfo`.
    """
    chain_keys = jax.random.split(rng.stream(key, "proposals"), num_chains)

    def propose(index: Array) -> Array:  # proposal number `index` [B] of every chain
        return sample(jax.vmap(rng.at_step)(chain_keys, index))

    def weigh(m: Array) -> Array:
        log_w = log_r(propose(jnp.broadcast_to(m, num_chains)))  # [B]
        return jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)

    log_w = jax.lax.map(weigh, jnp.arange(num_proposals), batch_size=chunk_size)
    chex.assert_shape(log_w, (num_proposals, num_chains))
    chosen = jax.random.categorical(rng.stream(key, "choice"), log_w, axis=0)  # [B]
    log_sum = jax.nn.logsumexp(log_w, axis=0)
    return propose(chosen), SIRInfo(
        ess=jnp.exp(2 * log_sum - jax.nn.logsumexp(2 * log_w, axis=0)),
        log_z=log_sum - jnp.log(num_proposals),
    )


def langevin(
    key: Array,
    initial: Array,
    log_density: LogDensity,
    *,
    step_size: float,
    num_steps: int,
) -> tuple[Array, LangevinInfo]:
    """Follows z <- z + (lambda / 2) grad log_density(z) + sqrt(lambda) noise.

    The update of Sec. 4.3, with E(z) = -log r(z) - log p(z) = -log_density(z).  It is
    not corrected: its draws carry a bias of O(lambda), and a short run remembers
    `initial`.

    Args:
      key: PRNG key; consumed here.
      initial: [B, ...] starting points, usually draws from p.
      log_density: z [B, ...] -> [B] log p(z) + log r(z), nats, up to a constant.
      step_size: lambda.
      num_steps: updates.

    Returns:
      [B, ...] final points and the `LangevinInfo` of the course.
    """
    gradient = jax.grad(lambda z: _sum_with_each(log_density(z)), has_aux=True)

    def update(z: Array, t: Array) -> tuple[Array, LangevinInfo]:
        slope, each = gradient(z)
        noise = jax.random.normal(rng.at_step(key, t), z.shape, z.dtype)
        info = LangevinInfo(each, jnp.sqrt(sum_non_batch(slope**2)))
        return z + 0.5 * step_size * slope + step_size**0.5 * noise, info

    return jax.lax.scan(update, initial, jnp.arange(num_steps))


def _sum_with_each(values: Array) -> tuple[Array, Array]:
    return jnp.sum(values), values
