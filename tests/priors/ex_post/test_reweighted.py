"""Priors that reweight p(z): the suite on a small fit of each, and what is exact."""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post import (
    ebm,
    fitting,
    gmm,
    his,
    multistage,
    ncp,
    rejection,
    snis,
)
from ncp_jax.priors.ex_post.contract import (
    Encodings,
    LatentPrior,
    Training,
    Unnormalised,
    with_base,
)
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.ex_post.ncp import Reweighted, Sampling
from ncp_jax.samplers.resampling import log_mean_exp
from tests.priors.ex_post import suite
from tests.statistics import assert_mean

KEY = jax.random.key(0)
NUMBER = 20_000  # draws of a test of samples

SHORT = Training(num_steps=150, batch_size=256, learning_rate=3e-2, steps_per_eval=50)
LONGER = dataclasses.replace(SHORT, num_steps=200, learning_rate=2e-2)
SHORTER = dataclasses.replace(SHORT, num_steps=100)
SMALL = {"hidden_dims": (32, 32), "activation": "swish", "training": SHORT}
NCP = ncp.Settings(**SMALL, num_score_draws=5_000)
NCP_LONGER = dataclasses.replace(
    NCP, training=dataclasses.replace(LONGER, num_steps=400)
)
ALL_OPTIONS = {
    "dropout": 0.1,
    "num_negatives": 3,
    "ranking_weight": 0.5,
    "negative_weight": 4.0,
}


class Case(NamedTuple):
    """A fit of the mixture of `suite`, small."""

    settings: Callable
    tolerance: float  # nats of KL(q || p), which is 0.49 for the base
    density: str = "up to log Z"


CASES = {
    "ncp": Case(NCP, 0.04),
    "options": Case(dataclasses.replace(NCP, **ALL_OPTIONS), 0.06),
    "ensemble": Case(ncp.EnsembleSettings(num_members=2, member=NCP), 0.04),
    "pooled": Case(ncp.PooledSettings(NCP_LONGER, gmm.Settings((1,))), 0.04),
    "proposed": Case(ncp.PooledSettings(NCP_LONGER, gmm.Settings((2,)), 1.0), 0.04),
    "multistage": Case(
        multistage.Settings(
            num_stages=2,
            stage=dataclasses.replace(NCP, training=SHORTER),
            num_proposals=50_000,
            num_draws=10_000,
        ),
        0.12,
    ),
    "ebm": Case(
        ebm.Settings(
            **SMALL | {"training": dataclasses.replace(LONGER, learning_rate=1e-2)},
            negatives="langevin",
            num_langevin_steps=20,
            step_size=0.1,
            num_score_draws=5_000,
        ),
        0.15,
    ),
    "lars": Case(
        rejection.LARSSettings(
            **SMALL, num_attempts=20, num_score_draws=5_000, num_z_draws=100_000
        ),
        0.12,
        "exact",
    ),
    "trs": Case(
        rejection.TRSSettings(
            **SMALL, num_attempts=20, num_draws=128, num_density_draws=20_000
        ),
        0.18,
        "lower bound",
    ),
    "snis": Case(
        snis.Settings(**SMALL | {"training": LONGER}, num_proposals=128),
        0.15,
        "lower bound",
    ),
    "his": Case(
        his.Settings(**SMALL, momentum_dims=(32, 32), num_steps=3, step_size=0.4),
        0.33,
        "lower bound",
    ),
}
SLOW = ("ensemble", "multistage", "his")  # to compile


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())


@pytest.fixture(scope="module")
def encodings():
    return suite.mixture()


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_a_known_mixture_is_recovered(name, encodings, key):
    """No density gains more than the truth, and a bound less."""
    case = CASES[name]
    prior = case.settings(KEY, encodings)
    assert isinstance(prior, LatentPrior)
    assert prior.density == case.density
    assert isinstance(prior, Unnormalised) == (case.density == "up to log Z")
    suite.assert_recovers_mixture(normalised(prior), key, case.tolerance)


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


# The suite on priors whose ratio is known, which need no fit.


