"""`comparison/likelihoods.py` on a linear VAE, whose log p(x) has a closed form."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import likelihoods, one_vector
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.evaluation.importance import Estimate, WeightSums
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.training.ncp import preparation
from tests.oracles import LinearGaussianVAE
from tests.statistics import assert_mean

TILT = 0.7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tilted:
    """N(0, I) times exp(tilt sum z): N(tilt, I) up to log Z = D tilt^2 / 2."""

    density: ClassVar = "up to log Z"
    base: Gaussian
    tilt: float

    def sample(self, keys):
        return self.base.sample(keys) + self.tilt

    def log_prob(self, z, key=None):
        return self.base.log_prob(z) + self.tilt * jnp.sum(z, 1)

    def log_z_weights(self, keys):
        return self.tilt * jnp.sum(self.base.sample(keys), 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noisy:
    """N(tilt, I) whose density is estimated without bias: a factor of mean 1."""

    density: ClassVar = "lower bound"
    exact: Gaussian

    def sample(self, keys):
        return self.exact.sample(keys)

    def log_prob(self, z, key=None):
        noise = 0.5 * jax.random.normal(key, z.shape[:1])
        return self.exact.log_prob(z) + noise - 0.125


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared(Noisy):
    """The noise is the same for all z of a call, as where they share draws."""

    def log_prob(self, z, key=None):
        return self.exact.log_prob(z) + 0.5 * jax.random.normal(key) - 0.125


@dataclasses.dataclass(frozen=True)
class Nameless:
    density: ClassVar = "none"


@pytest.fixture(scope="module")
def oracle():
    """(VAE, x): q is not the posterior, so that there is something to bound."""
    weights = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    vae = LinearGaussianVAE(weights, q_shift=0.1, q_scale=1.2)
    return vae, np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def normal(mean):
    return Gaussian(jnp.full(2, mean), jnp.ones(2))


def measured(oracle, key, **sizes):
    vae, x = oracle
    priors = {
        "base": normal(0.0),
        "exact": normal(TILT),
        "tilted": Tilted(normal(0.0), jnp.float32(TILT)),
        "noisy": Noisy(normal(TILT)),
        "none": Nameless(),
    }
    sizes = {"num_importance_samples": 400, "chunk_size": 100, "batch_size": 20} | sizes
    return likelihoods.log_marginals(
        one_vector.of(vae), priors, x, preparation.as_stored, key, **sizes
    )


def test_they_are_the_exact_log_p_of_every_prior(oracle, key):
    """The bound is below by about var(w) / 2 S, here less than 0.01 nats."""
    vae, x = oracle
    found = measured(oracle, key)
    assert found.keys() == {"base", "exact", "tilted", "noisy"}
    exact = vae.log_marginal(x, TILT)
    np.testing.assert_allclose(found["base"], vae.log_marginal(x), atol=0.15)
    np.testing.assert_allclose(found["exact"], exact, atol=0.15)
    np.testing.assert_allclose(found["tilted"] - TILT**2, found["exact"], atol=1e-4)
    assert_mean(found["noisy"] - found["exact"], 0.0, std=0.1, bias=0.01)
    assert np.abs(exact - vae.log_marginal(x)).max() > 0.5  # the priors differ


def test_chunks_and_batches_change_nothing(oracle, key):
    """But for the noise of a density that is estimated, which is of a chunk's key."""
    found = measured(oracle, key, num_importance_samples=50, chunk_size=50)
    again = measured(oracle, key, num_importance_samples=50, chunk_size=20)
    for name in ("base", "exact", "tilted"):
        np.testing.assert_allclose(found[name], again[name], rtol=1e-5)


def test_equal_draws_make_tight_differences(oracle, key):
    found = measured(oracle, key)
    of_gain = likelihoods.estimates(found["exact"], found["base"], None)
    alone = np.std(found["base"], ddof=1) / np.sqrt(30)
    vae, x = oracle
    truth = np.mean(vae.log_marginal(x, TILT) - vae.log_marginal(x))
    assert of_gain["gain"].value == pytest.approx(truth, abs=0.02)
    assert of_gain["gain"].stderr < 0.5 * alone


