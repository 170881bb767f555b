"""Kernel distances of two samples: KID, and the MMD with its permutation test."""

import dataclasses

import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics.gaussian_kernel import Kernel, check_samples

UNIT = "squared MMD"


@dataclasses.dataclass(frozen=True)
class KIDResult:
    """Of `kid`.

    Attributes:
      distance: the mean over subsets, with its standard error.
      subset_std: standard deviation of a subset's value, which others print as +-.
      num_subsets: how many there are.
      subset_size: samples of either kind in each.
    """

    distance: Estimate
    subset_std: float
    num_subsets: int
    subset_size: int


def kid(
    x: np.ndarray, y: np.ndarray, *, seed: int, subset_size: int, max_subsets: int = 100
) -> KIDResult:
    """The squared MMD of features under the kernel (x . y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs", Sec. 4.  Unbiased, so it may be negative.
    Subsets are disjoint, where others draw them anew from all samples: the mean is
    that of the same quantity and the spread between subsets gives its error.

    Args:
      x: [n, D] features.
      y: [m, D] features of the reference.
      seed: of the division into subsets.
      subset_size: samples of either kind per subset; usually 1,000.
      max_subsets: no more than these are used.

    Raises:
      InputError: fewer than two subsets, features of different sizes or not finite.
    """
    check_samples(x, y)
    num_subsets = min(len(x) // subset_size, len(y) // subset_size, max_subsets)
    if num_subsets < 2 or subset_size < 2:
        raise InputError(
            f"KID needs 2 subsets of at least 2 samples: {len(x)} and {len(y)} samples "
            f"do not fill two of {subset_size}; use more samples or smaller subsets"
        )
    generator = np.random.default_rng(seed)
    rows_x, rows_y = (
        generator.permutation(len(z))[: num_subsets * subset_size] for z in (x, y)
    )
    values = np.array(
        [
            _cubic_mmd(np.asarray(x[i], np.float64), np.asarray(y[j], np.float64))
            for i, j in zip(
                rows_x.reshape(num_subsets, -1),
                rows_y.reshape(num_subsets, -1),
                strict=True,
            )
        ]
    )
    std = float(values.std(ddof=1))
    used = num_subsets * subset_size
    distance = Estimate(float(values.mean()), std / num_subsets**0.5, used, UNIT)
    return KIDResult(distance, std, num_subsets, subset_size)


def _cubic_mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, size = x.shape
    kernels = [a @ b.T / size + 1 for a, b in ((x, x), (y, y), (x, y))]
    within_x, within_y, between = (k * k * k for k in kernels)  # ** is ten times slower
    within = within_x.sum() - np.trace(within_x) + within_y.sum() - np.trace(within_y)
    return float(within / (n * (n - 1)) - 2 * between.mean())


@dataclasses.dataclass(frozen=True)
class MMDResult:
    """Of `mmd`.

    Attributes:
      distance: the squared MMD, unbiased, with its standard error.
      p_value: of the hypothesis that both samples are of one distribution.
      null_interval: 2.5 and 97.5 % quantiles of the value under that hypothesis.
      kernel: that was used; it holds the bandwidth.
    """

    distance: Estimate
    p_value: float
    null_interval: tuple[float, float]
    kernel: Kernel


def mmd(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, *, seed: int, num_permutations: int
) -> MMDResult:
    """The squared MMD of two samples under a Gaussian kernel, and its permutation test.

    Gretton et al., "A Kernel Two-Sample Test", Eq. (3): a U-statistic, so it is
    unbiased and may be negative.  The standard error is the jackknife's, too wide by
    up to a half where the two distributions are equal.  The p-value,
    (1 + number of permuted values no smaller) / (1 + number of permutations), is exact
    where `kernel` was fitted on the pooled samples or on others.

    Args:
      x: [n, D].
      y: [m, D].
      kernel: of `gaussian_kernel.fit`.
      seed: of the permutations.
      num_permutations: how many; the p-value is a multiple of 1 / (1 + them).

    Raises:
      InputError: fewer than three samples, of different sizes or not finite.
    """
    check_samples(x, y, at_least=3)
    n, m = len(x), len(y)
    points = kernel.project(np.concatenate([x, y]))
    is_x = np.zeros((n + m, 1 + num_permutations))
    is_x[:n] = 1.0
    is_x[:, 1:] = np.random.default_rng(seed).permuted(is_x[:, 1:], axis=0)
    sums_x, sums = kernel.sums(points, is_x)
    with_x, with_all = np.sum(is_x * sums_x, 0), sums @ is_x  # [1 + permutations]
    values = _statistic(
        with_x, with_all - with_x, sums.sum() - 2 * with_all + with_x, n, m
    )
    stderr = _jackknife(sums_x[:, 0], sums - sums_x[:, 0], n)
    null = values[1:]
    low, high = np.quantile(null, [0.025, 0.975])
    return MMDResult(
        Estimate(float(values[0]), stderr, min(n, m), UNIT),
        float((1 + np.sum(null >= values[0])) / (1 + num_permutations)),
        (float(low), float(high)),
        kernel,
    )


def _statistic(
    within_x: np.ndarray, between: np.ndarray, within_y: np.ndarray, n: int, m: int
) -> np.ndarray:
    """The U-statistic from sums of the kernel over ordered pairs of distinct points."""
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def _jackknife(with_x: np.ndarray, with_y: np.ndarray, n: int) -> float:
    """The standard error from each point's kernel sums with the others: [n + m]."""
    m = len(with_x) - n
    within_x, within_y = with_x[:n].sum(), with_y[n:].sum()
    between = with_y[:n].sum()
    left_out = (
        _statistic(within_x - 2 * with_x[:n], between - with_y[:n], within_y, n - 1, m),
        _statistic(within_x, between - with_x[n:], within_y - 2 * with_y[n:], n, m - 1),
    )
    return float(np.sqrt(sum((len(v) - 1) * v.var() for v in left_out)))
