"""`metrics/gaussian_kernel.py` against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import scipy.spatial.distance
import sklearn.decomposition

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import gaussian_kernel
from ncp_jax.evaluation.metrics.gaussian_kernel import Kernel


def draws(n, size, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, size)) * np.linspace(0.1, 3.0, size) + 5.0


def test_the_axes_are_those_of_largest_variance():
    points = draws(300, 12)
    kernel = gaussian_kernel.fit(points, seed=0, num_components=4)
    pca = sklearn.decomposition.PCA(4, svd_solver="full").fit(points)
    assert kernel.axes.shape == (12, 4)
    np.testing.assert_allclose(  # the same plane: axes have no sign and no order
        kernel.axes @ kernel.axes.T, pca.components_.T @ pca.components_, atol=1e-10
    )
    assert kernel.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    projected = kernel.project(points)
    np.testing.assert_allclose(projected.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(
        np.sort(projected.var(0, ddof=1)), np.sort(pca.explained_variance_)
    )


@pytest.mark.parametrize("num_components", [4, 30])
def test_fewer_points_than_dimensions_give_the_same_axes(num_components):
    """By the products of points; more axes than they span there are none."""
    points = draws(9, 40)
    kernel = gaussian_kernel.fit(points, seed=0, num_components=num_components)
    pca = sklearn.decomposition.PCA(min(num_components, 8), svd_solver="full")
    pca.fit(points)
    np.testing.assert_allclose(
        kernel.axes @ kernel.axes.T, pca.components_.T @ pca.components_, atol=1e-10
    )
    assert kernel.explained == pytest.approx(pca.explained_variance_ratio_.sum())


def test_few_dimensions_are_all_kept():
    points = draws(50, 4)
    kernel = gaussian_kernel.fit(points, seed=0, num_components=4)
    assert kernel.axes is None and kernel.explained == 1.0
    np.testing.assert_allclose(kernel.project(points), points - points.mean(0))


def test_the_bandwidth_is_the_median_distance(monkeypatch):
    points = draws(81, 3)
    exact = np.median(scipy.spatial.distance.pdist(points))
    kernel = gaussian_kernel.fit(points, seed=0)
    assert kernel.bandwidth == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(gaussian_kernel, "POINTS_FOR_MEDIAN", 20)
    few, again, others = (
        gaussian_kernel.fit(points, seed=seed).bandwidth for seed in (0, 0, 1)
    )
    assert few == again != others
    assert few == pytest.approx(exact, rel=0.5) and few != exact


def test_float32_points_give_float64_projections():
    kernel = gaussian_kernel.fit(draws(30, 3).astype(np.float32), seed=0)
    assert kernel.project(draws(30, 3).astype(np.float32)).dtype == np.float64


def test_the_sums_are_those_of_the_matrix_without_its_diagonal(monkeypatch):
    monkeypatch.setattr(gaussian_kernel, "ROWS_AT_A_TIME", 7)  # and a last block of 2
    points, weights = draws(23, 3), np.random.default_rng(1).random((23, 5))
    squares = scipy.spatial.distance.cdist(points, points, "sqeuclidean")
    matrix = np.exp(-squares / (2 * 1.3**2)) - np.eye(23)
    products, totals = Kernel(np.zeros(3), None, 1.3, 1.0).sums(points, weights)
    np.testing.assert_allclose(products, matrix @ weights, rtol=1e-10)
    np.testing.assert_allclose(totals, matrix.sum(1), rtol=1e-10)


def test_points_without_a_distance_are_refused():
    with pytest.raises(InputError, match="most samples are equal"):
        gaussian_kernel.fit(np.ones((10, 2)), seed=0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([np.ones((5, 2)), np.ones((5, 3))], r"\(5, 2\), \(5, 3\).* the same D"),
        ([np.ones(5), np.ones(5)], r"\[n, D\]"),
        ([np.ones((5, 2)), np.ones((1, 2))], r"\[5, 1\] samples .* at least 2"),
        ([np.ones((5, 2)), np.full((5, 2), np.nan)], "not finite: look for NaN"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(samples, message):
    with pytest.raises(InputError, match=message):
        gaussian_kernel.check_samples(*samples)
