"""The configs of RAE's autoencoders: their kinds, and runs of smoke size."""

import json
import math
import types

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import sample_stage, stages
from ncp_jax.experiment.setup import (
    architectures,
    budget,
    config_files,
    presets,
    validation,
    wiring,
)
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.training.run_log import read_metrics
from tests import tiny
from tests.experiment.setup.test_nvae_configs import write_celeba

NAMES = ("mnist_rae", "cifar10_rae", "celeba64_rae")
KINDS = ("vae", "wae", "rae", "rae_l2", "rae_gp", "rae_sn", "ae", "two_stage")
# Published: of |z|^2; of MMD, kernels or slopes; of the KL of the VAE.
WEIGHTS = {
    "mnist_rae": {
        "rae": (5e-4, 0.0),
        "rae_l2": (1e-4, 1e-7),
        "rae_gp": (1e-4, 5e-8),
        "rae_sn": (9e-3, 0.0),
        "wae": (0.0, 3e-2),
        "ae": (0.0, 0.0),
        "vae": 0.312,
    },
    "cifar10_rae": {
        "rae": (1e-2, 0.0),
        "rae_l2": (1e-3, 1e-6),
        "rae_gp": (9e-4, 0.0),
        "rae_sn": (3e-2, 0.0),
        "wae": (0.0, 6e-3),
        "ae": (0.0, 0.0),
        "vae": 0.024,
    },
    "celeba64_rae": {
        "rae": (1e-4, 0.0),
        "rae_l2": (1e-4, 1e-7),
        "rae_gp": (1e-4, 1e-7),
        "rae_sn": (2.4e-3, 0.0),
        "wae": (0.0, 100.0),
        "ae": (0.0, 0.0),
        "vae": 0.09024,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_has_its_published_weights(name, kind):
    config = config_files.load(name, kind)
    validation.validate(config)
    wiring.check_networks(config)
    model, is_vae = config.vae.model, kind in ("vae", "two_stage")
    assert model.kind == ("vae" if is_vae else kind)
    assert model.is_std_learned == (kind == "two_stage")
    if is_vae:
        variance = config.data.shape[-1] * WEIGHTS[name]["vae"] / 2
        assert model.likelihood_std == pytest.approx(math.sqrt(variance))
    else:
        found = (model.embedding_weight, model.regularizer_weight)
        assert found == WEIGHTS[name][kind]
    assert tuple(config.compare.names) == presets.ON_AUTOENCODERS
    assert (config.compare.num_encodings == 1) == (not is_vae)
    assert config.evaluate.fid_reference == "test"
    assert config.compare.num_samples == config.evaluate.fid_num_images == 10_000
    small = config_files.load(name, f"smoke_{kind}")
    validation.validate(small)
    assert small.vae.model.channels == 2 and small.vae.num_steps == 60
    assert small.vae.model.kind == model.kind and small.data == config.data


@pytest.mark.parametrize("name", NAMES)
def test_the_vae_is_the_default_and_other_words_are_refused(name):
    plain = config_files.load(name, "vae").to_dict()
    assert config_files.load(name).to_dict() == plain
    with pytest.raises(
        InputError, match=r"'rae_l1': there are vae, wae, rae, .*smoke_"
    ):
        config_files.load(name, "rae_l1")


@pytest.mark.parametrize(
    ("name", "num_proposals"), [("cifar10_rae", 200), ("celeba64_rae", 5_000)]
)
def test_the_mixture_of_many_latents_has_ten_components(name, num_proposals):
    priors = config_files.load(name).compare.priors
    assert priors.gmm.num_components == (10,)
    assert priors.ncp_over_gmm.base.num_components == (10,)
    assert priors.ncp_over_gmm.sampling.num_proposals == num_proposals


def test_celeba_is_as_in_table_1():
    config = config_files.load("celeba64_rae")
    assert (config.data.crop, tuple(config.data.shape)) == ("rae", (64, 64, 3))
    model = config.vae.model
    assert (model.latent_dim, model.channels, model.kernel_size) == (64, 128, 5)
    assert (model.max_log_std, model.is_centred) == (5.0, False)
    assert config.vae.batch_size == 1_000 and config.vae.learning_rate == 1e-4
    other = config_files.load("celeba64_rae", "rae_sn")
    assert other.vae.batch_size == 100 and other.vae.learning_rate == 1e-3
    wae = config_files.load("celeba64_rae", "wae").vae.model
    assert wae.reconstruction_weight == 0.05 * 64 * 64 * 3
    assert wae.input_noise == 0.01
    assert config_files.load("celeba64_rae", "rae_l2").vae.model.has_dense_penalty


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vae", {"model.embedding_weight": 0.1}, r"embedding_weight = 0\.1 .* 'vae'"),
        ("ae", {"model.regularizer_weight": 0.1}, r"regularizer_weight = 0\.1 .* 'ae'"),
        ("wae", {"model.embedding_weight": 0.1}, r"embedding_weight = 0\.1 .* 'wae'"),
        ("vae", {"model.reconstruction_weight": 50.0}, "reconstruction_weight = 50"),
        ("rae_gp", {"model.has_dense_penalty": True}, "has_dense_penalty = True"),
        ("wae", {"model.max_log_std": 3.0}, r"max_log_std = 3.* make it 1\.0"),
        ("wae", {"model.likelihood_std": 0.1}, r"likelihood_std = 0\.1"),
        ("vae", {"kl_constant_fraction": 0.1}, "there is none"),
        ("vae", {"final_learning_rate": 0.1}, r"vae\.final_learning_rate is where"),
        ("rae", {"model.is_std_learned": True}, r"is_std_learned .* 'rae'"),
        ("ae", {"kl_warmup_fraction": 0.1}, r"weigh a KL, which .* 'ae' does not"),
        ("vae", {"model.likelihood": "bernoulli"}, r"likelihood must be one of"),
        ("vae", {"model.kind": "beta"}, r"kind must be one of .*got 'beta'"),
    ],
)
def test_settings_without_effect_are_refused(kind, changes, message):
    config = config_lib.default(vae="rae")
    config.vae.model.kind = kind
    fields = {f"vae.{field}": value for field, value in changes.items()}
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        validation.validate(config)


