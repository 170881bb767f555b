"""What a chain is to the benchmark's part `chains`, and our own samplers as such."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.models.distributions import Normal
from ncp_jax.models.shared import sample_each
from ncp_jax.priors.group_samplers import AdaptiveSIR, SIRThenMALA
from ncp_jax.priors.ncp_prior import LogRatio, Target

Array = jax.Array
State = Any  # of B chains, a pytree

NUM_PROPOSALS = 10  # of iterated SIR: the cheapest effective draw where r is mild
CALL_STEPS = 20  # of a chain, for one whole call of a sampler that starts anew


class Course(NamedTuple):
    """What some steps of B chains left behind."""

    z: Array  # [T, B, *latent_shape] after each step
    acceptance: Array | None  # [] share of the steps that moved
    evaluations: Array  # [] of log r in a step of one chain, gradients not counted


class Chain(NamedTuple):
    """B chains of one sampler, ours or another's.

    Attributes:
      sampler: its name.
      by: whose it is.
      start: (key, z [B, *latent_shape]) -> state; neither compiled nor timed.
      warm_up: (key, state) -> state, with what the sampler adapts; None for a sampler
        that starts anew at every draw.
      sample: (key, state) -> (state, `Course`).
    """

    sampler: str
    by: str
    start: Callable[[Array, Array], State]
    warm_up: Callable[[Array, State], State] | None
    sample: Callable[[Array, State], tuple[State, Course]]


def target_of(
    log_r: LogRatio, latent_shape: tuple[int, ...], num_chains: int
) -> Target:
    """The group r(z) N(z; 0, I) of B chains."""
    shape = (num_chains, *latent_shape)
    return Target(Normal(jnp.zeros(shape), jnp.ones(shape)), log_r, jnp.array(0))


def all_of(target: Target, step_size: float, num_steps: int) -> list[Chain]:
    """MALA, iterated SIR and the samplers whose every draw is a new one.

    Args:
      target: of B chains, with N(0, I) for its base prior.
      step_size: lambda at which MALA begins to adapt.
      num_steps: of a warm-up, and of the course of one call.
    """
    sir_then_mala = SIRThenMALA(step_size=step_size)
    per_draw = sir_then_mala.num_proposals + sir_then_mala.num_steps + 1
    num_calls = max(num_steps // CALL_STEPS, 2)
    return [
        _mala(target, step_size, num_steps),
        _iterated_sir(target, num_steps),
        _anew("sirmala", target, sir_then_mala, num_calls, lambda _: per_draw),
        _anew("asir", target, AdaptiveSIR(), num_calls, _num_weighed),
    ]


def _mala(target: Target, step_size: float, num_steps: int) -> Chain:
    def log_density(z: Array) -> Array:
        return target.base.log_prob(z) + target.log_r(z)

    run = partial(samplers.mala, log_density=log_density, num_steps=num_steps)

    def warm_up(key: Array, state: State) -> State:
        z, step = state
        keys = jax.random.split(key, len(z))
        z, info = run(keys, z, step_size=step, num_adapt_steps=num_steps)
        return z, info.step_size

    def sample(key: Array, state: State) -> tuple[State, Course]:
        z, step = state
        keys = jax.random.split(key, len(z))
        z, info = run(keys, z, step_size=step, keep_trajectory=True)
        course = Course(_kept(info), jnp.mean(info.acceptance), jnp.ones(()))
        return (z, step), course

    def start(key: Array, z: Array) -> State:
        return z, jnp.full(len(z), step_size)

    return Chain("mala", "ours", start, warm_up, sample)


def _iterated_sir(target: Target, num_steps: int) -> Chain:
    run = partial(
        samplers.iterated_sir,
        sample=lambda keys: sample_each(keys, target.base),
        log_r=target.log_r,
        num_proposals=NUM_PROPOSALS,
        chunk_size=NUM_PROPOSALS,
        num_steps=num_steps,
    )

    def warm_up(key: Array, z: State) -> State:
        return run(jax.random.split(key, len(z)), z)[0]

    def sample(key: Array, z: State) -> tuple[State, Course]:
        z, info = run(jax.random.split(key, len(z)), z, keep_trajectory=True)
        weighed = jnp.asarray(NUM_PROPOSALS - 1.0)
        return z, Course(_kept(info), jnp.mean(info.acceptance), weighed)

    return Chain("isir", "ours", lambda key, z: z, warm_up, sample)


def _anew(
    name: str,
    target: Target,
    draw: Callable[[Array, Target], tuple[Array, Any]],
    num_calls: int,
    num_evaluations: Callable[[Any], float | Array],
) -> Chain:
    """A sampler of `ncp_prior.ancestral`, called again for each step of the course."""

    def sample(key: Array, state: State) -> tuple[State, Course]:
        def call(i: Array) -> tuple[Array, Array]:
            keys = jax.random.split(rng.at_step(key, i), len(state))
            z, info = draw(keys, target)
            return z, jnp.asarray(num_evaluations(info), jnp.float32)

        z, evaluations = jax.lax.map(call, jnp.arange(num_calls))
        return z[-1], Course(z, None, jnp.mean(evaluations))

    return Chain(name, "ours", lambda key, z: z, None, sample)


def _num_weighed(info: samplers.AdaptiveSIRInfo) -> Array:
    return jnp.mean(info.num_proposals.astype(jnp.float32))


def _kept(info: samplers.MALAInfo | samplers.IteratedSIRInfo) -> Array:
    assert info.trajectory is not None
    return info.trajectory
