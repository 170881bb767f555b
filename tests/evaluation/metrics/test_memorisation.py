"""`metrics/memorisation.py`: copies are found, wherever in the training set."""

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import memorisation, neighbours


def pictures(n, seed):
    shape = (n, 8, 8, 1)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("at_a_time", [7, 10, 50])
@pytest.mark.parametrize("k", [1, 4])
def test_parts_of_the_training_set_give_what_the_whole_gives(monkeypatch, at_a_time, k):
    """Also where the last part, here of 2 or 3, has fewer than k."""
    monkeypatch.setattr(memorisation, "TRAINING_AT_A_TIME", at_a_time)
    train, queries = pictures(23, 0), pictures(6, 1)
    found = memorisation.nearest_pictures(queries, train, k)
    whole = neighbours.nearest(*map(neighbours.centres, (queries, train)), k)
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_allclose(found.distances, whole.distances, rtol=1e-12)


def test_copies_are_nearer_than_held_out_pictures_and_new_ones_are_not():
    train, held_out = pictures(200, 0), pictures(50, 1)
    samples = {"copies": train[150:180], "new": pictures(60, 2)}
    estimates, distances = memorisation.measure(samples, held_out, train)
    copies, new = (estimates[f"nearer_than_held_out_{name}"] for name in samples)
    assert copies.value == 1.0 and copies.n == 30
    assert abs(new.value - 0.5) < 5 * new.stderr < 0.4
    assert {name: len(d) for name, d in distances.items()} == {
        "nearest_copies": 30,
        "nearest_new": 60,
        "nearest_held_out": 50,
    }
    assert (distances["nearest_copies"] == 0).all()
    assert (distances["nearest_held_out"] > 0).all()
    (one,) = memorisation.nearest_pictures(held_out[7:8], train, 1).distances[:, 0]
    assert distances["nearest_held_out"][7] == one


def test_the_picture_has_samples_at_the_left_and_the_nearest_beside_them():
    train = pictures(30, 0)
    samples = train[[4, 11]].copy()
    samples[:, 2, 2] ^= 1  # nearly copies
    shown = memorisation.picture(samples, train, num_neighbours=3)
    assert shown.shape == (2 * 9 - 1, 8 + memorisation.GAP + 3 * 9 - 1, 1)
    gap = slice(8, 8 + memorisation.GAP)
    assert (shown[:, gap] == 255).all()
    for row, original in enumerate((4, 11)):
        at = slice(9 * row, 9 * row + 8)
        np.testing.assert_array_equal(shown[at, :8], samples[row])
        np.testing.assert_array_equal(shown[at, gap.stop :][:, :8], train[original])


def test_a_small_training_set_has_fewer_neighbours():
    shown = memorisation.picture(pictures(2, 1), pictures(3, 0), num_neighbours=7)
    assert shown.shape[1] == 8 + memorisation.GAP + 3 * 9 - 1


def test_more_neighbours_than_pictures_are_refused():
    with pytest.raises(InputError, match=r"4 neighbours .* 3 points"):
        memorisation.nearest_pictures(pictures(2, 1), pictures(3, 0), 4)
