"""Langevin dynamics (Sec. 4.3), and with the correction that makes it exact."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.distributions import sum_non_batch
from ncp_jax.samplers import chains
from ncp_jax.samplers.resampling import LogRatio, Sample, SIRInfo, sir

Array = jax.Array
LogDensity = Callable[[Array], Array]  # z [B, ...] -> [B], nats, up to a constant

ACCEPTANCE = 0.574  # the best rate of MALA in many dimensions (Roberts & Rosenthal)


class LangevinInfo(NamedTuple):
    """The course of the chains, summarised; the first two are [num_steps, B]."""

    log_density: Array  # log p(z) + log r(z) before each update, nats
    gradient_norm: Array  # Euclidean norm of its gradient
    trajectory: Array | None = None  # [num_steps, B, ...] after each update, if asked


class MALAInfo(NamedTuple):
    """The course of the chains, summarised."""

    log_density: Array  # [num_steps, B] log p(z) + log r(z) after each step, nats
    acceptance: Array  # [B] share of the steps after adaptation that moved
    step_size: Array  # [B] at the end
    trajectory: Array | None = None  # [num_steps, B, ...] after each step, if asked


class SIRThenMALAInfo(NamedTuple):
    """Diagnostics of both parts."""

    sir: SIRInfo
    mala: MALAInfo


def langevin(
    keys: Array,
    initial: Array,
    log_density: LogDensity,
    *,
    step_size: float | Array,
    num_steps: int,
    keep_trajectory: bool = False,
) -> tuple[Array, LangevinInfo]:
    """Follows z <- z + (lambda / 2) grad log_density(z) + sqrt(lambda) noise.

    The update of Sec. 4.3, with E(z) = -log r(z) - log p(z) = -log_density(z).  It is
    not corrected: its draws carry a bias of O(lambda), and a short run remembers
    `initial`.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.
      initial: [B, ...] starting points, usually draws from p.
      log_density: z [B, ...] -> [B] log p(z) + log r(z), nats, up to a constant.
      step_size: lambda, [] or one of every chain [B].
      num_steps: updates.
      keep_trajectory: also returns every z on the way.

    Returns:
      [B, ...] final points and the `LangevinInfo` of the course.
    """
    gradient = _value_and_slope(log_density)
    step = chains.per_chain(step_size, initial)

    def update(z: Array, t: Array) -> tuple[Array, LangevinInfo]:
        value, slope = gradient(z)
        norm = jnp.sqrt(sum_non_batch(slope**2))
        z = (
            z
            + 0.5 * step * slope
            + jnp.sqrt(step) * chains.noise(rng.at_step(keys, t), z)
        )
        return z, LangevinInfo(value, norm, z if keep_trajectory else None)

    return jax.lax.scan(update, initial, jnp.arange(num_steps))


def mala(
    keys: Array,
    initial: Array,
    log_density: LogDensity,
    *,
    step_size: float | Array,
    num_steps: int,
    num_adapt_steps: int = 0,
    keep_trajectory: bool = False,
) -> tuple[Array, MALAInfo]:
    """Langevin dynamics whose updates are accepted or refused, so that it is exact.

    Roberts & Tweedie, "Exponential convergence of Langevin distributions and their
    discrete approximations" (1996): z' = z + (lambda / 2) grad + sqrt(lambda) noise is
    accepted with probability min(1, pi(z') q(z | z') / (pi(z) q(z' | z))), which leaves
    pi = exp(log_density) invariant at any lambda.  A NaN in z' refuses it.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.
      initial: [B, ...] starting points.
      log_density: z [B, ...] -> [B] log pi, nats, up to a constant.
      step_size: lambda, [] or one of every chain [B].
      num_steps: updates, adaptation included.
      num_adapt_steps: the first so many move each chain's lambda towards an acceptance
        of 0.574 (Robbins & Monro); they are to be forgotten, as `initial` is.
      keep_trajectory: also returns every z on the way.

    Returns:
      [B, ...] final points and their `MALAInfo`.
    """
    gradient = _value_and_slope(log_density)
    num_chains = initial.shape[0]

    def update(
        state: tuple[Array, Array, Array, Array], t: Array
    ) -> tuple[tuple[Array, Array, Array, Array], tuple[Array, Array, Array | None]]:
        z, value, slope, log_step = state
        chain_step = jnp.exp(log_step)
        step = chains.per_chain(chain_step, z)
        step_keys = rng.at_step(keys, t)
        noise = chains.noise(rng.stream(step_keys, "noise"), z)
        new = z + 0.5 * step * slope + jnp.sqrt(step) * noise
        new_value, new_slope = gradient(new)
        back = z - new - 0.5 * step * new_slope
        log_ratio = new_value - value + 0.5 * sum_non_batch(noise**2)
        log_ratio -= 0.5 * sum_non_batch(back**2) / chain_step
        draw = jax.vmap(jax.random.uniform)(rng.stream(step_keys, "accept"))
        is_accepted = jnp.log(draw) < log_ratio  # False for NaN
        rate = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0)))
        move = (t + 1).astype(rate.dtype) ** -0.6 * (rate - ACCEPTANCE)
        state = (
            chains.where(is_accepted, new, z),
            jnp.where(is_accepted, new_value, value),
            chains.where(is_accepted, new_slope, slope),
            log_step + jnp.where(t < num_adapt_steps, move, 0.0),
        )
        return state, (state[1], is_accepted, state[0] if keep_trajectory else None)

    value, slope = gradient(initial)
    is_lost = jnp.isnan(value) | jnp.isnan(sum_non_batch(slope))
    start = (
        initial,
        jnp.where(is_lost, -jnp.inf, value),  # whatever comes is better
        chains.where(is_lost, jnp.zeros_like(slope), slope),
        jnp.broadcast_to(jnp.log(jnp.asarray(step_size, value.dtype)), num_chains),
    )
    (z, _, _, log_step), (course, is_accepted, trajectory) = jax.lax.scan(
        update, start, jnp.arange(num_steps)
    )
    acceptance = jnp.mean(is_accepted[num_adapt_steps:], 0)
    return z, MALAInfo(course, acceptance, jnp.exp(log_step), trajectory)


def sir_then_mala(
    keys: Array,
    sample: Sample,
    log_r: LogRatio,
    log_density: LogDensity,
    *,
    num_proposals: int,
    chunk_size: int,
    step_size: float | Array,
    num_steps: int,
    num_adapt_steps: int = 0,
) -> tuple[Array, SIRThenMALAInfo]:
    """Chooses among M proposals and lets MALA move the choice on.

    SIR finds the mass, MALA takes away some of its bias: what is left after each step
    is no more than before, and draws of one chain no longer lie among M points.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.
      sample: as of `sir`.
      log_r: as of `sir`.
      log_density: as of `mala`: log p + log r.
      num_proposals: M.
      chunk_size: as of `sir`.
      step_size: as of `mala`.
      num_steps: as of `mala`.
      num_adapt_steps: as of `mala`.

    Returns:
      [B, ...] draws and their `SIRThenMALAInfo`.
    """
    chosen, sir_info = sir(
        rng.stream(keys, "sir"),
        sample,
        log_r,
        num_proposals=num_proposals,
        chunk_size=chunk_size,
    )
    draws, mala_info = mala(
        rng.stream(keys, "mala"),
        chosen,
        log_density,
        step_size=step_size,
        num_steps=num_steps,
        num_adapt_steps=num_adapt_steps,
    )
    return draws, SIRThenMALAInfo(sir_info, mala_info)


def _value_and_slope(
    log_density: LogDensity,
) -> Callable[[Array], tuple[Array, Array]]:
    """z [B, ...] -> log density [B] and its gradient [B, ...]."""

    def total(z: Array) -> tuple[Array, Array]:
        values = log_density(z)
        return jnp.sum(values), values

    def both(z: Array) -> tuple[Array, Array]:
        slope, values = jax.grad(total, has_aux=True)(z)
        return values, slope

    return both
