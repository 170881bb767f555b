"""Energies of pictures in a run: trained, drawn from, measured; what is refused."""

import json
import types

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import schema, validation
from ncp_jax.experiment.setup.workdir import SECTIONS
from ncp_jax.experiment.vaebm import energies
from ncp_jax.nested import flatten
from ncp_jax.priors.pixel_energy.settings import Settings
from tests import tiny

SAMPLERS = ("sir", "vaebm", "sirvaebm")


def test_every_setting_of_an_energy_is_one_of_the_run():
    config = config_lib.default()
    settings = {field: config.vaebm[field] for field in energies.FIELDS}
    assert Settings(**settings) == Settings()
    assert set(config.vaebm) - set(energies.FIELDS) == {"num_proposals", "num_starts"}


def test_older_runs_keep_what_they_have():
    """Whoever has no energies is told nothing of them."""
    config = config_lib.as_json(config_lib.default())
    older = {name: part for name, part in config.items() if name != "vaebm"}
    for sections in SECTIONS.values():
        if sections != SECTIONS["vaebm"]:
            found = config_lib.fingerprint(config, sections)
            assert found == config_lib.fingerprint(older, sections)
    config["vaebm"]["step_size"] = 0.5
    changed = config_lib.changes(older, config, SECTIONS["sample"])
    assert changed == {"vaebm.step_size": (Settings().step_size, 0.5)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vaebm.replay_share": 1.5}, "vaebm.replay_share is a share, at most 1"),
        ({"vaebm.ema_decay": 1.0}, "vaebm.ema_decay must be below 1"),
        ({"vaebm.num_valid": 1}, "vaebm.num_valid must be 2 or more"),
        ({"vaebm.step_size": 0.0}, "vaebm.step_size must be finite and positive"),
        (
            {"vaebm.replay_share": 0.5, "vaebm.num_chains": 3},
            "num_chains = 3 are fewer than the batch_size = 64",
        ),
        (
            {"sample.samplers": ("vaebm",), "data.binarization": "fixed"},
            "'vaebm' learns from grey pictures",
        ),
    ],
)
def test_what_an_energy_cannot_be(changes, message):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        validation.validate(schema.checked(config))


def test_a_run_without_such_samplers_has_nothing_to_train():
    experiment = types.SimpleNamespace(config=config_lib.default())
    with pytest.raises(InputError, match="names none of vaebm, sirvaebm"):
        energies.train(experiment)


@pytest.mark.slow
def test_a_run_with_energies(tmp_path):
    config = tiny.config()
    config.sample.samplers = SAMPLERS
    config.evaluate.update(num_mmd_samples=0)
    for stage in ("vae", "ncp"):
        stages.run(config, tmp_path, stage)
    with pytest.raises(InputError, match="run --stage=vaebm first"):
        stages.run(config, tmp_path, "sample")
    stages.run(config, tmp_path, "all")
    drawn = {
        name: np.load(tmp_path / "samples" / f"{name}.npz")["images"]
        for name in ("base", *SAMPLERS)
    }
    assert len({images.tobytes() for images in drawn.values()}) == 4
    results = json.loads((tmp_path / "results.json").read_text())
    found = dict(flatten(results["metrics"]))
    for name in ("vaebm", "sirvaebm"):
        assert found[f"{name}_pixel_change.value"] > 0
        assert found[f"nearer_than_held_out_{name}.n"] > 0
        assert (tmp_path / "samples" / f"{name}.png").exists()
    weights = results["run"]["stages"]["sample"]["weights"]
    assert set(weights) == {"vae", "ncp", "vaebm", "sirvaebm"}
    assert "NCP by SIR, then VAEBM" in (tmp_path / "report/index.html").read_text()
    stages.run(config, tmp_path, "vaebm")  # there is nothing left to train
    again = json.loads((tmp_path / "results.json").read_text())["run"]["wall_seconds"]
    assert again == results["run"]["wall_seconds"]
