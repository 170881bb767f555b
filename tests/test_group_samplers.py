"""`group_samplers.py`: what one group's draws are, where the answer is known."""

import jax
import jax.numpy as jnp
import pytest

from ncp_jax.distributions import Normal
from ncp_jax.group_samplers import Langevin
from ncp_jax.prior import Target
from tests.statistics import assert_mean

MEAN, STD, TILT = -3.0, 0.05, 10.0  # log r = TILT z moves the mean by TILT STD^2
NUM_CHAINS = 20_000


def draw_from(draw, key, base, log_r, group=0):
    """The draws of one group, compiled."""
    keys = jax.random.split(key, NUM_CHAINS)
    target = Target(base, log_r, jnp.array(group))
    return jax.jit(lambda keys: draw(keys, target))(keys)


def test_langevin_in_noise_suits_a_narrow_prior(key):
    shape = (NUM_CHAINS, 1)
    base = Normal(jnp.full(shape, MEAN), jnp.full(shape, STD))
    draw = Langevin(step_size=0.05, num_steps=300, in_noise=True)
    z, info = draw_from(draw, key, base, lambda z: TILT * z[:, 0])
    # The step widens the law of the noise: its variance is 1 / (1 - 0.05 / 4).
    moved = (z - MEAN)[:, 0] / STD
    assert_mean(moved, TILT * STD, std=1.01)
    assert_mean((moved - TILT * STD) ** 2, 1 / (1 - 0.05 / 4), std=1.5)
    with pytest.raises(AssertionError):
        assert_mean(moved, 0.9 * TILT * STD, std=1.01)
    assert info.log_density.shape == (300, NUM_CHAINS)


def test_langevin_in_noise_without_a_ratio_stays_in_the_prior(key):
    base = Normal(jnp.full((NUM_CHAINS, 1), MEAN), jnp.full((NUM_CHAINS, 1), STD))
    draw = Langevin(step_size=0.05, num_steps=20, in_noise=True)
    z, _ = draw_from(draw, key, base, lambda z: jnp.zeros(NUM_CHAINS))
    assert_mean(z[:, 0], MEAN, std=1.02 * STD)