@dataclasses.dataclass(frozen=True)
class Tilt:
    """A ratio network without a layer."""

    def log_r(self, params, z, key=None):
        return z @ params

    def start(self, key, dim):
        return jnp.zeros(dim)


SLOPE = jnp.array([1.5, -1.0])
REJECTION = suite.BASE, SLOPE, Tilt(), 4  # by symmetry Z = 1/2


def reweighted(**sampling):
    halves = (jnp.asarray(suite.TILT) / 2,) * 2  # r is the product of two
    return Reweighted(suite.BASE, halves, Tilt(), Sampling(**sampling))


def averaged():
    members = 1.5 * jnp.asarray(suite.TILT), 0.5 * jnp.asarray(suite.TILT)
    how = Sampling("mala", num_proposals=8, num_steps=20)
    return ncp.Averaged(suite.BASE, members, Tilt(), how)


def a_his():
    key = jax.random.key(3)
    network, momentum = RatioMLP((8,), "tanh"), his.Momentum((8,))
    params = {
        "potential": network.start(key, 2),
        "momentum": momentum.init(key, jnp.zeros((1, 2)))["params"],
        "raw_step": jnp.array([-1.0, 0.0]),
        "log_factors": jnp.log(jnp.array([0.8, 1.3, 0.9])),
    }
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sin(9 * leaf + 1), params)
    return his.HIS(suite.BASE, params, network, momentum)


# Proposes draws of what is tilted.
WIDE = Gaussian(jnp.array([0.5, -0.5]), jnp.full(2, 1.2))
KNOWN = {
    "ncp": Normalised(
        reweighted(method="mala", num_proposals=8, num_steps=20),
        jnp.asarray(suite.TILTED_GAIN),
    ),
    "ensemble": Normalised(averaged(), jnp.asarray(suite.TILTED_GAIN)),
    "proposed": Normalised(
        ncp.Pooled(reweighted(), WIDE, jnp.asarray(1.0), 30),
        jnp.asarray(suite.TILTED_GAIN),
    ),
    "lars": rejection.LARS(*REJECTION, jnp.log(0.5), jnp.zeros(())),
    "trs": rejection.TRS(*REJECTION, num_draws=20_000),
    "snis": snis.SNIS(suite.BASE, SLOPE, Tilt(), num_proposals=4, num_sets=300),
}
every_known = pytest.mark.parametrize("name", [*KNOWN, "his"])


def known(name):
    return KNOWN[name] if name in KNOWN else a_his()


@pytest.mark.parametrize("name", KNOWN)
def test_samples_follow_the_density(name, key):
    suite.assert_samples_follow_density(KNOWN[name], key, 0.003, 100_000)


@every_known
def test_draws_own_their_keys(name, key):
    suite.assert_draws_own_their_keys(known(name), key)


@every_known
def test_it_compiles_once(name, key):
    suite.assert_compiles_once(known(name), key)


@every_known
def test_the_density_has_gradients(name, key):
    suite.assert_density_has_gradients(known(name), key)


@pytest.mark.parametrize("name", ["trs", "snis", "his"])
def test_an_estimated_density_needs_a_key(name):
    assert known(name).density == "lower bound"
    with pytest.raises(ValueError, match="needs a key"):
        known(name).log_prob(jnp.zeros((1, 2)))


@pytest.mark.parametrize(
    "make",
    [lambda: Sampling("Langevin"), lambda: ebm.Settings(negatives="Langevin")],
)
def test_a_method_that_there_is_not_is_refused(make):
    with pytest.raises(InputError, match=r"is one of .*'langevin'.* got 'Langevin'"):
        make()


def test_a_fit_that_finds_nothing_better_keeps_its_start(key):
    """Twenty encodings of p itself in twenty dimensions: any ratio over-fits."""
    z = jax.random.normal(key, (1_020, 1, 20))
    base = Gaussian(jnp.zeros(20), jnp.ones(20))
    training = Training(100, 256, 1e-2, steps_per_eval=100)
    settings = ncp.Settings(training=training, num_score_draws=5_000)
    prior = settings(key, Encodings(z[:20], z[20:], base))
    np.testing.assert_array_equal(prior.log_r(z[20:, 0]), 0.0)


