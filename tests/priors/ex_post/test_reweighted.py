"""Priors that reweight p(z): the suite on a small fit of each, and what is exact."""

import dataclasses
import itertools
import math
import shutil
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post import ebm, fitting, his, multistage, ncp, rejection, snis
from ncp_jax.priors.ex_post.contract import (
    LatentPrior,
    Training,
    Unnormalised,
    log_mean_exp,
    over_base,
    with_base,
)
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.ex_post.ncp import Reweighted, Sampling
from tests.priors.ex_post import suite
from tests.statistics import assert_mean

KEY = jax.random.key(0)
NUMBER = 20_000  # draws of a test of samples

SHORT = Training(num_steps=200, batch_size=512, learning_rate=1e-2, steps_per_eval=100)
SMALL = {"hidden_dims": (32, 32), "activation": "swish", "training": SHORT}
SHORTER = dataclasses.replace(SHORT, num_steps=100, steps_per_eval=50)
SIR, MALA = Sampling("sir", 100), Sampling("mala", 8, 16, 0.3)
NCP = ncp.Settings(**SMALL, num_score_draws=5_000, sampling=SIR)
ALL_OPTIONS = {
    "dropout": 0.1,
    "num_negatives": 3,
    "ranking_weight": 0.5,
    "negative_weight": 4.0,
}


class Case(NamedTuple):
    """A fit of the mixture of `suite`, small."""

    settings: object
    tolerance: float  # nats of KL(q || p), which is above 0.3 for the base
    density: str = "up to log Z"
    bias: float = 0.01  # of draws, or of an estimated density; or of log Z


CASES = {
    "ncp": Case(NCP, 0.05),
    "options": Case(dataclasses.replace(NCP, **ALL_OPTIONS), 0.06),
    "multistage": Case(
        multistage.Settings(
            num_stages=2,
            stage=dataclasses.replace(NCP, training=SHORTER),
            num_proposals=50_000,
            num_draws=10_000,
            sampling=MALA,
        ),
        0.1,
    ),
    "ebm": Case(
        ebm.Settings(
            **SMALL | {"hidden_dims": (32,)},
            num_langevin_steps=10,
            step_size=0.2,
            num_score_draws=5_000,
        ),
        0.15,
    ),
    "lars": Case(
        rejection.LARSSettings(**SMALL, num_score_draws=5_000, num_z_draws=100_000),
        0.1,
        "exact",
    ),
    "trs": Case(
        rejection.TRSSettings(**SMALL, num_attempts=20, num_draws=256),
        0.12,
        "lower bound",
        0.02,
    ),
    "snis": Case(snis.Settings(**SMALL, num_proposals=128), 0.12, "lower bound", 0.02),
    "his": Case(
        his.Settings(**SMALL, momentum_dims=(32, 32), num_steps=3, step_size=0.4),
        0.25,
        "lower bound",
        0.03,
    ),
}

SAMPLED = ("ncp", "multistage", "lars", "trs", "snis", "his")  # others are Reweighted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalised:
    """A prior of density "up to log Z", with log Z."""

    density: ClassVar[str] = "exact"

    prior: LatentPrior
    log_z: jax.Array

    def sample(self, keys):
        return self.prior.sample(keys)

    def log_prob(self, z, key=None):
        return self.prior.log_prob(z) - self.log_z


def normalised(prior):
    if prior.density != "up to log Z":
        return prior
    weights = prior.log_z_weights(jax.random.split(jax.random.key(1), 100_000))
    return Normalised(prior, log_mean_exp(weights))


class Fitted(NamedTuple):
    """What came of a case."""

    name: str
    prior: LatentPrior
    density: LatentPrior  # the prior with its log Z


@pytest.fixture(scope="module")
def encodings():
    return suite.mixture()


@pytest.fixture(scope="module", params=CASES)
def fitted(request, encodings):
    prior = CASES[request.param].settings(KEY, encodings)
    return Fitted(request.param, prior, normalised(prior))


def test_it_is_a_prior(fitted):
    assert isinstance(fitted.prior, LatentPrior)
    assert fitted.prior.density == CASES[fitted.name].density
    is_unnormalised = fitted.prior.density == "up to log Z"
    assert isinstance(fitted.prior, Unnormalised) == is_unnormalised


