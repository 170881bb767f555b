"""`metrics/two_sample.py` against loops over pairs, closed forms and repetition."""

import math

import numpy as np
import pytest
import scipy.stats

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import gaussian_kernel, two_sample
from ncp_jax.evaluation.metrics.gaussian_kernel import Kernel
from tests.statistics import FALSE_FAIL_RATE, assert_mean


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def kernel(size, bandwidth):
    return Kernel(np.zeros(size), None, bandwidth, 1.0)


def by_pairs(x, y, k):
    """The unbiased squared MMD, one pair at a time."""

    def within(z):
        return [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]

    between = [k(a, b) for a in x for b in y]
    return np.mean(within(x)) + np.mean(within(y)) - 2 * np.mean(between)


def gaussian(a, b, bandwidth=1.5):
    return math.exp(-np.sum((a - b) ** 2) / (2 * bandwidth**2))


def cubic(a, b):
    return (a @ b / len(a) + 1) ** 3


def test_mmd_is_the_mean_over_pairs():
    x, y = normal(0, 5, 2), normal(1, 7, 2) + 1.0
    result = two_sample.mmd(x, y, kernel(2, 1.5), seed=0, num_permutations=1)
    expected = by_pairs(x, y, gaussian)
    assert result.distance.value == pytest.approx(expected, rel=1e-12)
    assert result.distance.n == 5


def test_mmd_projects_first():
    x, y = normal(0, 5, 2), normal(1, 7, 2) + 1.0
    axes = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]).T
    padded = [np.insert(z, [1, 2], 9.0, axis=1) + 3.0 for z in (x, y)]
    projecting = Kernel(np.full(4, 3.0), axes, 1.5, 0.9)
    result = two_sample.mmd(*padded, projecting, seed=0, num_permutations=1)
    assert result.distance.value == pytest.approx(by_pairs(x, y, gaussian), rel=1e-12)


def test_the_permuted_values_are_those_of_permuted_samples():
    x, y = normal(0, 4, 2), normal(1, 6, 2) + 1.0
    both = np.concatenate([x, y])
    result = two_sample.mmd(x, y, kernel(2, 1.5), seed=3, num_permutations=2)
    is_x = np.random.default_rng(3).permuted(
        np.repeat([1.0, 0.0], [4, 6])[:, None].repeat(2, 1), axis=0
    )
    values = [by_pairs(both[c == 1], both[c == 0], gaussian) for c in is_x.T]
    np.testing.assert_allclose(
        result.null_interval, np.quantile(values, [0.025, 0.975]), rtol=1e-10
    )


def test_the_standard_error_is_the_jackknife():
    x, y = normal(0, 6, 2), normal(1, 9, 2) + 1.0
    result = two_sample.mmd(x, y, kernel(2, 1.5), seed=0, num_permutations=1)
    without_x = [by_pairs(np.delete(x, i, 0), y, gaussian) for i in range(6)]
    without_y = [by_pairs(x, np.delete(y, i, 0), gaussian) for i in range(9)]
    variance = 5 * np.var(without_x) + 8 * np.var(without_y)
    assert result.distance.stderr == pytest.approx(math.sqrt(variance), rel=1e-10)


SHIFT, SIZE, BANDWIDTH = 1.0, 3, 1.5


def shifted_mmd(shift):
    """Of N(0, I) and N(shift, I): both kernels are integrals of Gaussians."""
    wide = BANDWIDTH**2 + 2
    scale = (BANDWIDTH**2 / wide) ** (SIZE / 2)
    return 2 * scale * (1 - math.exp(-SIZE * shift**2 / (2 * wide)))


def test_mmd_of_shifted_gaussians_is_the_closed_form():
    results = [
        two_sample.mmd(
            normal((seed, 0), 100, SIZE),
            normal((seed, 1), 80, SIZE) + SHIFT,
            kernel(SIZE, BANDWIDTH),
            seed=seed,
            num_permutations=19,
        )
        for seed in range(600)
    ]
    values = [r.distance.value for r in results]
    assert_mean(values, shifted_mmd(SHIFT), std=0.05)
    with pytest.raises(AssertionError):
        assert_mean(values, 0.9 * shifted_mmd(SHIFT), std=0.05)
    assert np.std(values) < 0.05
    claimed = np.mean([r.distance.stderr for r in results])
    assert claimed == pytest.approx(np.std(values), rel=0.2)
    assert np.mean([r.p_value == 0.05 for r in results]) > 0.9  # it sees the shift