def test_endless_doublings_are_counted_before_anything_is_built():
    config = config_lib.default(vae="rae")
    config.vae.model.num_doublings = 10**6
    with pytest.raises(InputError, match=r"num_doublings = 1000000 makes a network"):
        budget.check(config)


def small(**changes):
    """A deterministic autoencoder of the digits."""
    config = presets.variant(config_lib.default(vae="rae"), "smoke")
    config.data.binarization = "none"
    config.vae.model.update(kind="rae_gp", embedding_weight=0.1, regularizer_weight=0.1)
    config.vae.model.update(latent_dim=3, num_doublings=1, channels=1)
    config.update_from_flattened_dict(
        {name: value for name, value in tiny.SETTINGS.items() if "model" not in name}
    )
    config.update(changes)
    return config


def test_vamp_is_refused_before_anything_is_trained(tmp_path):
    config = small(compare={"names": ("gaussian", "vamp")})
    with pytest.raises(InputError, match=r"'vamp' is a mixture of q.*'rae'"):
        stages.run(config, tmp_path / "run", "all")
    assert not (tmp_path / "run" / "vae").exists()


def test_its_batch_norm_is_not_readjusted():
    config = small(sample={"num_readjust_iterations": 3})
    model = config.vae.model
    module = architectures.build_vae(model, config.data.shape, config.data.num_bits)
    frozen = FrozenVAE(module, {"params": {}, "batch_stats": {}})
    ncp = NCPPrior(frozen, MLPDiscriminator(), ())
    experiment = types.SimpleNamespace(config=config)
    with pytest.raises(InputError, match=r"of the model 'nvae'; that of 'rae'"):
        sample_stage.readjusted(experiment, ncp)


@pytest.mark.slow
def test_a_point_passes_all_stages_and_says_what_it_has_not(tmp_path, capsys):
    """Stage 2, samples and evaluation; then its priors side by side."""
    config, workdir = small(), tmp_path / "run"
    config.sample.samplers = ("sir",)
    stages.run(config, workdir, "all")
    results = json.loads((workdir / "results.json").read_text())
    metrics = results["metrics"]
    assert results["run"]["wall_seconds"].keys() == {"vae", "ncp", "sample", "evaluate"}
    assert {"log_z", "nce_loss", "mmd_sir", "nearer_than_held_out_sir"} <= {*metrics}
    assert not [n for n in metrics if n.startswith(("nll", "elbo", "gain"))]
    assert all(np.isfinite(metric["value"]) for metric in metrics.values())
    assert "No likelihoods" in results["likelihoods"]["none"]
    assert "No likelihoods and no gains" in capsys.readouterr().out
    page = (workdir / "report" / "index.html").read_text()
    assert "No likelihoods and no gains" in page and "loss (nats)" not in page
    logged = [r for r in read_metrics(workdir / "metrics.jsonl") if r["stage"] == "vae"]
    names = {"loss", "reconstruction", "embedding", "decoder_slope"}
    assert all(
        names <= record.keys() for record in logged if record["split"] == "train"
    )
    assert all("kl" not in record for record in logged)
    config.compare.update(names=("gaussian", "ncp"), max_steps=20)
    stages.run(config, workdir, "compare")
    compared = json.loads((workdir / "results.json").read_text())["priors"]
    assert compared["nll_base"] is None
    assert "point" in compared["about"]["likelihoods"]
    found = {name: each["metrics"] for name, each in compared["priors"].items()}
    assert found.keys() == {"gaussian", "ncp"} and "log_z" in found["ncp"]
    assert not {"gain", "nll"} & {*found["gaussian"], *found["ncp"]}
    assert {"mmd", "nearer_than_held_out"} <= found["gaussian"].keys()
    page = (workdir / "report" / "priors.html").read_text()
    assert "No likelihoods and no gains" in page and "NLL is" not in page


@pytest.mark.slow
def test_celeba_passes_on_files_of_its_own_format(tmp_path):
    """The VAE of Table 1 in small, and NCP over the mixture."""
    write_celeba(tmp_path / "data")
    config, workdir = config_files.load("celeba64_rae", "smoke"), tmp_path / "run"
    config.data.dir = str(tmp_path / "data")
    config.vae.update(batch_size=4, num_steps=4, steps_per_dispatch=2, steps_per_eval=4)
    config.ncp.batch_size = 4
    config.compare.update(
        names=("gmm", "ncp_over_gmm"),
        max_steps=4,
        max_examples=4,
        num_samples=20,
        num_importance_samples=4,
    )
    stages.run(config, workdir, "all")
    compared = json.loads((workdir / "results.json").read_text())["priors"]
    assert compared["priors"].keys() == {"gmm", "ncp_over_gmm"}
    for each in compared["priors"].values():
        assert np.isfinite(each["metrics"]["nll"]["value"])
    assert "<html" in (workdir / "report" / "priors.html").read_text()
