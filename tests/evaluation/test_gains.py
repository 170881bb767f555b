"""`gains.py` on two Gaussians, whose KL divergence is known."""

import math

import numpy as np
import pytest

from ncp_jax.evaluation import gains

SHIFT = 0.8  # q = N(0.8, 1), p = N(0, 1): log r = 0.8 z - 0.32, KL(q, p) = 0.32
KL = SHIFT**2 / 2


def draws(rng, n, passes, factor=0.0):
    """log r + factor of posterior and of prior draws: [n, passes] each."""
    z_q, z_p = SHIFT + rng.normal(size=(n, passes)), rng.normal(size=(n, passes))
    return tuple(SHIFT * z - KL + factor for z in (z_q, z_p))


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_the_gain_of_the_true_ratio_is_the_divergence(factor):
    """Whatever factor it has, which only log Z and E_q[log r] show."""
    found = gains.held_out_gain(*draws(np.random.default_rng(0), 20_000, 4, factor))
    expected = {
        "nce_gain": KL,
        "nce_log_r_q": KL + factor,
        "nce_log_z": factor,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        estimate = found[name]
        assert (estimate.n, estimate.unit) == (20_000, "nats")
        assert abs(estimate.value - value) < 5.5 * estimate.stderr < 0.1 * KL


def test_standard_errors_are_those_of_repeats():
    """400 repeats: their spread is known to 3.5 %, and 25 % off would be seen."""
    rng = np.random.default_rng(1)
    repeats = [gains.held_out_gain(*draws(rng, 500, 2)) for _ in range(400)]
    for name in ("nce_gain", "nce_log_r_q", "nce_log_z"):
        spread = np.std([r[name].value for r in repeats])
        claimed = np.mean([r[name].stderr for r in repeats])
        assert abs(math.log(claimed / spread)) < 0.2


def test_too_few_effective_draws_have_no_interval():
    log_r_q, log_r_p = draws(np.random.default_rng(2), 1_000, 1)
    log_r_p[0, 0] = 12.0  # one draw that outweighs the rest
    found = gains.held_out_gain(log_r_q, log_r_p)
    assert found["nce_gain"].stderr is None is found["nce_log_z"].stderr
    assert found["nce_log_r_q"].stderr > 0
    of_all = math.log(np.exp(log_r_p).mean())
    assert found["nce_log_z"].value == pytest.approx(of_all, rel=1e-6)