def test_a_known_mixture_is_recovered(fitted, key):
    suite.assert_recovers_mixture(fitted.density, key, CASES[fitted.name].tolerance)


def test_samples_follow_the_density(fitted, key):
    if fitted.name in SAMPLED:
        bias = CASES[fitted.name].bias
        suite.assert_samples_follow_density(fitted.density, key, bias, NUMBER)


def test_draws_own_their_keys(fitted, key):
    if fitted.name in SAMPLED:
        suite.assert_draws_own_their_keys(fitted.prior, key)


def test_it_compiles_once(fitted, key):
    if fitted.name in SAMPLED:
        suite.assert_compiles_once(fitted.prior, key)


def test_the_density_has_gradients(fitted, key):
    suite.assert_density_has_gradients(fitted.prior, key)


def test_an_estimated_density_needs_a_key(fitted):
    if fitted.prior.density == "lower bound":
        with pytest.raises(ValueError, match="needs a key"):
            fitted.prior.log_prob(jnp.zeros((1, 2)))


# Fits that are stopped: the loop's carry, and the folders of stages.


@pytest.mark.parametrize("name", ["ncp", "lars"])
def test_a_stopped_fit_resumes_to_the_same_bits(name, encodings, tmp_path, monkeypatch):
    settings = dataclasses.replace(CASES[name].settings, training=SHORTER)
    prior = settings(KEY, encodings, tmp_path / "fit")
    args = KEY, encodings, tmp_path / "fit", prior, monkeypatch
    suite.assert_resumes(settings, *args)
    other = dataclasses.replace(settings, activation="tanh")
    with pytest.raises(InputError):
        other(KEY, encodings, tmp_path / "fit")


def test_a_stopped_stage_resumes_to_the_same_bits(encodings, tmp_path, monkeypatch):
    short = dataclasses.replace(SHORTER, num_steps=4, steps_per_eval=2)
    settings = dataclasses.replace(
        CASES["multistage"].settings,
        stage=dataclasses.replace(NCP, training=short, num_score_draws=100),
        num_proposals=1_000,
        num_draws=500,
        num_mala_steps=2,
    )
    prior = settings(KEY, encodings, tmp_path)
    second = tmp_path / "stage-2"
    shutil.rmtree(second / "4")
    starts = []
    fit = fitting.loop.fit
    monkeypatch.setattr(
        fitting.loop,
        "fit",
        lambda task, state, *args, **kwargs: (
            starts.append(int(state.step)) or fit(task, state, *args, **kwargs)
        ),
    )
    again = settings(KEY, encodings, tmp_path)
    assert starts == [2]  # the first stage is complete
    jax.tree.map(np.testing.assert_array_equal, again, prior)


def test_what_a_loss_hands_on_is_not_scored(encodings):
    with pytest.raises(ValueError, match="score"):
        fitting.minimise("x", None, jnp.zeros(()), encodings, SHORT, KEY, carry=0.0)


# r(z) = exp(TILT . z) makes N(TILT, I) of N(0, I), with log Z = |TILT|^2 / 2.


@dataclasses.dataclass(frozen=True)
class Tilt:
    """A ratio network without a layer."""

    def log_r(self, params, z, key=None):
        return z @ params


def tilted(**sampling):
    halves = (jnp.asarray(suite.TILT) / 2,) * 2  # r is the product of two
    return Reweighted(suite.BASE, halves, Tilt(), Sampling(**sampling))


def test_weights_have_the_mean_z(key):
    weights = jnp.exp(tilted().log_z_weights(jax.random.split(key, 100_000)))
    z = math.exp(suite.TILTED_GAIN)
    std = z * math.sqrt(math.expm1(2 * suite.TILTED_GAIN))
    assert_mean(weights, z, std)
    with pytest.raises(AssertionError):
        assert_mean(weights, 1.1 * z, std)
    np.testing.assert_allclose(
        np.asarray(tilted().log_prob(jnp.zeros((1, 2)))),
        np.asarray(suite.BASE.log_prob(jnp.zeros((1, 2)))),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("sampling", "bias"),
    [
        ({"method": "sir", "num_proposals": 200}, 0.01),
        ({"method": "mala", "num_proposals": 4, "num_steps": 30}, 0.01),
        ({"method": "langevin", "num_steps": 80, "step_size": 0.1}, 0.05),
    ],
)
def test_samplers_of_a_tilted_gaussian(sampling, bias, key):
    suite.assert_recovers_tilt(tilted(**sampling), key, bias, NUMBER)


