"""`group_samplers.py`: what one group's draws are, where the answer is known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax.errors import InputError
from ncp_jax.models.distributions import Normal, Standardizable
from ncp_jax.priors.group_samplers import (
    MALA,
    SIR,
    AdaptiveSIR,
    Base,
    IteratedSIR,
    Langevin,
    SIRThenMALA,
)
from ncp_jax.priors.ncp_prior import Target
from ncp_jax.priors.signal_space import PaddedNormal
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
        AdaptiveSIR(1e-3, 512),
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


@pytest.mark.parametrize(
    "draw",
    [
        SIR(4, 4),
        Langevin(0.1, 5),
        MALA(0.1, 5, 2, in_noise=False),
        SIRThenMALA(4, 4, 0.1, 5, 2, in_noise=False),
    ],
)
def test_padding_stays_zero(key, draw):
    """Its coordinates have no density, so that chains would move them anywhere."""
    base = PaddedNormal(jnp.ones((NUM_CHAINS, 2)).at[:, 1].set(0.0))
    z, _ = draw_from(draw, key, base, lambda z: z[:, 0] + z[:, 1])
    assert not z[:, 1].any() and z[:, 0].std() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MALA(0.1, 100, 100), "must be fewer"),
        (lambda: SIRThenMALA(num_steps=0), "must be fewer"),
        (lambda: IteratedSIR(1), "must be 2 or more"),
    ],
)
def test_chains_without_a_step_to_judge_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_samplers_are_values():
    assert SIR(5, 2) == SIR(5, 2) and hash(SIR(5, 2)) == hash(SIR(5, 2))
    assert len({SIR(5, 2), SIR(5, 3), MALA(), MALA(), Langevin((0.1, 0.2), 3)}) == 4


CENTRE, WIDTH = 3.0, 0.5


class TwoModes(NamedTuple):
    """N(-CENTRE, WIDTH^2) and N(CENTRE, WIDTH^2), half and half; with their moments."""

    mean: jax.Array  # zeros [B, 1]
    std: jax.Array

    def sample(self, key):
        sign_key, noise_key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, self.mean.shape, self.mean.dtype)
        return CENTRE * sign + WIDTH * jax.random.normal(noise_key, self.mean.shape)

    def log_prob(self, value):
        parts = [-0.5 * ((value - c) / WIDTH) ** 2 for c in (-CENTRE, CENTRE)]
        return jnp.sum(jnp.logaddexp(*parts), 1)


def two_modes():
    shape = (NUM_CHAINS, 1)
    std = (CENTRE**2 + WIDTH**2) ** 0.5
    return TwoModes(jnp.zeros(shape), jnp.full(shape, std))


@pytest.mark.parametrize(
    "draw",
    [
        SIR(64, 64),
        AdaptiveSIR(1e-3, 512),
        IteratedSIR(8, 20, 8),
        Langevin(0.01, 200),
        MALA(0.1, 60, 20, in_noise=False),
        SIRThenMALA(16, 16, 0.1, 20, 0, in_noise=False),
    ],
)
def test_every_sampler_keeps_a_base_prior_that_is_not_normal(key, draw):
    """log r = -z^2 / 8 leaves two modes: N(+-centre, variance) below."""
    z, _ = draw_from(draw, key, two_modes(), lambda z: -(z[:, 0] ** 2) / 8)
    variance = 1 / (1 / WIDTH**2 + 1 / 4)
    centre = CENTRE * variance / WIDTH**2
    second = centre**2 + variance
    assert_mean(z[:, 0] ** 2, second, std=2.9, bias=0.02)
    with pytest.raises(AssertionError):
        assert_mean(z[:, 0] ** 2, 0.9 * second, std=2.9, bias=0.02)
    between = scipy.stats.norm.cdf((1.5 - centre) / variance**0.5)
    assert_mean(np.abs(z[:, 0]) < 1.5, between, std=between**0.5, bias=0.02)
    assert_mean(z[:, 0] > 0, 0.5, std=0.5)


@pytest.mark.parametrize(
    "draw", [Langevin(0.01, 20, in_noise=True), MALA(0.1, 20), SIRThenMALA(4, 4)]
)
def test_noise_is_not_moved_where_the_base_prior_is_not_normal(key, draw):
    """A mean and a std are no promise: MALA left both modes, 0.4 of it for 0.001."""
    with pytest.raises(InputError, match=r"TwoModes .* in_noise=False, .* SIR"):
        draw_from(draw, key, two_modes(), lambda z: jnp.zeros(NUM_CHAINS))


def test_what_can_be_standardised_says_so():
    shape = (4, 3)
    normal = Normal(jnp.full(shape, MEAN), jnp.full(shape, STD))
    padded = PaddedNormal(jnp.ones(shape).at[:, 2].set(0.0))
    for base in (normal, padded):
        assert isinstance(base, Standardizable)
        mean, std = base.standardization()
        np.testing.assert_array_equal(mean, base.mean)
        np.testing.assert_array_equal(std, base.std)
    assert not isinstance(two_modes(), Standardizable)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: SIR(0), r"num_proposals must be an integer in \[1, inf\)"),
        (lambda: SIR(2.5), r"num_proposals must be an integer .* got 2.5"),
        (lambda: SIR(10, 0), r"chunk_size must be an integer in \[1, inf\)"),
        (
            lambda: AdaptiveSIR(max_proposals=0),
            r"max_proposals must be an integer in \[1, inf\)",
        ),
        (
            lambda: AdaptiveSIR(min_proposals=15),
            r"min_proposals must be an integer in \[16, inf\)",
        ),
        (
            lambda: IteratedSIR(chunk_size=0),
            r"chunk_size must be an integer in \[1, inf\)",
        ),
        (lambda: SIRThenMALA(0), r"num_proposals must be an integer in \[1, inf\)"),
        (lambda: Langevin(0.1, -1), r"num_steps must be an integer in \[0, inf\)"),
        (lambda: Langevin(-0.1), "step_size must be a number above 0"),
        (lambda: Langevin((0.1, 0.0)), "step_size must be a number above 0"),
        (lambda: Langevin([0.1, 0.2]), "step_size .* or a tuple"),
        (lambda: MALA(0.0), "step_size must be a number above 0"),
        (lambda: MALA(num_steps=10.5), "num_steps must be an integer .* got 10.5"),
        (lambda: MALA(0.1, 10, 2.5), "num_adapt_steps must be an integer"),
        (lambda: IteratedSIR(2.5), "num_proposals must be an integer"),
        (lambda: IteratedSIR(3, 1.5), "num_steps must be an integer"),
    ],
)
def test_settings_that_draw_nothing_are_refused(make, hint):
    with pytest.raises(InputError, match=hint):
        make()


def test_a_base_prior_without_temperatures_is_named(key):
    with pytest.raises(InputError, match=r"TwoModes without a method tempered"):
        draw_from(Base(0.7), key, two_modes(), lambda z: jnp.zeros(NUM_CHAINS))
