"""What draws cost and what is measured of them; the decoder shows z itself."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import compare, draws, measures, one_vector
from ncp_jax.comparison.against import Against, Pictures
from ncp_jax.comparison.examples import Scores
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import mean_estimate
from ncp_jax.evaluation.metrics import feature_scores, gaussian_kernel, two_sample
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs
from ncp_jax.models.base import Block
from ncp_jax.models.distributions import Normal
from ncp_jax.pages.parts.pictures import to_uint8
from ncp_jax.priors.ex_post.gaussian import Gaussian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures [2, 1, 1] that are z, all in one."""

    none: jax.Array
    blocks = (Block(1, (2,), (0,)),)

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def absorb(self, block, k, carry, z_k):
        return z_k

    def decode(self, carry):
        mean = carry.reshape(-1, 2, 1, 1)
        return Normal(mean, jnp.ones_like(mean))


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, images):
        return Outputs(images.reshape(len(images), -1), images[:, 0, 0])


NET = FeatureNet("FD-Pixels", Pixels(), {}, "abc", (2, 1, 1))
MODEL = one_vector.OneVector(Shown(jnp.zeros(())))
PRIOR = Gaussian(jnp.full(2, 0.5), jnp.full(2, 0.1))


def train(num=400):
    return np.random.default_rng(1).integers(256, size=(num, 2, 1, 1), dtype=np.uint8)


def against(**more):
    posterior = np.random.default_rng(0).normal(0.5, 0.1, (50, 2)).astype(np.float32)
    kernel = gaussian_kernel.fit(posterior, seed=0)
    return Against(posterior, kernel, 40, 3, None, None)._replace(**more)


def test_a_draw_depends_on_its_number_alone(key):
    few, many = draws.draw(PRIOR, key, 5, 5), draws.draw(PRIOR, key, 11, 4)
    assert many.shape == (11, 2)
    np.testing.assert_allclose(few, many[:5], rtol=1e-6)


def test_draws_that_are_not_finite_are_refused(key):
    prior = dataclasses.replace(PRIOR, mean=jnp.array([0.0, np.nan]))
    with pytest.raises(InputError, match="draws of Gaussian are not finite"):
        draws.draw(prior, key, 3, 3)


def test_pictures_are_scored_by_all_their_features_in_eight_bits(key, tmp_path):
    reference = feature_scores.reference(
        NET, lambda: iter([train()]), tmp_path, batch_size=100, num_for_kid=100
    )
    z = draws.draw(PRIOR, key, 90, 40)
    pictures = Pictures(train(), np.full(30, 0.01), Scores(NET, reference, 7))
    found = measures.measure(MODEL, z, against(pictures=pictures), batch_size=40)
    features = to_uint8(z) / np.float32(255)
    expected = feature_scores.score(features, reference, seed=7)
    for name, value in zip(("fd_pixels", "kid_pixels"), expected, strict=True):
        np.testing.assert_allclose(found[name].value, value.value, rtol=1e-4)
    # 30 draws against as many held-out distances, nearly all of which are larger.
    assert found["nearer_than_held_out"].n == 30
    shown = measures.decoded(MODEL, z[:64])
    np.testing.assert_allclose(shown, z[:64].reshape(-1, 2, 1, 1), rtol=1e-6)


def test_the_mmd_is_of_the_first_draws_and_points_are_what_is_decoded(key):
    z = draws.draw(PRIOR, key, 80, 80)

    def of_points(points):
        return {"height": mean_estimate(points[:, 0, 0, 0], "pixels")}

    found = measures.measure(MODEL, z, against(of_points=of_points), batch_size=30)
    with_all = against()
    expected = two_sample.mmd(
        with_all.posterior, z[:50], with_all.kernel, seed=3, num_permutations=40
    )
    assert found["mmd"] == expected.distance
    assert found["mmd_p"].value == expected.p_value
    assert found["height"].value == pytest.approx(z[:, 0].mean(), rel=1e-5)
    assert found["height"].n == 80  # all of them
    assert "nearer_than_held_out" not in found


def test_without_permutations_there_is_no_mmd(key):
    z = draws.draw(PRIOR, key, 80, 80)
    found = measures.measure(MODEL, z, against(num_permutations=0), batch_size=80)
    assert found == {}


def test_seconds_are_of_a_thousand_draws(key, monkeypatch):
    monkeypatch.setattr(draws.timing, "time_calls", lambda *_: (1.0, 3.0, 2.0))
    found = draws.cost(PRIOR, key, 250)
    assert found["sampling_seconds"].value == 8.0 and found["num_bytes"].value > 2_000


def test_a_feature_network_needs_more_pictures_than_features(key, monkeypatch):
    with pytest.raises(InputError, match=r"'lenet5' needs the file feature_weights"):
        compare._scores("lenet5", "", train(), key, None, ComparisonSettings())
    monkeypatch.setattr(feature_scores, "load", lambda name, path: NET)
    settings = ComparisonSettings(num_samples=3, sample_batch_size=150)
    found = compare._scores("lenet5", "", train(), key, None, settings)
    assert found.reference.moments.count == 400
    assert len(found.reference.features) == 200  # the floor is of the others
    with pytest.raises(InputError, match=r"needs 3 training pictures.*got 2 and 3"):
        compare._scores("lenet5", "", train(2), key, None, settings)
