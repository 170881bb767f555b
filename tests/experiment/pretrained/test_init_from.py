"""`config.vae.init_from`: stage 1 begins at the weights of a file."""

import json
import re
import shutil

import numpy as np
import pytest

import ncp_jax
from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.records import weights_file
from ncp_jax.training.checkpoint_records import read_record
from tests.experiment.pretrained.digits import config, edit, main

OF_WEIGHTS = "--config.export.format=weights"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What 20 steps of stage 1 left, as a file."""
    folder = tmp_path_factory.mktemp("weights")
    run = f"--workdir={folder / 'run'}"
    assert main("--stage=vae", run) == 0
    file = f"--config.export.file={folder / 'first.npz'}"
    assert main("--stage=export", OF_WEIGHTS, file, run) == 0
    return folder / "first.npz"


@pytest.fixture(scope="module")
def begun(weights, tmp_path_factory):
    """(settings, workdir) of 20 more, at a rate that falls to zero."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    settings = config(init_from=str(weights), schedule="cosine", learning_rate=1e-4)
    stages.run(settings, workdir, "vae")
    return settings, workdir


def exported(settings, workdir, file):
    """The record and the arrays of the best weights of a run."""
    settings = settings.copy_and_resolve_references()
    settings.export.update(format="weights", file=str(file))
    stages.run(settings, workdir, "export")
    return weights_file.read(file)


def test_the_first_update_is_of_the_weights_of_the_file(weights, tmp_path):
    """An update of Adam moves no weight by much more than the learning rate."""
    rate = 1e-6
    settings = config(init_from=str(weights), num_steps=1, learning_rate=rate)
    settings.vae.update(warmup_steps=0, ema_decay=0.0)
    stages.run(settings, tmp_path / "run", "vae")
    _, before = weights_file.read(weights)
    _, after = exported(settings, tmp_path / "run", tmp_path / "moved.npz")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=2 * rate)
    assert any(np.any(after[name] != before[name]) for name in before)


def test_it_is_another_training(begun, weights, tmp_path):
    """Steps, rate and optimiser begin anew; the record says from where."""
    settings, workdir = begun
    record, _ = exported(settings, workdir, tmp_path / "second.npz")
    first = weights_file.read_record(weights)
    assert (record.config.vae["schedule"], record.config.vae["num_steps"]) == (
        "cosine",
        settings.vae.num_steps,
    )
    assert record.init_from == first.sha256[:16] and first.init_from is None
    assert record.held_out_loss < first.held_out_loss
    origin = json.loads((workdir / "vae" / "taken_over.json").read_text())
    assert origin["init_from"] == str(weights)
    assert origin["record"]["sha256"] == first.sha256


def test_a_stopped_one_goes_on_to_the_same_bits(begun, tmp_path, capsys):
    settings, workdir = begun
    run = shutil.copytree(workdir, tmp_path / "run")
    folder = run / "vae" / "checkpoints"
    last = str(settings.vae.num_steps)
    before = read_record(folder / last)["sha256"]
    shutil.rmtree(folder / last)
    stages.run(settings, run, "vae")
    shown = capsys.readouterr().out
    assert "vae: continues from step" in shown and "begins at" not in shown
    assert read_record(folder / last)["sha256"] == before


def test_one_that_goes_on_without_the_flag_keeps_its_origin(begun, tmp_path):
    """The next save lost it, so that the record said nothing of the file."""
    settings, workdir = begun
    run = shutil.copytree(workdir, tmp_path / "run")
    folder = run / "vae" / "checkpoints"
    last = str(settings.vae.num_steps)
    before = read_record(folder / last)
    shutil.rmtree(folder / last)
    settings = settings.copy_and_resolve_references()
    settings.vae.init_from = ""
    stages.run(settings, run, "vae")
    after = read_record(folder / last)
    assert after["vae.init_from"] == before["vae.init_from"]
    assert after["sha256"] == before["sha256"]


def test_a_begun_one_needs_its_file_no_more(begun, tmp_path, weights):
    """It was wanted for ever, to be hashed, by who only loads the run, too."""
    settings, workdir = begun
    run = shutil.copytree(workdir, tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    content["vae"]["init_from"] = str(tmp_path / "gone.npz")
    (run / "config.json").write_text(json.dumps(content))
    ncp_jax.load(run, "vae")
    settings = settings.copy_and_resolve_references()
    settings.vae.init_from = str(tmp_path / "gone.npz")
    stages.run(settings, run, "vae")
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name.replace("first", "gone"))
    with (tmp_path / "gone.npz").open("ab") as file:
        file.write(b"other bytes")
    with pytest.raises(InputError, match=r"another vae\.init_from"):
        ncp_jax.load(run, "vae")


def test_its_weights_are_a_stage_1_for_others(begun, tmp_path, capsys):
    """By the file that it exports, and by its folder."""
    settings, workdir = begun
    file = tmp_path / "second.npz"
    exported(settings, workdir, file)
    stages.run(config(pretrained=str(file)), tmp_path / "by_file", "import")
    other = config(schedule="cosine", learning_rate=1e-4, workdir=str(workdir))
    stages.run(other, tmp_path / "by_folder", "vae")
    assert f"vae: taken over from {workdir}" in capsys.readouterr().out


def test_it_may_be_of_other_data(weights, tmp_path):
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)

    def others(record):
        record["config"]["data"]["name"] = record["data"]["name"] = "fashion_mnist"
        record["data"]["splits"]["train"]["sha256"] = "0"

    edit(tmp_path / "first.json", others)
    settings = config(init_from=str(tmp_path / "first.npz"))
    stages.run(settings, tmp_path / "run", "vae")


REFUSALS = {
    "no such file": ([("init_from", "x.npz")], "no name of weights.*format=weights"),
    "other model": ([("model.latent_dim", 4)], "is another model .*latent_dim is"),
    "two origins": ([("pretrained", "mnist_mlp")], "give one of them"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_does_not_fit_is_one_sentence(kind, weights, tmp_path, capsys):
    changes, message = REFUSALS[kind]
    given = {"init_from": weights} | dict(changes)
    flags = [f"--config.vae.{name}={value}" for name, value in given.items()]
    assert main(*flags, f"--workdir={tmp_path / 'run'}", "--stage=vae") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and re.search(message, line), line
    assert not [*tmp_path.glob("run/vae/checkpoints/[0-9]*")]


def test_the_state_of_a_training_is_no_file_of_weights(weights, tmp_path, capsys):
    file = tmp_path / "state.npz"
    state = ["--config.export.format=state", f"--config.export.file={file}"]
    assert main("--stage=export", *state, f"--workdir={weights.parent / 'run'}") == 0
    flags = [f"--config.vae.init_from={file}", f"--workdir={tmp_path / 'run'}"]
    assert main(*flags, "--stage=vae") == 2
    assert "is the state of a training: give it as" in capsys.readouterr().err
