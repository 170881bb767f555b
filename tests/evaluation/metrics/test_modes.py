"""`metrics/modes.py` on points whose place is known."""

import numpy as np
import pytest

from ncp_jax.evaluation.metrics import modes
from tests.statistics import assert_mean

CENTRES = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def test_points_are_counted_where_they_are():
    points = CENTRES[[0, 0, 1, 1]] + [[0, 0], [0.39, 0], [0, 0.41], [1.5, 0]]
    share, visited = modes.on_modes(points, CENTRES, std=0.1)
    assert share == (0.5, pytest.approx(0.25), 4, "fraction")
    assert visited == (1.0, 0.0, 4, "modes")  # a mode with points off it is not visited


def test_the_distance_is_euclidean_and_in_deviations():
    points = np.array([[0.3, 0.3]])  # 0.424 away
    assert modes.on_modes(points, CENTRES, 0.1)[0].value == 1.0
    assert modes.on_modes(points, CENTRES, 0.1, num_std=4.3)[0].value == 0.0


def test_draws_from_the_mixture_are_off_as_often_as_they_should_be():
    """In the plane P(|z| > c) = exp(-c^2 / 2): 13.5 % at two deviations."""
    generator = np.random.default_rng(1)
    points = CENTRES[generator.integers(3, size=100_000)]
    points = points + 0.1 * generator.standard_normal(points.shape)
    share, visited = modes.on_modes(points, CENTRES, std=0.1, num_std=2.0)
    expected = np.exp(-2.0)
    assert visited.value == 3.0
    assert share.stderr == pytest.approx(
        np.sqrt(expected * (1 - expected) / 1e5), rel=0.05
    )
    is_off = np.arange(share.n) < round(share.value * share.n)
    assert_mean(is_off, expected, std=0.35)
    with pytest.raises(AssertionError):
        assert_mean(is_off, 1.1 * expected, std=0.35)
