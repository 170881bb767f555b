"""`config.vae.prior`: what it refuses, and one run that trains and is measured."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import one_vector
from ncp_jax.errors import InputError
from ncp_jax.experiment import compare_stage, stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import validation
from ncp_jax.models.base import FrozenVAE
from ncp_jax.priors.ex_post.vamp import DiagonalMixture
from tests import tiny
from tests.experiment.test_compare_stage import SMALL


def with_prior(name, **settings):
    config = tiny.config(**settings)
    config.vae.prior = name
    config.vae.prior_settings.update(
        num_proposals=16, num_draws=64, num_z_draws=500, num_components=6
    )
    return config


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lars", {"sample.samplers": ("sir", "mala")}, "samplers = .* has not"),
        ("vamp", {"ncp.standardize": True}, "ncp.standardize = True is of a normal"),
        ("vamp", {"ncp.directions.cap": 4}, "directions.cap = 4 is of a normal"),
        ("lars", {"sample.temperature": 0.7}, "sample.temperature = 0.7"),
        ("lars", {"vae.prior_settings.acceptance": 1.0}, "must be below 1"),
        ("snis", {"vae.prior_settings.num_proposals": 1}, "2 or more"),
        ("flow", {}, "config.vae.prior must be one of .*'vamp'"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, values, message):
    config = with_prior(name)
    config.update_from_flattened_dict(values)
    with pytest.raises(InputError, match=message):
        validation.validate(config)


def test_models_of_several_groups_are_refused():
    config = config_lib.default("ladder")
    config.vae.prior = "vamp"
    with pytest.raises(InputError, match=r"for the model 'mlp'.*'ladder'"):
        validation.validate(config)


def test_stage_two_on_a_bound_is_refused_before_anything_is_trained(tmp_path):
    for stage in ("all", "ncp", "evaluate"):
        with pytest.raises(InputError, match=r"'snis' has a bound.*gaussian"):
            stages.run(with_prior("snis"), tmp_path / "run", stage)
    validation.check_stage(with_prior("snis"), "vae")
    validation.check_stage(with_prior("snis", compare=SMALL), "all")
    validation.check_stage(with_prior("lars"), "ncp")
    with pytest.raises(InputError, match="benchmark times samplers on a normal"):
        validation.check_stage(with_prior("lars"), "benchmark")
    assert not (tmp_path / "run").exists()


def test_pseudo_inputs_start_at_examples_of_the_training_set(tmp_path):
    experiment = tiny.experiment(tmp_path, with_prior("vamp"))
    variables = experiment.initial_variables()
    inputs = jax.nn.sigmoid(variables["params"]["pseudo_inputs"])
    stored = (np.asarray(inputs) - 0.05) / 0.9
    train = experiment.dataset.train / 255.0
    for one in stored:
        assert np.abs(train - one[None]).max((1, 2, 3)).min() < 1e-5
    model = one_vector.of(FrozenVAE(experiment.vae_module, variables))
    base = jax.jit(one_vector.OneVector.base)(model)
    assert isinstance(base, DiagonalMixture) and base.means.shape == (6, 3)
    q = model.posterior(jnp.asarray(inputs))
    np.testing.assert_allclose(base.means, q.mean, rtol=1e-4, atol=1e-6)
    experiment.workdir.close()


def test_priors_that_reweight_a_bound_are_refused(tmp_path):
    config = with_prior("snis", compare={**SMALL, "names": ("gaussian", "lars")})
    experiment = tiny.experiment(tmp_path, config)
    with pytest.raises(InputError, match=r"'lars' reweights.*only a bound"):
        compare_stage.check(experiment)
    experiment.config.compare.names = ("gaussian", "gmm", "ncp_over_gmm")
    compare_stage.check(experiment)
    experiment.workdir.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snis", "lars", "vamp"])
def test_a_learned_prior_is_trained_and_measured(name, tmp_path):
    """Its row has a likelihood and draws; what it is stands in the results."""
    config = with_prior(name, compare=SMALL)
    stages.run(config, tmp_path, "all")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["run"]["stages"]["vae"]["config"]["vae"]["prior"] == name
    found, about = results["priors"]["priors"], results["priors"]["about"]
    assert list(found) == [f"joint_{name}"] and about["stage_1_prior"] == name
    (row,) = found.values()
    assert row["density"] == about["stage_1_density"]
    assert row["density"] == ("lower bound" if name == "snis" else "exact")
    assert row["metrics"]["nll"]["value"] > 0 == row["metrics"]["gain"]["value"]
    assert ("stage_1_log_z_stderr" in about) == (name == "lars")
    stages.run(config, tmp_path, "all")  # nothing is left to be done


@pytest.mark.slow
def test_stage_two_reweights_a_learned_prior(tmp_path):
    config = with_prior("lars")
    config.sample.num_images = 4
    stages.run(config, tmp_path, "all")
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert {"nll_base", "nll_ncp", "log_z", "sir_ess"} <= metrics.keys()