def test_noise_that_examples_share_is_part_of_the_error(oracle):
    """Of 200 examples in one batch, and in 20 batches."""
    vae, _ = oracle
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    for batch_size in (200, 10):
        settings = ComparisonSettings(
            num_importance_samples=20, chunk_size=20, batch_size=batch_size
        )
        gains = [
            likelihoods.measure(
                one_vector.of(vae),
                normal(0.0),
                {"shared": [Shared(normal(0.0))]},
                *(x, preparation.as_stored, jax.random.key(i), settings),
            ).means["shared"]["gain"]
            for i in range(20)
        ]
        # 20 groups, each with noise of std 0.5; examples differ by nothing else.
        spread = np.std([gain.value for gain in gains], ddof=1)
        said = np.mean([gain.stderr for gain in gains])
        assert spread == pytest.approx(0.5 / np.sqrt(20), rel=0.5)
        assert said == pytest.approx(0.5 / np.sqrt(20), rel=0.1)


def test_a_share_is_a_batch_where_there_are_batches_enough():
    settings = ComparisonSettings()
    assert likelihoods._share(2_000, settings.batch_size) == settings.batch_size
    assert likelihoods._share(10_000, settings.batch_size) == settings.batch_size
    assert likelihoods._share(1_000, 100) == 50
    groups = likelihoods._shares(250, 100)  # three batches, in seven parts each
    assert np.unique(groups, return_counts=True)[1].tolist() == [15] * 6 + [10] + [
        15
    ] * 6 + [10] + [15] * 3 + [5]
    assert (np.diff(groups) >= 0).all()
    assert np.unique(likelihoods._shares(3, 100)).size == 3


def test_log_z_is_that_of_the_tilt(oracle, key):
    prior = Tilted(normal(0.0), jnp.float32(TILT))
    sums = likelihoods.log_z(prior, key, 100_500, 50_000)
    assert sums.count == 100_500
    # Of one weight the variance is e^(2 tilt^2) - 1 = 1.66; 6 errors fail once in 1e8.
    stderr = np.sqrt(1.66 / 100_500)
    assert abs(sums.log_mean.value - TILT**2) < 6 * stderr < 0.06 * TILT**2
    assert sums.log_mean.stderr == pytest.approx(stderr, rel=0.1)


