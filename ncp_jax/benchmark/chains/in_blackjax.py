"""BlackJAX's MALA on the target of one group; imported only where that is installed."""

import blackjax
import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation

from ncp_jax.benchmark.chains.ours import Chain, Course, State
from ncp_jax.priors.ncp_prior import Target
from ncp_jax.samplers.dynamics import ACCEPTANCE

Array = jax.Array


def mala(target: Target, step_size: float, num_steps: int) -> Chain:
    """`blackjax.mala` with BlackJAX's dual averaging of each chain's step size.

    Args:
      target: of B chains, with N(0, I) for its base prior.
      step_size: our lambda at which it begins to adapt, twice what BlackJAX means.
      num_steps: of a warm-up, and of the course of one call.
    """
    kernel = blackjax.mala.build_kernel()
    init_steps, update_steps, final_steps = dual_averaging_adaptation(ACCEPTANCE)

    def log_density(z: Array) -> Array:
        return target.log_r(z[None])[0] - 0.5 * jnp.sum(z**2)

    @jax.vmap
    def move(key: Array, state: State, step: Array) -> tuple[State, State]:
        return kernel(key, state, log_density, step)

    def start(key: Array, z: Array) -> State:
        states = jax.vmap(lambda z: blackjax.mala.init(z, log_density))(z)
        return states, jnp.full(len(z), 0.5 * step_size)

    def warm_up(key: Array, state: State) -> State:
        def update(carry: State, step_key: Array) -> tuple[State, None]:
            states, steps = carry
            keys = jax.random.split(step_key, num_chains)
            states, info = move(keys, states, jnp.exp(steps.log_step_size))
            return (states, jax.vmap(update_steps)(steps, info.acceptance_rate)), None

        states, initial = state
        num_chains = len(initial)
        begin = states, jax.vmap(init_steps)(initial)
        (states, steps), _ = jax.lax.scan(
            update, begin, jax.random.split(key, num_steps)
        )
        return states, jax.vmap(final_steps)(steps)

    def sample(key: Array, state: State) -> tuple[State, Course]:
        def update(states: State, step_key: Array) -> tuple[State, tuple[Array, Array]]:
            states, info = move(jax.random.split(step_key, len(steps)), states, steps)
            return states, (states.position, jnp.mean(info.is_accepted))

        states, steps = state
        states, (z, moved) = jax.lax.scan(
            update, states, jax.random.split(key, num_steps)
        )
        return (states, steps), Course(z, jnp.mean(moved), jnp.ones(()))

    return Chain("mala", "BlackJAX", start, warm_up, sample)
