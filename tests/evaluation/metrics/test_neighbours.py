"""`metrics/neighbours.py` against a KD-tree, Pillow and counts of pairs."""

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import neighbours
from tests.statistics import FALSE_FAIL_RATE


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "crop"),
    [(64, 64, (40, 40)), (32, 32, (20, 20)), (28, 28, (18, 18)), (1, 2, (1, 1))],
)
def test_pictures_up_to_64_are_only_cropped(height, width, crop):
    images = np.random.default_rng(0).integers(256, size=(3, height, width, 2))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    expected = images[:, top : top + crop[0], left : left + crop[1]] / 255
    found = neighbours.centres(images.astype(np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.reshape(3, -1), rtol=1e-6)
    floats = neighbours.centres((images / 255).astype(np.float32))
    np.testing.assert_allclose(found, floats, rtol=1e-6)


def test_larger_pictures_are_resized_to_64():
    images = np.random.default_rng(0).integers(
        256, size=(3, 128, 160, 1), dtype=np.uint8
    )
    found = neighbours.centres(images, batch_size=2).reshape(3, 40, 40, 1)
    for image, centre in zip(images, found, strict=True):
        small = Image.fromarray(image[..., 0]).resize(
            (64, 64), Image.Resampling.BILINEAR
        )
        expected = np.asarray(small)[12:52, 12:52] / 255
        # Pillow rounds to bytes twice.
        np.testing.assert_allclose(centre[..., 0], expected, atol=1.1 / 255)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_it_finds_what_a_tree_finds(k, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES_AT_A_TIME", 7)
    monkeypatch.setattr(neighbours, "POINTS_AT_A_TIME", 8)  # fewer than k, at the end
    queries, points = normal(0, 30, 5), normal(1, 83, 5) + 100.0
    found = neighbours.nearest(queries + 100.0, points, k)
    distances, indices = scipy.spatial.KDTree(points.astype(np.float64)).query(
        (queries + 100.0).astype(np.float64), range(1, k + 1)
    )
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


def test_a_copy_is_at_no_distance():
    points = normal(0, 50, 300) + 3.0
    found = neighbours.nearest(points[[7, 49]], points)
    np.testing.assert_array_equal(found.indices, [[7], [49]])
    np.testing.assert_array_equal(found.distances, [[0.0], [0.0]])


def test_as_many_neighbours_as_points_are_all_of_them():
    found = neighbours.nearest(normal(0, 4, 2), normal(1, 6, 2), 6)
    np.testing.assert_array_equal(np.sort(found.indices), [range(6)] * 4)
    assert (np.diff(found.distances) > 0).all()


def test_what_has_no_neighbours_is_refused():
    points = normal(0, 4, 2)
    with pytest.raises(InputError, match=r"\(4, 3\) have no neighbours .* the same D"):
        neighbours.nearest(normal(0, 4, 3), points)
    with pytest.raises(InputError, match="5 neighbours are asked for, there are 4"):
        neighbours.nearest(points, points, 5)
    for bad in ((points * np.nan, points), (points, points * np.nan)):
        with pytest.raises(InputError, match="not finite"):
            neighbours.nearest(*bad)


def test_the_probability_counts_pairs_and_halves_ties():
    samples, held_out = np.array([0.0, 1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])
    wins = (samples[:, None] < held_out) + 0.5 * (samples[:, None] == held_out)
    of_sample, of_real = wins.mean(1), wins.mean(0)
    variance = of_sample.var(ddof=1) / 4 + of_real.var(ddof=1) / 3
    found = neighbours.nearer_than_held_out(samples, held_out)
    assert found == (
        pytest.approx(wins.mean()),
        pytest.approx(np.sqrt(variance)),
        4,
        "probability",
    )


def check(share_copied, seed, n=400):
    """The whole check on points some of which, at random, are training points."""
    train, held_out, samples = (normal((seed, i), n, 3) for i in range(3))
    is_copy = np.random.default_rng((seed, 3)).random(n) < share_copied
    samples[is_copy] = train[is_copy]
    distances = (
        neighbours.nearest(x, train).distances[:, 0] for x in (samples, held_out)
    )
    return neighbours.nearer_than_held_out(*distances)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_half_the_share_of_copies_is_added_to_a_half(share):
    """A copy is nearer than every new point, any other sample than half of them."""
    num = 200
    found = [check(share, seed) for seed in range(num)]
    values = np.array([e.value for e in found])
    std = np.sqrt((1 / 4 + 1 / 12) / 400)  # an upper bound: variances of [0, 1] and U
    bar = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2) * std / np.sqrt(num)
    assert abs(values.mean() - (0.5 + share / 2)) < bar
    assert abs(values.mean() - 1.1 * (0.5 + share / 2)) > bar
    assert np.mean([e.stderr for e in found]) == pytest.approx(values.std(), rel=0.3)


def test_too_few_distances_are_refused():
    with pytest.raises(InputError, match="got 1 of samples and 3 of held-out"):
        neighbours.nearer_than_held_out(np.ones(1), np.ones(3))
    with pytest.raises(InputError, match="two finite distances"):
        neighbours.nearer_than_held_out(np.array([1.0, np.nan]), np.ones(3))