# Fits that are stopped: the loop's carry, and the folders of stages.


def test_a_stopped_fit_resumes_to_the_same_bits(encodings, tmp_path, monkeypatch):
    settings = rejection.LARSSettings(
        hidden_dims=(4,),
        num_draws=50,
        num_score_draws=50,
        num_z_draws=50,
        training=dataclasses.replace(SHORT, num_steps=4, steps_per_eval=2),
    )
    folder = tmp_path / "fit"
    prior = settings(KEY, encodings, folder)
    suite.assert_resumes(settings, KEY, encodings, folder, prior, monkeypatch)
    other = dataclasses.replace(settings, num_draws=51)
    with pytest.raises(InputError):
        other(KEY, encodings, folder)


def test_members_differ_and_a_stopped_one_resumes(encodings, tmp_path):
    training = dataclasses.replace(SHORT, num_steps=4, steps_per_eval=2)
    member = ncp.Settings(hidden_dims=(4,), num_score_draws=50, training=training)
    settings = ncp.EnsembleSettings(num_members=2, member=member)
    prior = settings(KEY, encodings, tmp_path)
    first, second = (np.asarray(p["Dense_0"]["kernel"]) for p in prior.params)
    assert not np.array_equal(first, second)
    shutil.rmtree(tmp_path / "member-2" / "4")
    again = settings(KEY, encodings, tmp_path)
    chex.assert_trees_all_equal(prior, again)


@pytest.mark.slow
def test_a_stopped_stage_resumes_to_the_same_bits(encodings, tmp_path, monkeypatch):
    """Also where a pool made again would be rounded otherwise, as by fewer threads."""
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
    draws = multistage.Settings._draws
    monkeypatch.setattr(
        multistage.Settings, "_draws", lambda *args: draws(*args) * (1 + 1e-6)
    )
    again = settings(KEY, encodings, tmp_path)
    assert starts == [2]  # the first stage is complete
    jax.tree.map(np.testing.assert_array_equal, again, prior)


def test_what_a_loss_hands_on_is_not_scored(encodings):
    with pytest.raises(ValueError, match="score"):
        fitting.minimise("x", None, jnp.zeros(()), encodings, SHORT, KEY, carry=0.0)


def test_a_fit_that_blows_up_names_the_setting_of_the_prior(encodings):
    with pytest.raises(InputError) as stopped:
        fitting.minimise(
            "mine",
            lambda params, z, key: params / 0.0,
            jnp.ones(()),
            encodings,
            SHORT,
            KEY,
        )
    message = str(stopped.value)
    assert message.startswith("prior mine: the loss is inf at step 0")
    assert "training.learning_rate of its settings" in message


def test_every_held_out_encoding_is_scored(encodings, monkeypatch):
    monkeypatch.setattr(fitting, "VALID_BATCH_SIZE", 2)
    few = encodings._replace(valid=jnp.arange(14.0).reshape(7, 1, 2) ** 2)

    def score(params, z, key):
        del key
        return params * jnp.mean(z)

    task = fitting._task("x", score, score, None, few, (), SHORT, KEY)
    state = fitting.State(0, jnp.ones(()), None, jnp.zeros(()), jnp.inf)
    state, metrics = task.validate(state, task.data)
    assert float(metrics["loss"]) == pytest.approx(float(np.mean(few.valid)))
    assert float(state.best_params) == 1.0


# r(z) = exp(TILT . z) makes N(TILT, I) of N(0, I), with log Z = |TILT|^2 / 2.


