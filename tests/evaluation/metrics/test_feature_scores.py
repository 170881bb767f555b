"""`metrics/feature_scores.py` on a network whose features are known."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import feature_scores, frechet
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs
from ncp_jax.evaluation.metrics.feature_scores import Reference
from ncp_jax.evaluation.metrics.moments import Moments
from ncp_jax.evaluation.metrics.two_sample import kid


class Sums(nn.Module):
    @nn.compact
    def __call__(self, images):
        return Outputs(jnp.sum(images, (1, 2)), jnp.mean(images, (1, 2, 3))[:, None])


NET = FeatureNet("FD-Sums", Sums(), {}, "abc", (4, 4, 3))


def pictures(n, seed=0):
    shape = (n, 4, 4, 3)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def reference(tmp_path, images, net=NET, size=7, num_for_kid=20):
    """The reference, and how often the pictures were gone through."""
    calls = []

    def make_batches():
        calls.append(1)
        for start in range(0, len(images), size):
            yield images[start : start + size]

    found = feature_scores.reference(
        net, make_batches, tmp_path, batch_size=4, num_for_kid=num_for_kid
    )
    return found, len(calls)


@pytest.mark.parametrize("num_for_kid", [1, 14, 20, 99])
def test_a_reference_has_moments_of_all_and_features_of_the_first(
    tmp_path, num_for_kid
):
    images = pictures(45)
    found, _ = reference(tmp_path, images, num_for_kid=num_for_kid)
    features = images.astype(np.float64).sum((1, 2)) / 255
    expected = features[:num_for_kid]
    assert found.features.shape == expected.shape
    np.testing.assert_allclose(found.features, expected, rtol=1e-5)
    assert found.moments.count == 45  # the last, partial batch included
    np.testing.assert_allclose(found.moments.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        found.moments.covariance, np.cov(features.T), rtol=1e-4, atol=1e-5
    )


def test_the_same_pictures_are_not_computed_again(tmp_path):
    images = pictures(45)
    first, num_passes = reference(tmp_path, images)
    again, num_again = reference(tmp_path, images, size=9)  # to hash them
    assert (num_passes, num_again) == (2, 1)
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.moments.scatter, again.moments.scatter)
    assert len([*tmp_path.iterdir()]) == 2


def test_what_differs_is_computed(tmp_path):
    images = pictures(45)
    reference(tmp_path, images)
    other = images.copy()
    other[44, 3, 3, 2] ^= 1
    for changed in (
        {"images": other},
        {"images": images[::-1]},
        {"images": images, "net": dataclasses.replace(NET, sha256="abd")},
        {"images": images, "num_for_kid": 21},
    ):
        assert reference(tmp_path, **changed)[1] == 2


def test_half_a_cache_is_completed_and_a_damaged_one_named(tmp_path):
    reference(tmp_path, pictures(45))
    (features,) = tmp_path.glob("features-*")
    features.unlink()
    assert reference(tmp_path, pictures(45))[1] == 2 and features.exists()
    features.write_bytes(b"other")
    with pytest.raises(InputError, match=r"features-.*delete it to compute them again"):
        reference(tmp_path, pictures(45))


def normal(n, size=4, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, size)) + shift


def test_both_scores_are_those_of_their_modules():
    x, y = normal(200, shift=0.3), normal(300, seed=1)
    distance, kernel = feature_scores.score(x, Reference(Moments.of(y), y), seed=3)
    assert distance == frechet.estimate(x, Moments.of(y))
    assert kernel == kid(x, y, seed=3, subset_size=40).distance


def test_kid_may_be_kept_to_the_first_features():
    x, y = normal(200), normal(300, seed=1)
    against = Reference(Moments.of(y), y)
    whole = feature_scores.score(x, against, seed=3)
    part = feature_scores.score(x, against, seed=3, num_for_kid=100)
    assert part[0] == whole[0] and part[1].n == 100 < whole[1].n
    assert part[1] == kid(x[:100], y, seed=3, subset_size=20).distance


@pytest.mark.parametrize(
    ("n", "known"), [(4, (False, False)), (9, (True, False)), (10, (True, True))]
)
def test_what_so_few_pictures_cannot_give_is_left_out(n, known):
    against = Reference(Moments.of(normal(50)), normal(50))
    scores = feature_scores.score(normal(n, seed=2), against, seed=0)
    assert tuple(s is not None for s in scores) == known


def test_only_inception_gives_an_fid():
    labels = {"FID": ("fid", "kid"), "FD-LeNet": ("fd_lenet", "kid_lenet")}
    for label, families in labels.items():
        net = dataclasses.replace(NET, label=label)
        assert feature_scores.families(net) == families


def test_the_number_of_features_is_known_beforehand():
    assert feature_scores.num_features(NET, (4, 4, 3)) == 3
    with pytest.raises(InputError, match="choose the feature network of this data set"):
        feature_scores.num_features(NET, (8, 8, 1))


def test_a_network_is_loaded_by_its_name(tmp_path):
    with pytest.raises(InputError, match=r"no such file. FID needs Inception's"):
        feature_scores.load("inception", tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"Put an npz of resnet56's weights there"):
        feature_scores.load("resnet56", tmp_path / "x.npz")
