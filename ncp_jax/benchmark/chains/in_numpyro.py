"""NumPyro's HMC and NUTS on the target of one group; imported only where installed."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import infer

from ncp_jax.benchmark.chains.ours import Chain, Course, State
from ncp_jax.priors.ncp_prior import Target

Array = jax.Array

QUARTER = math.pi / 2  # of the period of N(0, I): HMC then forgets where it began


def hmc(target: Target, num_steps: int) -> Chain:
    """HMC of trajectories of pi / 2; its default, 2 pi, returns to where it began."""

    def potential(z: Array) -> Array:
        return _potential(target, z)

    kernel = infer.HMC(potential_fn=potential, trajectory_length=QUARTER)
    return _chain("hmc", kernel, num_steps)


def nuts(target: Target, num_steps: int) -> Chain:
    """NUTS with its default settings."""

    def potential(z: Array) -> Array:
        return _potential(target, z)

    return _chain("nuts", infer.NUTS(potential_fn=potential), num_steps)


def _potential(target: Target, z: Array) -> Array:
    """-log r(z) - log N(z; 0, I) of one chain, up to a constant: []."""
    return 0.5 * jnp.sum(z**2) - target.log_r(z[None])[0]


def _chain(name: str, kernel: Any, num_steps: int) -> Chain:
    """Chains that the kernel itself vectorises, in a scan.

    Its state holds the keys, the step size and the diagonal mass matrix of each chain;
    both are adapted in the first `num_steps` and then kept.
    """

    def start(key: Array, z: Array) -> State:
        return kernel.init(jax.random.split(key, len(z)), num_steps, z, (), {})

    def sample(key: Array, state: State) -> tuple[State, Course]:
        def update(state: State, _: None) -> tuple[State, tuple[Array, Array, Array]]:
            state = kernel.sample(state, (), {})
            rate, leaps = jnp.mean(state.accept_prob), jnp.mean(state.num_steps)
            return state, (state.z, rate, leaps)

        state, (z, rate, leaps) = jax.lax.scan(update, state, None, num_steps)
        return state, Course(z, jnp.mean(rate), jnp.mean(leaps))

    def warm_up(key: Array, state: State) -> State:
        def update(_: int, state: State) -> State:
            return kernel.sample(state, (), {})

        return jax.lax.fori_loop(0, num_steps, update, state)

    return Chain(name, "NumPyro", start, warm_up, sample)