def test_log_z_draws_on_while_it_is_uncertain(key):
    """Relative variance of a weight 1.66: 0.02 nats take 4,150 draws."""
    prior = Tilted(normal(0.0), jnp.float32(TILT))
    sums = likelihoods.log_z(prior, key, 1_000, 300)
    assert 3_000 <= sums.count <= 6_000 and sums.count % 1_000 == 0
    assert sums.log_mean.stderr <= likelihoods.LOG_Z_STDERR
    short = likelihoods.log_z(prior, key, 100, 100)
    assert short.count == likelihoods.LOG_Z_ROUNDS * 100
    at_once = likelihoods.log_z(prior, key, sums.count, 1_000)
    assert at_once.log_mean.value == pytest.approx(sums.log_mean.value, abs=1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PointVAE(LinearGaussianVAE):
    """Says that its z is a function of x."""

    is_deterministic: ClassVar = True

    def encode(self, x, key):
        raise AssertionError("nobody may ask for log q of a point")


def test_a_point_has_no_likelihoods_but_a_log_z(oracle, key):
    """Nothing is encoded, let alone weighed."""
    vae, x = oracle
    model = one_vector.of(PointVAE(vae.weights))
    settings = ComparisonSettings(num_log_z_draws=500, log_z_batch_size=500)
    tilt = Tilted(normal(0.0), jnp.float32(TILT))
    found = likelihoods.measure(
        model,
        normal(0.0),
        {"exact": [normal(TILT)], "tilted": [tilt, tilt]},
        x,
        preparation.as_stored,
        key,
        settings,
    )
    assert found.nll_base is None
    assert found.of_fits["exact"] == [{}] and found.means["exact"] == {}
    assert [each.keys() for each in found.of_fits["tilted"]] == [{"log_z"}] * 2
    assert found.means["tilted"].keys() == {"log_z"}
    assert not one_vector.of(vae).is_deterministic


def test_the_error_of_log_z_is_added():
    log_p, base = np.array([1.0, 3.0, 2.0]), np.array([0.0, 1.0, 0.5])
    z = Estimate(0.25, 0.3, 100, "nats")
    plain = likelihoods.estimates(log_p, base, None)
    found = likelihoods.estimates(log_p, base, z)
    assert (plain["nll"].value, plain["gain"].value) == (-2.0, 1.5)
    assert found["nll"].value == -2.0 + 0.25 and found["gain"].value == 1.5 - 0.25
    for name in ("nll", "gain"):
        expected = np.hypot(plain[name].stderr, 0.3)
        assert found[name].stderr == pytest.approx(expected)
    assert (found["gain"].n, found["gain"].unit) == (3, "nats")


def test_without_an_error_of_log_z_there_is_none_of_the_gain():
    z = WeightSums().add(np.array([0.0, 40.0])).log_mean
    found = likelihoods.estimates(np.array([1.0, 2.0]), np.zeros(2), z)
    assert found["gain"].stderr is None and found["nll"].stderr is None


def test_the_same_prior_gains_nothing(oracle, key):
    vae, x = oracle
    settings = ComparisonSettings(num_importance_samples=20, chunk_size=10)
    found = likelihoods.measure(
        one_vector.of(vae),
        normal(0.0),
        {"same": [normal(0.0)] * 7},
        *(x, preparation.as_stored, key, settings),
    )
    for gain in (found.means["same"]["gain"], found.of_fits["same"][6]["gain"]):
        assert gain.value == gain.stderr == 0.0


def test_the_gain_of_encodings_is_a_mean_of_log_ratios():
    """Of N(t, I) over N(0, I): t sum z - D t^2 / 2; P draws of one example are one."""
    z = np.random.default_rng(0).normal(1.0, 1.0, (7, 3, 2)).astype(np.float32)
    expected = (TILT * z.sum(2) - TILT**2).mean(1)
    log_z = Estimate(TILT**2, 0.1, 50, "nats")
    base = normal(0.0)
    priors = {
        "exact": (normal(TILT), None),
        "tilted": (Tilted(base, jnp.float32(TILT)), log_z),
        "noisy": (Noisy(normal(TILT)), None),
        "nameless": (Nameless(), None),
    }
    found = {
        name: likelihoods.gain_of_encodings(
            prior, base, jnp.asarray(z), of_z, jax.random.key(1), batch_size=5
        )
        for name, (prior, of_z) in priors.items()
    }
    stderr = expected.std(ddof=1) / np.sqrt(7)
    assert found["exact"].value == pytest.approx(expected.mean(), abs=1e-5)
    assert found["exact"].stderr == pytest.approx(stderr, rel=1e-4)
    assert found["tilted"].value == pytest.approx(expected.mean(), abs=1e-5)
    assert found["tilted"].stderr == pytest.approx(np.hypot(stderr, 0.1), rel=1e-4)
    noisy = found["noisy"]
    assert abs(noisy.value - expected.mean() + 0.125) < 4 * 0.5 / np.sqrt(21)
    assert found["nameless"] is None


def test_encodings_that_share_the_noise_of_a_density_are_no_independent_ones():
    """A batch of them has one error; the others' would make it seem ever smaller."""
    base, z = normal(0.0), jnp.zeros((1_000, 1, 2))
    keys = jax.random.split(jax.random.key(3), 20)
    of_keys = [
        likelihoods.gain_of_encodings(Shared(base), base, z, None, k, 500) for k in keys
    ]
    spread = np.std([gain.value for gain in of_keys], ddof=1)
    claimed = np.mean([gain.stderr for gain in of_keys])
    assert claimed == pytest.approx(0.5 / np.sqrt(40), rel=0.1)
    assert spread == pytest.approx(claimed, rel=0.6)


def test_a_base_whose_density_is_estimated_gains_nothing_over_itself():
    base, z = Noisy(normal(TILT)), jnp.ones((3, 2, 2))
    gain = likelihoods.gain_of_encodings(base, base, z, None, jax.random.key(0), 4)
    assert gain.value == gain.stderr == 0.0
