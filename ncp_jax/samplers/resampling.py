"""Sampling-importance-resampling (Sec. 4.3), and the exact Markov chain made of it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.samplers import chains

Array = jax.Array
Sample = Callable[[Array], Array]  # keys [B] -> draws [B, ...], one chain per key
LogRatio = Callable[[Array], Array]  # z [B, ...] -> [B], nats

CHOICES = 2**16  # log-weights that are chosen among at a time


class SIRInfo(NamedTuple):
    """Diagnostics of resampling; every field is [B]."""

    ess: Array  # effective sample size of the weights, in [1, num_proposals]
    log_z: Array  # log (1/M) sum_m r_m: exp(log_z) is unbiased for Z_k


class AdaptiveSIRInfo(NamedTuple):
    """Diagnostics of resampling that ends by itself; every field is [B]."""

    ess: Array  # as of SIR, in [1, num_proposals]
    log_z: Array  # as of SIR, biased a little, since its own weights end it
    num_proposals: Array  # M that this chain weighed
    bias: Array  # 1 / ess - 1 / M, the estimate of chi^2 / M that ended it


class IteratedSIRInfo(NamedTuple):
    """Diagnostics of iterated resampling; every field but the last is [B]."""

    ess: Array  # as of SIR, the mean over steps; the current z counts as a proposal
    log_z: Array  # as of SIR, over the fresh proposals of all steps
    acceptance: Array  # share of steps that moved
    trajectory: Array | None = None  # [num_steps, B, ...] after each step, if asked


def sir(
    keys: Array,
    sample: Sample,
    log_r: LogRatio,
    *,
    num_proposals: int,
    chunk_size: int,
) -> tuple[Array, SIRInfo]:
    """Keeps one of M proposals per chain, with probability proportional to r.

    Proposals are made in chunks and forgotten; only their log-weights are kept, and
    the chosen proposal is made again from its key.  The draws follow r(z) p(z) / Z as M
    grows; at finite M their bias is O(1/M), which `info.ess` makes visible.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here, so do not use them again.
      sample: keys [B] -> [B, ...] draws from p; draw b depends on key b alone.
      log_r: z [B, ...] -> [B] log r (nats); NaN counts as r = 0.
      num_proposals: M.
      chunk_size: proposals per chain weighed at a time; memory grows with it, the
        draws do not depend on it.

    Returns:
      [B, ...] draws and their `SIRInfo`.
    """
    log_w = _weigh(keys, sample, log_r, num_proposals, chunk_size)  # [M, B]
    chosen, info = _choose(keys, log_w)
    return _propose(keys, sample, chosen), info


class _Reservoir(NamedTuple):
    """What is kept of all proposals so far; every field is [B]."""

    chosen: Array  # int32, the number of the one that would be kept now
    score: Array  # its log-weight plus Gumbel noise: the highest of all
    log_sum: Array  # log sum w
    log_sum_squares: Array  # log sum w^2
    num_proposals: Array  # int32, M


def adaptive_sir(
    keys: Array,
    sample: Sample,
    log_r: LogRatio,
    *,
    tolerance: float,
    max_proposals: int,
    min_proposals: int = 64,
) -> tuple[Array, AdaptiveSIRInfo]:
    """SIR with as many proposals as each chain needs.

    The law of SIR with M proposals is off by about chi^2 / M of its target, where
    chi^2 = E[r^2] / E[r]^2 - 1 under p (Agapiou et al., "Importance sampling: intrinsic
    dimension and computational cost", 2017).  Proposals are added until the
    estimate 1 / ESS - 1 / M of that is at most `tolerance`.  Where r is almost
    constant, the first few are enough.  The choice is made as proposals come, by the
    highest log r + Gumbel noise, so that nothing is kept of the others.

    A chain that has not seen a large weight ends early, which adds to the bias: with
    log r = a z, a from 0.5 to 1.4, under N(0, 1) means were low by 4 to 9 times the
    tolerance, in standard deviations, where plain SIR with as many proposals is off by
    about half of that.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.  A chain's draw and its M
        depend on its own key alone.
      sample: as of `sir`.
      log_r: as of `sir`.
      tolerance: of the bias, a share of 1; 0 for `max_proposals` in any case.
      max_proposals: M at most, rounded up to a multiple of `min_proposals`.
      min_proposals: M at least, and by how much it grows.

    Returns:
      [B, ...] draws and their `AdaptiveSIRInfo`.
    """
    num_chains = len(keys)
    noise_keys = rng.stream(keys, "choice")

    def is_open(kept: _Reservoir) -> Array:
        return (kept.num_proposals < max_proposals) & ~(
            (tolerance > 0) & (_bias(kept) <= tolerance)
        )

    def weigh(m: Array) -> tuple[Array, Array]:
        log_w = _without_nan(log_r(_propose(keys, sample, m)))
        at = jax.vmap(rng.at_step)(noise_keys, m)
        return log_w, log_w + jax.vmap(jax.random.gumbel)(at)

    def add_chunk(kept: _Reservoir) -> _Reservoir:
        index = kept.num_proposals[None] + jnp.arange(min_proposals)[:, None]  # [c, B]
        log_w, score = jax.vmap(weigh)(index)
        best = jnp.argmax(score, 0)
        of_best = jnp.take_along_axis(score, best[None], 0)[0]
        added = _Reservoir(
            jnp.where(of_best > kept.score, kept.num_proposals + best, kept.chosen),
            jnp.maximum(of_best, kept.score),
            jnp.logaddexp(kept.log_sum, jax.nn.logsumexp(log_w, 0)),
            jnp.logaddexp(kept.log_sum_squares, jax.nn.logsumexp(2 * log_w, 0)),
            kept.num_proposals + min_proposals,
        )
        return jax.tree.map(partial(jnp.where, is_open(kept)), added, kept)

    lowest = jnp.full(num_chains, -jnp.inf)
    nothing = jnp.zeros(num_chains, jnp.int32)
    kept = jax.lax.while_loop(
        lambda kept: jnp.any(is_open(kept)),
        add_chunk,
        _Reservoir(nothing, lowest, lowest, lowest, nothing),
    )
    info = AdaptiveSIRInfo(
        ess=jnp.exp(2 * kept.log_sum - kept.log_sum_squares),
        log_z=kept.log_sum - jnp.log(kept.num_proposals.astype(kept.log_sum.dtype)),
        num_proposals=kept.num_proposals,
        bias=_bias(kept),
    )
    return _propose(keys, sample, kept.chosen), info


def _bias(kept: _Reservoir) -> Array:
    """1 / ESS - 1 / M, the estimate of chi^2 / M: [B]; infinite before the second."""
    one_by_ess = jnp.exp(kept.log_sum_squares - 2 * kept.log_sum)
    bias = one_by_ess - 1.0 / jnp.maximum(kept.num_proposals, 1).astype(
        one_by_ess.dtype
    )
    is_known = jnp.isfinite(kept.log_sum) & (kept.num_proposals > 1)
    return jnp.where(is_known, bias, jnp.inf)


def iterated_sir(
    keys: Array,
    initial: Array,
    sample: Sample,
    log_r: LogRatio,
    *,
    num_proposals: int,
    chunk_size: int,
    num_steps: int,
    keep_trajectory: bool = False,
) -> tuple[Array, IteratedSIRInfo]:
    """Repeats SIR with the current z among the M proposals (i-SIR).

    Andrieu, Lee & Vihola, "Uniform ergodicity of the iterated conditional SMC and
    geometric ergodicity of particle Gibbs samplers" (2018): every step leaves
    r(z) p(z) / Z exactly invariant, at any M of 2 or more, and leaves a chain where it
    is with a probability of about 1 / ess, so that `initial` is soon forgotten; SIR
    itself has a bias of O(1/M).

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.
      initial: [B, ...] where the chains start, usually draws from p.
      sample: as of `sir`.
      log_r: as of `sir`.
      num_proposals: M, the current z included.
      chunk_size: as of `sir`.
      num_steps: how often all M are weighed.
      keep_trajectory: also returns every z on the way.

    Returns:
      [B, ...] draws and their `IteratedSIRInfo`.
    """

    def step(state: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], tuple]:
        z, log_w_of_z = state
        step_keys = rng.at_step(keys, t)
        fresh = _weigh(step_keys, sample, log_r, num_proposals - 1, chunk_size)
        log_w = jnp.concatenate([log_w_of_z[None], fresh])  # [M, B]
        chosen, info = _choose(step_keys, log_w)
        new = _propose(step_keys, sample, jnp.maximum(chosen - 1, 0))
        z = chains.where(chosen > 0, new, z)
        log_w_of_z = jnp.take_along_axis(log_w, chosen[None], axis=0)[0]
        kept = z if keep_trajectory else None
        return (z, log_w_of_z), (info.ess, log_mean_exp(fresh), chosen > 0, kept)

    start = initial, _without_nan(log_r(initial))
    (z, _), (ess, log_z, has_moved, trajectory) = jax.lax.scan(
        step, start, jnp.arange(num_steps)
    )
    return z, IteratedSIRInfo(
        jnp.mean(ess, 0), log_mean_exp(log_z), jnp.mean(has_moved, 0), trajectory
    )


def _propose(keys: Array, sample: Sample, index: Array) -> Array:
    """Proposal number `index` [B] of every chain: [B, ...]."""
    chain_keys = rng.stream(keys, "proposals")
    return sample(jax.vmap(rng.at_step)(chain_keys, index))


def _weigh(
    keys: Array, sample: Sample, log_r: LogRatio, num_proposals: int, chunk_size: int
) -> Array:
    """log r of all proposals, [M, B]; they are forgotten."""

    def weigh(m: Array) -> Array:
        index = jnp.broadcast_to(m, keys.shape)
        return _without_nan(log_r(_propose(keys, sample, index)))

    log_w = jax.lax.map(weigh, jnp.arange(num_proposals), batch_size=chunk_size)
    chex.assert_shape(log_w, (num_proposals, *keys.shape))
    return log_w


def _choose(keys: Array, log_w: Array) -> tuple[Array, SIRInfo]:
    """One of the M proposals [B], and what the weights [M, B] say.

    Some chains at a time: drawing takes several times the memory of the weights.
    """
    num_chains = max(CHOICES // len(log_w), 1)

    def of_chain(key_b: tuple[Array, Array]) -> tuple[Array, SIRInfo]:
        key, b = key_b
        log_w_b = jax.lax.dynamic_index_in_dim(log_w, b, axis=1, keepdims=False)  # [M]
        log_sum = jax.nn.logsumexp(log_w_b)
        info = SIRInfo(
            ess=jnp.exp(2 * log_sum - jax.nn.logsumexp(2 * log_w_b)),
            log_z=log_sum - jnp.log(len(log_w_b)),
        )
        return jax.random.categorical(key, log_w_b), info

    chain_keys = rng.stream(keys, "choice")
    chains_and_keys = (chain_keys, jnp.arange(len(keys)))
    return jax.lax.map(of_chain, chains_and_keys, batch_size=num_chains)


def log_mean_exp(log_w: Array, axis: int = 0) -> Array:
    """log of the mean of exp(log_w) over `axis`, without overflow."""
    return jax.nn.logsumexp(log_w, axis) - jnp.log(log_w.shape[axis])


def _without_nan(log_w: Array) -> Array:
    return jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)