def test_weights_have_the_mean_z(key):
    weights = jnp.exp(reweighted().log_z_weights(jax.random.split(key, 100_000)))
    z = math.exp(suite.TILTED_GAIN)
    std = z * math.sqrt(math.expm1(2 * suite.TILTED_GAIN))
    assert_mean(weights, z, std)
    with pytest.raises(AssertionError):
        assert_mean(weights, 1.1 * z, std)
    np.testing.assert_allclose(
        np.asarray(reweighted().log_prob(jnp.zeros((1, 2)))),
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
    suite.assert_recovers_tilt(reweighted(**sampling), key, bias, NUMBER)


@pytest.mark.parametrize("num_mala_steps", [0, 10])
def test_a_pool_follows_the_stages_so_far(num_mala_steps, key):
    settings = multistage.Settings(
        num_proposals=100_000, num_draws=40_000, num_mala_steps=num_mala_steps
    )
    prior = reweighted(method="mala", num_steps=num_mala_steps, step_size=0.3)
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
        monkeypatch.setattr(ebm, "RatioMLP", lambda *args: Tilt())
        settings(KEY, encodings)
        z = suite.tilted().valid.reshape(-1, 2)
        z = jnp.tile(z - jnp.mean(z, 0)[None] + jnp.asarray(suite.TILT)[None], (5, 1))
        difference = seen["loss"](jnp.asarray(suite.TILT), z, KEY, suite.BASE)
        scale = math.sqrt(2 * suite.TILTED_GAIN)  # the deviation of log r
        assert abs(difference) < scale * (5.4 / math.sqrt(len(z)) + bias)


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


def test_trs_estimates_the_density_of_lars(key):
    lars, trs = KNOWN["lars"], dataclasses.replace(KNOWN["trs"], num_draws=16)
    z = 2.0 * jax.random.normal(key, (5, 2))
    keys = jax.random.split(key, 10_000)
    logs = jax.jit(jax.vmap(lambda k: trs.log_prob(z, k)))(keys)
    ratio = jnp.exp(logs - lars.log_prob(z)[None])
    # One choice of 3 refused draws has a relative deviation below 1, the mean over all
    # choices of 16 less.
    for b in range(5):
        assert_mean(ratio[:, b], 1.0, std=1.0)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * ratio[:, b], 1.0, std=1.0)
    assert jnp.mean(logs) < jnp.mean(lars.log_prob(z))  # so it is a lower bound
    with pytest.raises(InputError, match="num_draws = 2 "):
        rejection.TRSSettings(num_attempts=4, num_draws=2)


def test_snis_is_capped_at_its_number_of_proposals(key):
    z = 10.0 * jax.random.normal(key, (100, 2))
    prior = snis.SNIS(suite.BASE, jnp.array([5.0, 0.0]), Tilt(), 8, num_sets=3)
    excess = prior.log_prob(z, key) - suite.BASE.log_prob(z)
    assert float(jnp.max(excess)) == pytest.approx(math.log(8), abs=1e-3)
    flat = dataclasses.replace(prior, params=jnp.zeros(2))
    np.testing.assert_allclose(
        flat.log_prob(z, key), suite.BASE.log_prob(z), rtol=1e-5, atol=1e-5
    )


def test_his_starts_at_its_base(encodings, key, monkeypatch):
    """Before training the dynamics keep p, but for an error of the step's square."""
    monkeypatch.setattr(his, "minimise", lambda name, loss, start, *args, **kw: start)
    errors = []
    for step in (0.2, 0.1):
        prior = his.Settings(step_size=step, num_steps=4)(KEY, encodings)
        z = suite.BASE.sample(jax.random.split(key, 2_000))
        moved, _ = prior.forward(z, jnp.ones_like(z))
        assert float(jnp.max(jnp.abs(moved - z))) > step
        error = prior.log_prob(z, key) - suite.BASE.log_prob(z)
        errors.append(float(jnp.sqrt(jnp.mean(error**2))))
    assert errors[0] < 0.02 and errors[1] < errors[0] / 3


def test_the_dynamics_of_his_have_an_inverse_and_keep_volumes(key):
    prior = a_his()
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


