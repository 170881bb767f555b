"""`picture_classifier.py`: what it learns counts only where it was not learnt.

Its bounds on known divergences are tested in `test_audit.py`.
"""

import math

import numpy as np

from ncp_jax.evaluation import picture_classifier


def test_what_is_learnt_by_heart_counts_for_nothing(key):
    """Noise can be told apart picture by picture, but not where it is held out.

    The mean of 40 pairs by logits of deviation s is about -s^2 / 16, give or take
    s / 18: six of these below 0.3 for every s.
    """
    noise = np.random.default_rng(0).integers(0, 256, (2, 200, 12, 12, 1), np.uint8)
    estimate, _ = picture_classifier.jsd_bound(key, *noise, num_steps=100)
    assert estimate.n == 40
    assert estimate.value < 0.3
    on_both_sides = np.tile(noise[:, :20], (1, 10, 1, 1, 1))
    leaked, _ = picture_classifier.jsd_bound(key, *on_both_sides, num_steps=100)
    assert leaked.value > 0.5  # of log 2 = 0.69


def test_pictures_of_different_brightness_are_told_apart(key):
    """Through the convolutions: all of log 2, from weights of another call, too."""
    dark = np.random.default_rng(0).integers(0, 128, (200, 12, 12, 1), np.uint8)
    bright = (dark + 100).astype(np.uint8)
    estimate, weights = picture_classifier.jsd_bound(key, dark, bright, num_steps=100)
    assert 0.6 < estimate.value <= math.log(2)
    again, _ = picture_classifier.jsd_bound(
        key, dark, bright[:150], num_steps=20, start=weights
    )
    assert again.value >= estimate.value - 0.02
    assert (estimate.n, again.n) == (40, 30)


def test_the_parts_are_disjoint_and_of_the_same_rows(key):
    del key
    parts = picture_classifier.parts_of(np.arange(100))
    assert [len(part) for part in parts] == [70, 10, 20]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(100))