def test_the_permutation_test_is_exact_with_the_kernel_fitted_on_both():
    """Under the hypothesis p <= 0.2 in a fifth of all experiments."""
    num = 500
    rejected = 0
    for seed in range(num):
        x, y = normal((seed, 2), 12, 6), normal((seed, 3), 20, 6)
        fitted = gaussian_kernel.fit(
            np.concatenate([x, y]), seed=seed, num_components=3
        )
        result = two_sample.mmd(x, y, fitted, seed=seed, num_permutations=9)
        rejected += result.p_value <= 0.2
        assert result.kernel is fitted
    interval = scipy.stats.binom(num, 0.2).interval(1 - FALSE_FAIL_RATE)
    assert interval[0] <= rejected <= interval[1]
    assert not interval[0] <= 0.5 * 0.2 * num <= interval[1]


def test_equal_samples_are_no_distance_apart_but_for_the_missing_diagonal():
    """Then both kinds of sums agree: 2 (mean over pairs - mean over all) < 0."""
    x = normal(0, 50, 2)
    result = two_sample.mmd(x, x, kernel(2, 1.0), seed=0, num_permutations=99)
    assert -2 / 50 < result.distance.value < 0
    assert result.p_value > 0.5


def test_kid_is_the_mean_over_disjoint_subsets():
    x, y = normal(0, 7, 4), normal(1, 10, 4) + 0.3
    result = two_sample.kid(x, y, seed=5, subset_size=3)
    generator = np.random.default_rng(5)
    rows_x, rows_y = generator.permutation(7), generator.permutation(10)
    values = [
        by_pairs(x[rows_x[i : i + 3]], y[rows_y[i : i + 3]], cubic) for i in (0, 3)
    ]
    assert result.distance.value == pytest.approx(np.mean(values), rel=1e-12)
    std = np.std(values, ddof=1)
    assert result.subset_std == pytest.approx(std, rel=1e-10)
    assert result.distance.stderr == pytest.approx(std / math.sqrt(2), rel=1e-10)
    assert (result.distance.n, result.num_subsets, result.subset_size) == (6, 2, 3)


def subsets_of_kid(seed, shift, std):
    """KID from 1,200 subsets of 50 draws of N(0, std^2) and N(shift, std^2)."""
    x, y = std * normal((seed, 0), 60_000, 1), std * normal((seed, 1), 60_000, 1)
    return two_sample.kid(x, y + shift, seed=0, subset_size=50, max_subsets=1_200)


def test_kid_of_shifted_gaussians_is_the_closed_form():
    """In one dimension: 3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2, raw moments."""
    shift, std = 0.5, 0.3
    result = subsets_of_kid(0, shift, std)
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift * std**2) ** 2
    of_subset = 0.3  # standard deviation
    bar = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2) * of_subset / math.sqrt(1_200)
    assert abs(result.distance.value - expected) < bar < 0.1 * expected / 2
    assert result.num_subsets == 1_200
    assert 0.5 * of_subset < result.subset_std < of_subset


def test_kid_is_zero_on_average_for_equal_distributions_only():
    """Unlike a mean over all pairs, which would be E[k(x, x) - k(x, x')] / 25."""
    equal, shifted = (subsets_of_kid(1, shift, 0.3) for shift in (0.0, 0.15))
    of_subset = 0.02
    bar = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2) * of_subset / math.sqrt(1_200)
    assert abs(equal.distance.value) < bar < 3 * 0.3**2 / 25
    assert equal.subset_std < of_subset
    assert shifted.distance.value > 2 * bar


def test_either_sample_may_be_the_smaller_one():
    x, y = normal(0, 7, 4), normal(1, 10, 4)
    assert two_sample.kid(y, x, seed=0, subset_size=3).num_subsets == 2
    result = two_sample.mmd(y, x, kernel(4, 1.5), seed=0, num_permutations=1)
    turned = two_sample.mmd(x, y, kernel(4, 1.5), seed=0, num_permutations=1)
    assert result.distance[:3] == pytest.approx(turned.distance[:3], rel=1e-10)


@pytest.mark.parametrize(("n", "size"), [(19, 10), (19, 1)])
def test_kid_needs_two_subsets(n, size):
    with pytest.raises(InputError, match=r"KID needs 2 subsets .* 19 and 40 samples"):
        two_sample.kid(normal(0, n, 3), normal(1, 40, 3), seed=0, subset_size=size)


def test_what_cannot_be_compared_is_refused():
    x, bad = normal(0, 5, 3), normal(0, 5, 2)
    with pytest.raises(InputError, match="the same D"):
        two_sample.kid(x, bad, seed=0, subset_size=2)
    with pytest.raises(InputError, match="the same D"):
        two_sample.mmd(x, bad, kernel(3, 1.0), seed=0, num_permutations=1)
    with pytest.raises(InputError, match="at least 3"):
        two_sample.mmd(x, x[:2], kernel(3, 1.0), seed=0, num_permutations=1)
