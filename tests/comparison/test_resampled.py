"""`comparison/resampled.py`: encodings that follow p(z | x), and what priors gain."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.comparison import one_vector, protocol, resampled
from ncp_jax.comparison.examples import Examples
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post.contract import Encodings
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.training.ncp import preparation
from tests.oracles import LinearGaussianVAE
from tests.statistics import assert_mean

MEAN, STD = np.array([0.8, -0.4]), np.array([0.6, 1.2])  # of the latents of all x
TRUTH = Gaussian(jnp.asarray(MEAN), jnp.asarray(STD))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Fits a normal by its moments."""

    def __call__(self, key, encodings: Encodings, folder=None):
        z = encodings.train.reshape(-1, 2)
        return Gaussian(jnp.mean(z, 0), jnp.std(z, 0))


class Bare(NamedTuple):
    """Draws and no density."""

    mean: jax.Array
    density = "none"

    def sample(self, keys):
        return jnp.broadcast_to(self.mean[None], (len(keys), 2))

    def log_prob(self, z, key=None):
        return jnp.zeros(len(z))


@pytest.fixture
def vae():
    """Its q is too wide, and off."""
    return LinearGaussianVAE(jnp.diag(jnp.array([1.0, 0.7])), 0.5, 0.3, 1.4)


@pytest.fixture
def examples(vae, key):
    z = TRUTH.sample(jax.random.split(key, 900))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (900, 2))
    x = np.asarray(z @ vae.weights.T + vae.std * noise)
    split = x[:600], x[600:700], x[700:]
    return Examples(*split, preparation.as_stored, False)


SETTINGS = ComparisonSettings(
    num_encodings=4,
    num_importance_samples=200,
    num_samples=100,
    num_mmd_samples=0,
    num_proposals=100,
    num_rounds=3,
)


def test_encodings_follow_the_posterior_under_the_prior_that_they_are_resampled_by(
    vae, key
):
    x = np.tile(np.array([[0.5, -1.0]], np.float32), (400, 1))
    of_q = Encodings(np.zeros((400, 20, 2)), np.zeros((400, 3, 2)), None)
    settings = dataclasses.replace(SETTINGS, num_proposals=400, num_resampled=3)
    found = resampled.once(
        *(of_q, one_vector.of(vae), TRUTH),
        *(x, x, preparation.as_stored, key, settings),
    )
    assert found.train.shape == (400, 20, 2) and found.valid.shape == (400, 3, 2)
    weights = np.asarray(vae.weights) / vae.std
    precision = np.sum(weights**2, 0) + STD**-2
    mean = (x[0] / vae.std @ weights + MEAN / STD**2) / precision
    for z in found.train[:, 0], found.valid[:, 2]:  # each of a set of its own
        e = (np.asarray(z) - mean) * precision**0.5
        for i in range(2):
            assert_mean(e[:, i], 0.0, std=1.0)
            assert_mean(e[:, i] ** 2, 1.0, std=2**0.5)


def test_rounds_of_resampling_reach_the_likeliest_prior_where_q_does_not(
    vae, examples, key
):
    model, how = one_vector.of(vae), {"moments": Moments()}
    by_q, by_rounds = (
        protocol.run(model, examples, how, key, SETTINGS, resampled_by=by)
        for by in ("", "moments")
    )
    best = protocol.run(model, examples, {"truth": lambda *_: TRUTH}, key, SETTINGS)
    gains = [
        of.results[name].metrics["gain"].value
        for of, name in ((by_q, "moments"), (by_rounds, "moments"), (best, "truth"))
    ]
    assert gains[0] + 0.1 < gains[1] and abs(gains[1] - gains[2]) < 0.02, gains
    (prior,) = by_rounds.results["moments"].priors
    np.testing.assert_allclose(prior.mean, MEAN, atol=0.1)
    assert by_rounds.about["resampled_by"] == "moments"


def test_what_cannot_resample_is_named(vae, examples, key):
    model = one_vector.of(vae)
    for how, by, said in (
        ({"moments": Moments()}, "moment", "Did you mean 'moments'"),
        ({"bare": lambda *_: Bare(jnp.zeros(2))}, "bare", "it has no density"),
    ):
        with pytest.raises(InputError, match=said):
            protocol.run(model, examples, how, key, SETTINGS, resampled_by=by)
    point = ncp_jax.EncoderDecoder(
        lambda _, x: ncp_jax.Normal(x, jnp.zeros_like(x)),
        lambda _, z: ncp_jax.Normal(z, jnp.ones_like(z)),
        *(None, (2,), True),
    )
    with pytest.raises(InputError, match=r"q\(z \| x\) has no density"):
        protocol.run(
            one_vector.of(point),
            *(examples, {"moments": Moments()}, key, SETTINGS),
            resampled_by="moments",
        )
