"""Every prior with a density of its own passes the suite; a small fit of each."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import (
    autoregressive,
    diffusion,
    flow,
    gaussian,
    gmm,
    two_stage,
    vamp,
)
from ncp_jax.priors.ex_post.contract import LatentPrior, Training
from tests.priors.ex_post import suite

KEY = jax.random.key(0)


class Case(NamedTuple):
    """A fit of the mixture of `suite`, small."""

    settings: object
    tolerance: float | None  # nats of KL(q || p); None: the mixture is beyond it
    bias: float = 0.0  # of an estimated density


class Fitted(NamedTuple):
    """What came of a case."""

    case: Case
    prior: LatentPrior
    folder: Path  # of checkpoints


def brief(num_steps, learning_rate=1e-2):
    return Training(num_steps, 512, learning_rate, steps_per_eval=num_steps // 2)


CASES = {
    "gaussian": Case(gaussian.Settings(), None),
    "gmm": Case(gmm.Settings((2, 3)), 0.02),
    "vamp": Case(vamp.Settings(20, brief(200, 2e-2)), 0.05),
    "flow": Case(flow.Settings(2, (32,), 8, brief(200)), 0.1),
    "autoregressive": Case(autoregressive.Settings((32,), 6, brief(200)), 0.05),
    "autoregressive_ensemble": Case(
        autoregressive.EnsembleSettings(
            2, autoregressive.Settings((32,), 6, brief(100, 2e-2))
        ),
        0.05,
    ),
    "two_stage": Case(two_stage.Settings((32,), 100, brief(400, 2e-2)), 0.2, 0.01),
    "diffusion": Case(diffusion.Settings(32, 15, brief(300)), 0.07),
}
TILTED = {
    "gmm": gmm.Settings((1,)),
    "vamp": vamp.Settings(20, brief(100, 2e-2)),
    "flow": flow.Settings(2, (8,), 4, brief(20)),
    "autoregressive": autoregressive.Settings((8,), 3, brief(60)),
    "autoregressive_ensemble": autoregressive.EnsembleSettings(
        2, autoregressive.Settings((8,), 3, brief(60))
    ),
    "two_stage": two_stage.Settings((8,), 10, brief(200)),
    "diffusion": diffusion.Settings(8, 10, brief(20)),
}


@pytest.fixture(scope="module")
def encodings():
    return suite.mixture()


@pytest.fixture(scope="module", params=CASES)
def fitted(request, encodings, tmp_path_factory):
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "fit"
    return Fitted(case, case.settings(KEY, encodings, folder), folder)


def test_it_is_a_prior(fitted):
    assert isinstance(fitted.prior, LatentPrior)
    is_bound = fitted.case.bias > 0
    assert fitted.prior.density == ("lower bound" if is_bound else "exact")


def test_samples_follow_the_density(fitted, key):
    suite.assert_samples_follow_density(fitted.prior, key, fitted.case.bias)


def test_draws_own_their_keys(fitted, key):
    suite.assert_draws_own_their_keys(fitted.prior, key)


def test_it_compiles_once(fitted, key):
    suite.assert_compiles_once(fitted.prior, key)


def test_the_density_has_gradients(fitted, key):
    suite.assert_density_has_gradients(fitted.prior, key)


def test_a_known_mixture_is_recovered(fitted, key):
    if fitted.case.tolerance is None:
        nats, _ = suite.excess(fitted.prior, key)
        assert nats > 0.3  # what there is to gain, many times every tolerance
    else:
        suite.assert_recovers_mixture(fitted.prior, key, fitted.case.tolerance)


def test_a_stopped_fit_resumes_to_the_same_bits(fitted, encodings, monkeypatch):
    case, prior, folder = fitted
    suite.assert_resumes(case.settings, KEY, encodings, folder, prior, monkeypatch)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vamp", {"num_components": 10}),
        ("flow", {"num_couplings": 3}),
        ("autoregressive", {"num_components": 2}),
        ("two_stage", {"hidden_dims": (16,)}),
        ("diffusion", {"width": 16}),
    ],
)
def test_a_fit_of_other_settings_is_refused(name, change, tmp_path):
    encodings = suite.tilted()
    fit = dataclasses.replace(TILTED[name], training=brief(2))
    fit(KEY, encodings, tmp_path)
    with pytest.raises(InputError, match="another settings"):
        dataclasses.replace(fit, **change)(KEY, encodings, tmp_path)


def test_a_mixture_of_points_is_refused():
    of = suite.tilted()
    points = of._replace(posterior=Normal(of.posterior.mean, 0 * of.posterior.std))
    with pytest.raises(InputError, match="its std must be above 0"):
        TILTED["vamp"](KEY, points)


@pytest.mark.parametrize("name", TILTED)
def test_a_tilted_gaussian_is_recovered(name, key):
    prior = TILTED[name](KEY, suite.tilted())
    suite.assert_recovers_tilt(prior, key, tolerance=0.05)
