"""`calibration.py`: two normals, whose shares in every bin are known."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from ncp_jax.evaluation.calibration import error_terms, reliability
from tests.statistics import assert_mean

SHIFT = 1.5  # q = N(SHIFT, 1) against p = N(0, 1)


def logits(generator, n, m=1, slope=1.0):
    """`slope` times the true log-ratio of draws from q and from p: two [n, m]."""
    z = generator.normal(size=(2, n, m)) + np.array([SHIFT, 0.0])[:, None, None]
    return slope * (SHIFT * z - SHIFT**2 / 2)


def exact(num_bins, slope):
    """Mean D and share from q in equally probable bins of the mixture of q and p."""
    z = np.linspace(-9, 9 + SHIFT, 400_001)
    q, p = scipy.stats.norm.pdf(z - SHIFT), scipy.stats.norm.pdf(z)
    mixture = (p + q) / (p + q).sum()
    bins = np.minimum((np.cumsum(mixture) * num_bins).astype(int), num_bins - 1)
    d = scipy.special.expit(slope * (SHIFT * z - SHIFT**2 / 2))
    means = (
        np.bincount(bins, mixture * value) * num_bins for value in (d, q / (p + q))
    )
    return tuple(means)


def test_the_curve_is_that_of_two_normals():
    n = 200_000
    logit_q, logit_p = logits(np.random.default_rng(0), n, slope=2.0)
    curve = reliability(logit_q[:, 0], logit_p[:, 0])
    assert curve.num_draws.sum() == 2 * n
    assert (np.abs(curve.num_draws - n / 5) <= 1).all()
    predicted, observed = exact(10, slope=2.0)
    np.testing.assert_allclose(curve.predicted, predicted, atol=0.01)
    np.testing.assert_allclose(curve.observed, observed, atol=0.01)
    assert np.abs(predicted - observed).max() > 0.05  # the two can be told apart


def test_the_interval_is_that_of_a_binomial_share():
    # One bin per value of the logit; SciPy's own exact interval is the reference.
    logit_q, logit_p = np.repeat([[1.0] * 9, [2.0] * 9], 1, axis=1)
    curve = reliability(logit_q, logit_p, num_bins=2)
    np.testing.assert_array_equal(curve.observed, [0.0, 1.0][::-1])
    mixed_q, mixed_p = np.array([1.0, 1, 1, 2, 2]), np.array([1.0, 2, 2, 2, 2])
    curve = reliability(mixed_q, mixed_p, num_bins=2)
    for i, (k, n) in enumerate([(3, 4), (2, 6)]):
        assert curve.num_draws[i] == n
        reference = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
        np.testing.assert_allclose((curve.low[i], curve.high[i]), reference)


def test_shares_of_zero_and_one_have_intervals_and_empty_bins_do_not():
    curve = reliability(np.full(5, 8.0), np.full(5, -8.0), num_bins=2)
    np.testing.assert_array_equal(curve.observed, [0.0, 1.0])
    np.testing.assert_allclose(curve.high[0], 1 - 0.025 ** (1 / 5))
    np.testing.assert_allclose(curve.low[1], 0.025 ** (1 / 5))
    assert curve.low[0] == 0.0 and curve.high[1] == 1.0
    curve = reliability(np.zeros(5), np.zeros(5))  # before training
    assert curve.num_draws.tolist() == [0] * 9 + [10]
    assert np.isnan(curve.observed[:9]).all() and curve.observed[9] == 0.5


@pytest.mark.parametrize("slope", [1.0, 2.0, 0.4])
def test_the_error_is_zero_if_calibrated_and_else_what_integration_gives(slope):
    n, m = 40_000, 3
    terms = error_terms(*logits(np.random.default_rng(1), n, m, slope))
    predicted, observed = exact(10, slope)
    expected = np.abs(predicted - observed).mean()
    assert terms.shape == (n // 2,)
    std = 0.5 / m**0.5  # of a label around its D, of 2 m draws: at most 0.5 / (2 m)^0.5
    assert_mean(terms, expected, std, bias=0.001)
    if slope == 1.0:
        assert expected < 1e-4
    else:
        with pytest.raises(AssertionError):
            assert_mean(terms, 0.8 * expected, std, bias=0.001)


def test_few_examples_do_not_look_miscalibrated_and_their_error_is_honest():
    """The plain estimate |observed - predicted| is far from 0 by chance alone."""
    generator, found, plain = np.random.default_rng(2), [], []
    for _ in range(400):
        pair = logits(generator, 100)
        terms = error_terms(*pair)
        found.append((terms.mean(), terms.std(ddof=1) / 50**0.5))
        curve = reliability(pair[0][:, 0], pair[1][:, 0])
        plain.append(np.abs(curve.observed - curve.predicted).mean())
    value, stderr = np.array(found).T
    assert_mean(value, 0.0, std=0.05)
    assert np.mean(plain) > 0.06
    # 400 ratios of standard deviation 1 spread by 3.5 %: six times that, and its bias.
    assert 0.75 < (value / stderr).std() < 1.25


def test_one_example_has_no_other_half():
    assert error_terms(np.ones((1, 2)), np.ones((1, 2))).tolist() == [0.0]
