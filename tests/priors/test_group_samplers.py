"""`group_samplers.py`: what one group's draws are, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.group_samplers import MALA, SIR, IteratedSIR, Langevin, SIRThenMALA
from ncp_jax.priors.ncp_prior import Target
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


@pytest.mark.parametrize(
    "draw",
    [
        SIR(64, 64),
        IteratedSIR(8, 20, 8),
        MALA(0.5, 60, 20),
        SIRThenMALA(16, 16, 0.5, 20, 0),
    ],
)
def test_every_sampler_finds_the_tilted_prior(key, draw):
    base = Normal(jnp.full((NUM_CHAINS, 1), MEAN), jnp.full((NUM_CHAINS, 1), STD))
    z, _ = draw_from(draw, key, base, lambda z: TILT * z[:, 0])
    moved = (z - MEAN)[:, 0] / STD
    assert_mean(moved, TILT * STD, std=1.0, bias=0.02)
    assert_mean((moved - TILT * STD) ** 2, 1.0, std=1.5, bias=0.02)
    with pytest.raises(AssertionError):
        assert_mean(moved, 0.8 * TILT * STD, std=1.0, bias=0.02)


def test_a_group_takes_the_step_of_its_number(key):
    base = Normal(jnp.zeros((NUM_CHAINS, 1)), jnp.ones((NUM_CHAINS, 1)))
    steps = (0.01, 0.3)
    for group, step in enumerate(steps):
        arguments = (key, base, lambda z: z[:, 0])
        z, _ = draw_from(Langevin(steps, 3), *arguments, group=group)
        alone, _ = draw_from(Langevin(step, 3), *arguments)
        np.testing.assert_allclose(z, alone, rtol=1e-6)


def test_samplers_are_values():
    assert SIR(5, 2) == SIR(5, 2) and hash(SIR(5, 2)) == hash(SIR(5, 2))
    assert len({SIR(5, 2), SIR(5, 3), MALA(), MALA(), Langevin((0.1, 0.2), 3)}) == 4
