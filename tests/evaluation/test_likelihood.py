"""`likelihood.py` on a linear-Gaussian VAE, whose p(x) and p_NCP(x) are exact.

With log r(z) = TILT . z the NCP is N(TILT, I) and log Z = |TILT|^2 / 2, so p_NCP(x) is
normal as well.
"""

import math

import jax
import numpy as np
import pytest

from ncp_jax.data import datasets
from ncp_jax.evaluation import likelihood
from ncp_jax.evaluation.importance import WeightSums
from tests.oracles import ChainVAE, tilted
from tests.tilted_gaussian import (
    LOG_Z,
    NCP,
    RELATIVE_VARIANCE,
    TILT,
    VAE,
    as_it_is,
    draw_x,
)

NUM_X = 1_000


@pytest.fixture(scope="module")
def x():
    return draw_x(NUM_X)


def test_log_z_and_its_course(key):
    sums, course = likelihood.log_z(NCP, key, num_draws=99_000, batch_size=10_000)
    assert isinstance(sums, WeightSums)
    assert sums.count == 99_000
    np.testing.assert_array_equal(course[:, 0], [1e4, 2e4, 4e4, 8e4, 9.9e4])
    assert course[-1, 1:].tolist() == [sums.log_mean.value, sums.log_mean.stderr]
    std = RELATIVE_VARIANCE**0.5
    np.testing.assert_allclose(course[:, 2], std / course[:, 0] ** 0.5, rtol=0.1)
    for count, log_z, _ in course:  # the mean of `count` weights
        bar = 5.5 * std / count**0.5
        assert abs(math.expm1(log_z - LOG_Z)) < bar
    assert abs(math.expm1(0.9 * course[-1, 1] - LOG_Z)) > 5.5 * std / 1e5**0.5
    assert sums.ess_fraction.value == pytest.approx(math.exp(-2 * LOG_Z), rel=0.05)


def test_log_z_of_two_groups_depends_on_the_draws_alone(key):
    """With log r_k = a_k z_k and z normal, log Z is half the variance of a . z."""
    chain, slopes = ChainVAE(), (0.7, -0.5)
    ncp = chain.ncp(slopes)
    sums, _ = likelihood.log_z(ncp, key, num_draws=50_000, batch_size=50_000)
    along_0 = slopes[0] + slopes[1] * chain.gain
    variance = along_0**2 + (slopes[1] * chain.std) ** 2
    bar = 5.5 * (math.expm1(variance) / 50_000) ** 0.5
    assert abs(math.expm1(sums.log_mean.value - variance / 2)) < bar
    assert abs(math.expm1(0.9 * sums.log_mean.value - variance / 2)) > bar
    other, _ = likelihood.log_z(ncp, key, num_draws=50_000, batch_size=7_000)
    assert other.count == sums.count == 50_000
    np.testing.assert_allclose(other.log_sums, sums.log_sums, rtol=1e-6)


def test_so_many_draws_are_missing(key):
    sums, _ = likelihood.log_z(NCP, key, num_draws=20_000, batch_size=20_000)
    stderr = sums.log_mean.stderr
    assert likelihood.missing_draws(sums, 0.0) is None
    assert likelihood.missing_draws(sums, 1.01 * stderr) is None
    missing = likelihood.missing_draws(sums, stderr / 3)  # nine times as many draws
    assert missing.value == pytest.approx(8 * 20_000, rel=1e-3)
    # What the exact variance of r needs is within the error that is stated.
    exact = RELATIVE_VARIANCE / (stderr / 3) ** 2 - 20_000
    assert missing.value == pytest.approx(exact, abs=5.5 * missing.stderr)
    assert missing.stderr < 0.1 * missing.value
    assert likelihood.missing_draws(WeightSums().add(np.zeros(1)), 0.1).stderr is None


def test_likelihood_pairs_the_gain_and_adds_the_error_of_log_z(x, key):
    rows = np.asarray(x)
    estimates, arrays = likelihood.measure(
        NCP,
        list(datasets.padded_batches(rows, 300)),
        as_it_is,
        key,
        num_importance_samples=32,
        num_snis_samples=1,
        num_snis_proposals=32,
        num_log_z_draws=20_000,
        chunk_size=8,
        log_z_batch_size=20_000,
    )
    log_p, log_p_ncp = VAE.log_marginal(rows), VAE.log_marginal(rows, TILT)
    each = log_p_ncp - log_p
    z = estimates["log_z"]
    gain = estimates["gain_nats"]
    # The gain of the same examples, so only noise of the estimate separates them.
    assert gain.value == pytest.approx(each.mean(), abs=0.01 + 6 * z.stderr)
    # The difference per example, not the spread of log p itself; and log Z's share.
    paired = np.hypot(each.std(ddof=1) / 1_000**0.5, z.stderr)
    assert gain.stderr == pytest.approx(paired, rel=0.03)
    nll = estimates["nll_ncp"]
    assert nll.value == pytest.approx(-log_p_ncp.mean(), abs=0.01 + 6 * z.stderr)
    spread = log_p_ncp.std(ddof=1) / 1_000**0.5
    assert nll.stderr == pytest.approx(np.hypot(spread, z.stderr), rel=0.03)
    assert nll.n == gain.n == 1_000
    assert estimates["nll_base"].value == pytest.approx(-log_p.mean(), abs=1e-4)
    assert estimates["elbo_base"].value == pytest.approx(log_p.mean(), abs=1e-4)
    difference = estimates["nll_base"].value - estimates["nll_snis"].value
    assert estimates["gain_snis_nats"].value == pytest.approx(difference, abs=1e-5)
    assert arrays["log_z_curve"].shape == (1, 3)