@pytest.mark.parametrize("num_mala_steps", [0, 10])
def test_a_pool_follows_the_stages_so_far(num_mala_steps, key):
    settings = multistage.Settings(
        num_proposals=100_000, num_draws=40_000, num_mala_steps=num_mala_steps
    )
    prior = tilted(method="mala", num_steps=num_mala_steps, step_size=0.3)
    pool = settings.pool(key, prior)
    assert pool.draws.shape == (40_000, 2)
    # Of n = 100,000 weights of relative variance e^(2 |TILT|^2 / 2) - 1 = 0.84, worth
    # 54,000 draws, 40,000 are kept: the variances add to less than 1 / 20,000.
    apart = np.asarray(pool.draws[::2])
    for d, mean in enumerate(suite.TILT):
        assert_mean(apart[:, d], mean, 1.1)
        assert_mean((apart[:, d] - mean) ** 2, 1.0, 1.9)
    with pytest.raises(AssertionError):
        assert_mean(apart[:, 0] / 1.1, suite.TILT[0], 1.1)
    keys = jax.random.split(key, 50)
    rows = np.asarray(pool.sample(keys))
    assert len(np.unique(rows[:, 0])) > 40
    assert np.isin(rows[:, 0], np.asarray(pool.draws)[:, 0]).all()


def test_negatives_of_the_ebm_are_of_the_prior(encodings, monkeypatch):
    """The loss is 0 in the mean where r is right, with Langevin draws of many steps."""
    seen = {}
    monkeypatch.setattr(
        ebm, "minimise", lambda name, loss, params, *args, **kw: seen.update(loss=loss)
    )
    for negatives, bias in (("langevin", 0.03), ("mala", 0.01)):
        settings = ebm.Settings(
            negatives=negatives, num_langevin_steps=60, step_size=0.1
        )
        monkeypatch.setattr(ebm, "RatioMLP", lambda *args: _Started())
        settings(KEY, encodings)
        z = suite.tilted().valid.reshape(-1, 2)
        z = jnp.tile(z - jnp.mean(z, 0)[None] + jnp.asarray(suite.TILT)[None], (5, 1))
        difference = seen["loss"](jnp.asarray(suite.TILT), z, KEY, suite.BASE)
        scale = math.sqrt(2 * suite.TILTED_GAIN)  # the deviation of log r
        assert abs(difference) < scale * (5.4 / math.sqrt(len(z)) + bias)


class _Started(Tilt):
    """The same where a fit starts it."""

    def start(self, key, dim):
        return jnp.zeros(dim)


# What is known of each.


def test_what_is_left_out_by_dropout(key):
    network = RatioMLP((16, 64), "tanh", dropout=0.25)
    params = network.start(key, 3)
    z = jax.random.normal(key, (4, 3))
    np.testing.assert_array_equal(network.log_r(params, z), 0)  # r = 1 at the start
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    whole = network.log_r(params, z)
    keys = jax.random.split(key, 20_000)
    some = jax.vmap(lambda k: network.log_r(params, z, k))(keys) - whole[None]
    # 64 terms of at most 0.3 each, kept with 3/4 and then worth 4/3.
    std = 0.3 * math.sqrt(64 / 3)
    for b in range(len(z)):
        assert_mean(some[:, b], 0.0, std)
        assert np.std(some[:, b]) > 0.1


