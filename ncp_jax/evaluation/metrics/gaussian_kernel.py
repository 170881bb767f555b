"""A Gaussian kernel on principal components, its bandwidth the median distance."""

import dataclasses

import numpy as np
import scipy.linalg
import scipy.spatial.distance

from ncp_jax.errors import InputError

ROWS_AT_A_TIME = 1024  # of the kernel matrix: 82 MB for 2 x 5,000 samples
POINTS_FOR_MEDIAN = 2_000  # two million distances
NUM_COMPONENTS = 500  # axes that are kept, the paper's d


@dataclasses.dataclass(frozen=True)
class Kernel:
    """exp(-|P(x - y)|^2 / (2 bandwidth^2)), P a projection on principal axes.

    Attributes:
      mean: [D].
      axes: [D, d] orthonormal columns; None where all D dimensions are kept.
      bandwidth: of the projected points, in their unit.
      explained: share of the variance that the axes keep, in (0, 1].
    """

    mean: np.ndarray
    axes: np.ndarray | None
    bandwidth: float
    explained: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """float64 [n, d] of points [n, D]."""
        centred = np.asarray(points, np.float64) - self.mean
        return centred if self.axes is None else centred @ self.axes

    def sums(self, points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sums over the other points, a block of rows at a time.

        Args:
          points: [N, d], projected.
          weights: [N, p].

        Returns:
          K weights [N, p] and the row sums of K [N], where K [N, N] is the kernel with
          zeros on its diagonal.
        """
        squares = np.sum(points**2, 1)
        products, totals = np.empty(weights.shape), np.empty(len(points))
        for start in range(0, len(points), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            k = points[rows] @ points.T  # [rows, N], changed in place from here on
            k *= 2.0
            k -= squares[rows, None]
            k -= squares
            k /= 2 * self.bandwidth**2
            np.exp(np.minimum(k, 0.0, out=k), out=k)
            k[np.arange(len(k)), start + np.arange(len(k))] = 0.0
            products[rows], totals[rows] = k @ weights, k.sum(1)
        return products, totals


def fit(
    points: np.ndarray, *, seed: int, num_components: int = NUM_COMPONENTS
) -> Kernel:
    """Chooses axes by PCA and the bandwidth by the median distance, on `points`.

    Fit it once on all samples that are to be compared, pooled: then every comparison
    is in the same unit, and because the kernel does not know which sample a point is
    of, the permutation test stays exact.  Or on others: axes that are fitted to one of
    two samples alone find more variance in it than in the other.

    Args:
      points: [N, D].
      seed: of the choice of 2,000 points whose median distance is taken.
      num_components: axes to keep, the paper's d = 500; all D are kept, without PCA,
        where D is no larger.

    Raises:
      InputError: fewer than two points, not finite, or more than half of them equal.
    """
    check_samples(points)
    mean = points.mean(0, dtype=np.float64)
    axes, explained = None, 1.0
    if points.shape[1] > num_components:
        axes, explained = _principal_axes(points - mean, num_components)
    kernel = Kernel(mean, axes, np.nan, explained)
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(points))[:POINTS_FOR_MEDIAN]
    distances = scipy.spatial.distance.pdist(kernel.project(points[chosen]))
    bandwidth = float(np.median(distances))
    if bandwidth == 0:
        raise InputError("most samples are equal: there is no median distance")
    return dataclasses.replace(kernel, bandwidth=bandwidth)


def _principal_axes(centred: np.ndarray, num_axes: int) -> tuple[np.ndarray, float]:
    """The axes [D, d] of largest variance, and the share of the variance they keep.

    d is `num_axes`, or what N points span where that is less.  Of the scatter [D, D]
    and the products of points [N, N], which have the same spectrum, the smaller is
    decomposed.
    """
    n, size = centred.shape
    is_wide = n < size
    scatter = centred @ centred.T if is_wide else centred.T @ centred
    num_axes = min(num_axes, n - 1)
    last = [len(scatter) - num_axes, len(scatter) - 1]
    values, axes = scipy.linalg.eigh(scatter, subset_by_index=last)
    if is_wide:
        kept = values > size * np.finfo(np.float64).eps * max(values[-1], 0.0)
        values, axes = values[kept], centred.T @ (axes[:, kept] / values[kept] ** 0.5)
    return axes, float(values.sum() / max(np.trace(scatter), np.finfo(float).tiny))


def check_samples(*samples: np.ndarray, at_least: int = 2) -> None:
    """Refuses samples that are too few, of different sizes or not finite.

    Raises:
      InputError: unless all are finite [n, D] of one D, n no less than `at_least`.
    """
    shapes = [x.shape for x in samples]
    if any(len(shape) != 2 for shape in shapes) or len({s[1] for s in shapes}) != 1:
        raise InputError(
            f"samples of shapes {shapes} cannot be compared: all must be [n, D] with "
            "the same D"
        )
    if min(map(len, samples)) < at_least:
        raise InputError(
            f"{list(map(len, samples))} samples are too few: at least {at_least} of "
            "each are needed"
        )
    if not all(np.isfinite(x).all() for x in samples):
        raise InputError("samples are not finite: look for NaN in what drew them")