SETTINGS = {
    "num_importance_samples": 4,
    "num_snis_samples": 1,
    "num_snis_proposals": 2,
    "num_log_z_draws": 1_000,
    "chunk_size": 4,
    "log_z_batch_size": 1_000,
}


def test_no_nll_where_log_z_is_not_known_well_enough(x, key):
    batches = list(datasets.padded_batches(np.asarray(x[:20]), 20))

    def measure(**settings):
        return likelihood.measure(NCP, batches, as_it_is, key, **SETTINGS | settings)[0]

    free, near, far = (measure(max_log_z_stderr=bar) for bar in (0.0, 0.1, 0.01))
    assert free == near
    assert free.keys() - far.keys() == {"nll_ncp", "gain_nats"}
    assert far.keys() - free.keys() == {"log_z_draws_missing"}
    assert far["log_z"] == free["log_z"]
    assert likelihood.refusal(free, 0.0) == likelihood.refusal(near, 0.1) == ""
    line = likelihood.refusal(far, 0.01)
    assert "config" not in line
    assert "(config.evaluate.num_log" in likelihood.refusal(
        far, 0.01, "config.evaluate."
    )
    for part in (
        f"{free['log_z'].stderr:.3g} nats after 1,000 draws",
        "max_log_z_stderr is 0.01",
        f"about {far['log_z_draws_missing'].value:,.0f} more draws",
    ):
        assert part in line
    # As many draws as it says bring the error there.
    number = round(1_000 + far["log_z_draws_missing"].value)
    enough = measure(num_log_z_draws=number, max_log_z_stderr=0.01 * 1.15)
    assert "nll_ncp" in enough
    assert f"num_log_z_draws={number}" in line


def test_log_z_of_few_effective_draws_has_no_interval(x, key):
    """The standard error of 1,000 such draws was several times too small."""
    far = tilted(VAE, np.array([2.5, 0.0], np.float32))  # an ESS of about 2 in 1,000
    batches = list(datasets.padded_batches(np.asarray(x[:20]), 20))
    refused, _ = likelihood.measure(far, batches, as_it_is, key, **SETTINGS)
    assert not {"nll_ncp", "gain_nats"} & refused.keys()
    assert refused["log_z"].stderr is None and refused["log_z"].n == 1_000
    assert refused["log_z_draws_missing"].value > 100
    line = likelihood.refusal(refused, 0.1)
    assert "effective draws of 1,000, and below 100 no standard error" in line
    given, arrays = likelihood.measure(
        far, batches, as_it_is, key, **SETTINGS, max_log_z_stderr=0.0
    )
    for name in ("nll_ncp", "gain_nats", "log_z", "ess_fraction"):
        assert given[name].stderr is None
    assert likelihood.refusal(given, 0.0).startswith("no interval of nll_ncp")
    assert np.isnan(arrays["log_z_curve"][-1, 2])


def test_equal_weights_need_draws_too():
    """Half of MIN_ESS of them would pass any bound on the error."""
    missing = likelihood.missing_draws(WeightSums().add(np.zeros(50)), 0.1)
    assert missing.value == pytest.approx(50)
    assert likelihood.missing_draws(WeightSums().add(np.zeros(100)), 0.1) is None


def test_an_example_with_other_noise_is_the_same_example(x, key):
    """x = example + noise: errors are those of the means over an example's noise."""

    noise = 0.5

    def noisy(key, stored):
        return stored + noise * jax.random.normal(key, stored.shape)

    rows = np.asarray(x[:400])
    batches = list(datasets.padded_batches(rows, 150))
    once, often = (
        likelihood.measure(
            NCP, iter(batches), noisy, key, **SETTINGS, num_binarizations=number
        )[0]["nll_base"]
        for number in (1, 64)
    )
    assert once.n == often.n == 400
    # With q the exact posterior nll_base is -log p(x), a quadratic function of x, whose
    # mean over noise adds a constant to that of the example.
    weights = np.asarray(VAE.weights, np.float64)
    precision = np.linalg.inv(weights @ weights.T + VAE.std**2 * np.eye(3))
    shift = 0.5 * noise**2 * np.trace(precision)
    exact = -VAE.log_marginal(rows)
    assert often.stderr == pytest.approx(exact.std(ddof=1) / 20, rel=0.05)
    assert once.stderr > 1.1 * often.stderr
    variance = noise**2 * ((rows @ precision) ** 2).sum(1).mean()  # what noise does
    variance += 0.5 * noise**4 * (precision**2).sum()
    bar = 5.5 * (variance / (64 * 400)) ** 0.5
    assert often.value == pytest.approx(exact.mean() + shift, abs=bar)
    assert often.value != pytest.approx(exact.mean() + 0.9 * shift, abs=bar)


def test_one_example_has_an_unknown_error(x, key):
    estimates, _ = likelihood.measure(
        NCP,
        [(np.asarray(x[:1]), np.ones(1, bool))],
        as_it_is,
        key,
        **SETTINGS,
    )
    assert estimates["nll_ncp"].stderr is None
    assert math.isfinite(estimates["nll_ncp"].value)