def test_the_density_of_his_is_that_of_its_draws(key):
    """Draws weighed by the estimate say what the sampler's own draws say."""
    prior, wide = a_his(), Gaussian(jnp.array([0.0, 0.5]), jnp.array([1.6, 3.8]))
    keys = jax.random.split(key, 40_000)
    u = wide.sample(keys)
    estimates = jax.jit(jax.vmap(lambda k: prior.log_prob(u, k)))(keys[:16])
    log_w = log_mean_exp(estimates) - wide.log_prob(u)
    weights = np.exp(np.asarray(log_w, np.float64))
    assert weights.std() < 2.0
    assert_mean(weights, 1.0, std=2.0)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * weights, 1.0, std=2.0)
    z = np.asarray(jax.jit(prior.sample)(keys))
    for is_in in (lambda v: v[:, 0] > 0.3, lambda v: v[:, 1] > 0.3):
        assert_mean(weights * is_in(np.asarray(u)) - is_in(z), 0.0, std=2.0)


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


def test_log_z_is_known_better_from_proposals_near_the_target(key):
    keys, direct = jax.random.split(key, 5_000), reweighted()
    near = Gaussian(jnp.asarray(suite.TILT), jnp.ones(2))
    proposed = ncp.Pooled(direct, near, jnp.asarray(1.0), 10)
    spread, exact = np.asarray(direct.log_z_weights(keys)).std(), suite.TILTED_GAIN
    np.testing.assert_allclose(proposed.log_z_weights(keys), exact, atol=1e-5)
    assert spread > 0.5


def normal(*mean):
    return Gaussian(jnp.asarray(mean), jnp.ones(2))


@pytest.mark.parametrize("weight", [0.25, 1.0, 1.5])
def test_a_pool_of_two_normals_is_the_normal_between_them(weight, key):
    """N(a, I)^w N(b, I)^(1 - w) = Z N(w a + (1 - w) b, I)."""
    first, second = normal(1.0, 0.0), normal(0.0, 1.0)
    pool = ncp.Pooled(first, second, jnp.asarray(weight), 500)
    between = normal(weight, 1.0 - weight)
    log_z = -0.5 * weight * (1.0 - weight) * 2.0
    z = jax.random.normal(key, (100, 2))
    expected = between.log_prob(z) + log_z
    np.testing.assert_allclose(pool.log_prob(z), expected, rtol=1e-5, atol=1e-5)
    of_weights = pool.log_z_weights(jax.random.split(key, 100_000))
    np.testing.assert_allclose(log_mean_exp(of_weights), log_z, atol=0.02)
    draws = np.asarray(pool.sample(jax.random.split(key, 2_000)))
    assert_mean(draws - np.asarray(between.mean), 0.0, 1.0)


@pytest.mark.parametrize("best", [0.0, 0.3, 0.8, 1.0])
def test_the_weight_of_a_pool_is_the_one_that_held_out_encodings_gain_by(best, key):
    """Of normals of one covariance the best pool is the one whose mean is that of q."""
    z = normal(best, -best).sample(jax.random.split(key, 20_000))[None]
    encodings = suite.mixture()._replace(valid=z)
    settings = ncp.PooledSettings(
        lambda *_: normal(1.0, -1.0), lambda *_: normal(0.0, 0.0)
    )
    found = settings(key, encodings).weight
    np.testing.assert_allclose(found, best, atol=0.051)


def test_a_pool_without_its_first_is_its_second(key):
    """Also where the first has no density at all."""
    second = normal(0.0, 0.0)
    nowhere = dataclasses.replace(reweighted(), base=normal(jnp.inf, 0.0))
    pool = ncp.Pooled(nowhere, second, jnp.asarray(0.0), 5)
    z = jax.random.normal(key, (10, 2))
    np.testing.assert_array_equal(pool.log_prob(z), second.log_prob(z))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            lambda *_: snis.SNIS(Gaussian(jnp.zeros(2), jnp.ones(2)), {}, None, 2),
            lambda *_: normal(0.0, 0.0),
            "only one that is exact, or exact up to log Z, can be pooled",
        ),
        (
            lambda *_: reweighted(),
            lambda *_: reweighted(),
            "only an exact one can propose",
        ),
    ],
)
def test_densities_are_pooled_that_are_known_up_to_z(first, second, message):
    settings = ncp.PooledSettings(first, second)
    with pytest.raises(InputError, match=message):
        settings(KEY, suite.tilted())
