"""`metrics/frechet.py` against closed forms, SciPy's matrix root and repetition."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import frechet
from ncp_jax.evaluation.metrics.moments import Moments
from tests.statistics import FALSE_FAIL_RATE

MANY = 10**9  # samples of a population whose moments are given


def population(mean, covariance):
    mean = np.asarray(mean, np.float64)
    return Moments(MANY, mean, np.asarray(covariance, np.float64) * (MANY - 1))


def random_moments(seed, size=12, rank=None):
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((size, rank or 2 * size))
    return population(generator.standard_normal(size), factor @ factor.T)


def by_matrix_root(a, b):
    """The definition, with a square root of the product itself."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    spread = np.trace(a.covariance + b.covariance - 2 * root.real)
    return float(np.sum((a.mean - b.mean) ** 2) + spread)


def test_covariances_that_commute_have_a_closed_form():
    stds_a, stds_b = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 2.0, 0.0, 0.0])
    axes = scipy.stats.ortho_group.rvs(4, random_state=0)
    a, b = (
        population(mean, axes * stds**2 @ axes.T)
        for mean, stds in ((np.zeros(4), stds_a), (np.full(4, 0.5), stds_b))
    )
    expected = 4 * 0.25 + np.sum((stds_a - stds_b) ** 2)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_matrix_root(seed):
    a, b = random_moments(seed), random_moments(seed + 100)
    value = frechet.distance(a, b)
    assert value == pytest.approx(by_matrix_root(a, b), rel=1e-9)
    assert value == pytest.approx(frechet.distance(b, a), rel=1e-12)


def test_singular_covariances_of_disjoint_spans_do_not_overlap():
    """Then S_a S_b = 0 and the distance is the sum of both traces."""
    a = population(np.zeros(5), np.diag([1.0, 2.0, 0.0, 0.0, 0.0]))
    b = population(np.zeros(5), np.diag([0.0, 0.0, 0.0, 3.0, 0.0]))
    assert frechet.distance(a, b) == pytest.approx(6.0, rel=1e-14)


@pytest.mark.parametrize("rank", [1, 5, 24])
def test_moments_are_at_no_distance_from_themselves(rank):
    a = random_moments(3, rank=rank)
    assert 0 <= frechet.distance(a, a) < 1e-10 * np.trace(a.covariance)


def test_fewer_samples_than_features_have_a_distance():
    """Points on a line in many dimensions: the closed form of one dimension."""
    line = np.random.default_rng(0).standard_normal(64)
    points = np.random.default_rng(1).standard_normal((10, 1))
    a, b = Moments.of(points * line), Moments.of((1 + 3 * points) * line)
    mean, std = points.mean(), points.std(ddof=1)
    expected = ((1 + 2 * mean) ** 2 + (2 * std) ** 2) * np.sum(line**2)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_the_sample_distance_uses_unbiased_covariances():
    x = np.array([[0.0], [2.0]])  # variance 2 by n - 1, 1 by n
    assert frechet.distance(Moments.of(x), population([1.0], [[0.0]])) == pytest.approx(
        2.0, rel=1e-14
    )


def draws(seed, n, size=6):
    stds = np.linspace(0.5, 2.0, size)
    return np.random.default_rng(seed).standard_normal((n, size)) * stds


# Not commuting with the draws' covariance, nor at their mean.
TARGET = population(np.full(6, 0.3), 0.7 * np.eye(6) + 0.4)


def test_the_standard_error_is_the_bootstraps():
    features = draws(0, 2_000)
    estimate = frechet.estimate(features, TARGET)
    generator = np.random.default_rng(1)
    resampled = [
        frechet.distance(
            Moments.of(features[generator.integers(2_000, size=2_000)]), TARGET
        )
        for _ in range(300)
    ]
    # A standard deviation from 300 values is within 20 % but once in 10^6.
    assert estimate.stderr == pytest.approx(np.std(resampled), rel=0.2)


def test_the_standard_error_is_the_jackknifes_on_skewed_features():
    """Then mean and covariance err together, and their signs count."""
    features = np.random.default_rng(0).exponential(size=(300, 3)) * [1.0, 2.0, 0.5]
    target = population([2.0, 1.0, 0.0], 0.7 * np.eye(3) + 0.4)
    left_out = [
        frechet.distance(Moments.of(np.delete(features, i, 0)), target)
        for i in range(300)
    ]
    expected = math.sqrt(299 * np.var(left_out))
    estimate = frechet.estimate(features, target)
    assert estimate.stderr == pytest.approx(expected, rel=0.03)


def test_the_standard_error_is_that_of_repeated_experiments():
    num = 400
    found = [frechet.estimate(draws(seed, 500), TARGET) for seed in range(num)]
    spread = np.var([e.value for e in found]) * num
    claimed = np.mean([e.stderr**2 for e in found])
    low, high = scipy.stats.chi2.ppf([FALSE_FAIL_RATE, 1 - FALSE_FAIL_RATE], num - 1)
    assert low < spread / claimed < high
    for wrong in (2.0, 0.5):  # errors of a factor of two in the variance are seen
        assert not low < spread / (wrong * claimed) < high


def test_the_references_own_error_is_added_on_request():
    features, others = draws(0, 400), 1.5 * draws(1, 800) + 0.2
    reference = Moments.of(others)
    fixed = frechet.estimate(features, reference)
    both = frechet.estimate(features, reference, others)
    turned = frechet.estimate(others, Moments.of(features))
    assert both.value == fixed.value == pytest.approx(turned.value, rel=1e-12)
    expected = math.hypot(fixed.stderr, turned.stderr)
    assert both.stderr == pytest.approx(expected, rel=1e-9)


def test_an_estimate_states_its_count_and_needs_more_samples_than_features():
    assert frechet.estimate(draws(0, 7), TARGET).n == 7
    with pytest.raises(InputError, match=r"6 samples .* 6 features.*at least 7"):
        frechet.estimate(draws(0, 6), TARGET)
    with pytest.raises(InputError, match=r"6 samples .* 6 features"):
        frechet.estimate(draws(0, 7), Moments.of(draws(0, 6)))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="size 6 and 5 cannot be compared"):
        frechet.distance(TARGET, population(np.zeros(5), np.eye(5)))
    with pytest.raises(InputError, match="at least 2 samples, there are 1"):
        frechet.distance(Moments.of(draws(0, 1)), TARGET)
    with pytest.raises(InputError, match="not finite"):
        frechet.estimate(np.full((10, 6), np.nan), TARGET)