def test_mean_products_are_those_of_all_choices():
    factors = np.array([0.3, 0.9, 0.5, 1.0, 0.2])
    expected = [
        np.mean([np.prod(chosen) for chosen in itertools.combinations(factors, t)])
        for t in range(5)
    ]
    found = rejection.mean_products(jnp.asarray(factors, jnp.float32), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_density_of_truncated_rejection():
    """sum_t (1 - Z)^(t - 1) a + (1 - Z)^(T - 1), term by term, and its mean is 1."""
    a, p = np.array([0.9, 0.2, 0.01]), np.array([0.2, 0.3, 0.5])
    z, attempts = float(a @ p), 5
    expected = sum((1 - z) ** t * a for t in range(attempts - 1))
    expected += (1 - z) ** (attempts - 1)
    log_a = jnp.log(jnp.asarray(a, jnp.float32))
    found = jnp.exp(rejection.truncated(log_a, jnp.log(jnp.float32(z)), attempts))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found @ p == pytest.approx(1.0, rel=1e-5)


def sharp_rejection():
    """A prior that accepts much on one side: base, params, network, attempts."""
    return suite.BASE, jnp.array([3.0, 0.0]), Tilt(), 8


def test_trs_estimates_the_density_of_lars(key):
    fixed = sharp_rejection()
    log_a = rejection.Truncated(*fixed).log_a
    log_z = log_mean_exp(over_base(suite.BASE, log_a, key, 100_000))
    lars = rejection.LARS(*fixed, log_z, jnp.zeros(()))
    z = 2.0 * jax.random.normal(key, (50, 2))
    num_draws, keys = 64, jax.random.split(key, 2_000)
    trs = rejection.TRS(*fixed, num_draws)
    logs = jax.jit(jax.vmap(lambda k: trs.log_prob(z, k)))(keys)
    ratio = jnp.exp(logs - lars.log_prob(z)[None])
    # One choice of 7 refused draws has a relative deviation below 1, the mean over all
    # choices of 64 less.  By symmetry Z = 1/2.
    assert float(log_z) == pytest.approx(math.log(0.5), abs=0.01)
    for b in range(0, 50, 10):
        assert_mean(ratio[:, b], 1.0, 0.4, bias=0.01)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * ratio[:, b], 1.0, 0.4, bias=0.01)
    assert jnp.mean(logs) < jnp.mean(lars.log_prob(z))


def test_snis_is_capped_at_its_number_of_proposals(key):
    z = 10.0 * jax.random.normal(key, (100, 2))
    prior = snis.SNIS(suite.BASE, jnp.array([5.0, 0.0]), Tilt(), 8, num_sets=3)
    excess = prior.log_prob(z, key) - suite.BASE.log_prob(z)
    assert float(jnp.max(excess)) == pytest.approx(math.log(8), abs=1e-3)
    flat = dataclasses.replace(prior, params=jnp.zeros(2))
    np.testing.assert_allclose(
        flat.log_prob(z, key), suite.BASE.log_prob(z), rtol=1e-5, atol=1e-5
    )


def a_his(key):
    network, momentum = RatioMLP((8,), "tanh"), his.Momentum((8,))
    params = {
        "potential": network.start(key, 2),
        "momentum": momentum.init(key, jnp.zeros((1, 2)))["params"],
        "raw_step": jnp.array([-1.0, 0.0]),
        "log_factors": jnp.log(jnp.array([0.8, 1.3, 0.9])),
    }
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sin(9 * leaf + 1), params)
    return his.HIS(suite.BASE, params, network, momentum)


def test_the_dynamics_of_his_have_an_inverse_and_keep_volumes(key):
    prior = a_his(key)
    z, rho = jax.random.normal(key, (2, 5, 2))
    there = prior.forward(z, rho)
    assert np.abs(np.asarray(there[0] - z)).max() > 0.3  # they do move
    back = prior.backward(*there)
    np.testing.assert_allclose(back[0], z, atol=1e-4)
    np.testing.assert_allclose(back[1], rho, atol=1e-4)

    def flat(point):
        return jnp.concatenate(prior.forward(point[None, :2], point[None, 2:]), 1)[0]

    jacobian = jax.jacfwd(flat)(jnp.concatenate([z[0], rho[0]]))
    np.testing.assert_allclose(np.linalg.slogdet(jacobian), (1.0, 0.0), atol=1e-4)


# Bases of one's own.


def test_another_base_is_fitted_first_and_reweighted(encodings, tmp_path):
    seen = []
    shifted = Gaussian(jnp.asarray(suite.TILT), jnp.ones(2))

    def fit(key, given, folder):
        seen.append((given is encodings, folder))
        return shifted

    training = dataclasses.replace(SHORT, num_steps=2, steps_per_eval=1)
    settings = ncp.Settings(fit, (4,), num_score_draws=50, training=training)
    prior = settings(KEY, encodings, tmp_path)
    assert seen == [(True, tmp_path / "base")]
    assert prior.base is shifted
    with pytest.raises(InputError, match="exact"):
        with_base(lambda *_: prior, KEY, encodings, None)
