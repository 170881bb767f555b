"""`config.vae.resume`: a training goes on elsewhere, to the bit."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest

from ncp_jax.experiment import stages
from ncp_jax.records import weights_file
from ncp_jax.training.checkpoint_records import read_record
from tests import tiny
from tests.experiment.pretrained.digits import (
    changed_byte,
    config,
    edit,
    main,
    rewritten,
)

OF_STATE = "--config.export.format=state"


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run of 40 steps of stage 1 in one folder."""
    workdir = tmp_path_factory.mktemp("long") / "run"
    stages.run(config(num_steps=40), workdir, "vae")
    return workdir


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The state after 20 of them, as a file."""
    folder = tmp_path_factory.mktemp("half")
    assert main("--stage=vae", f"--workdir={folder / 'run'}") == 0
    file = f"--config.export.file={folder / 'half.npz'}"
    assert main("--stage=export", OF_STATE, file, f"--workdir={folder / 'run'}") == 0
    return folder / "half.npz"


@pytest.fixture
def state(half, tmp_path):
    """A copy of it, to be damaged."""
    for file in (half, half.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / half.name


def checkpoint(workdir, step):
    return read_record(workdir / "vae" / "checkpoints" / str(step))


def test_it_goes_on_to_the_bits_of_a_run_in_one_folder(long, half, tmp_path, capsys):
    settings = config(num_steps=40, resume=str(half))
    stages.run(settings, tmp_path / "run", "vae")
    shown = capsys.readouterr().out
    assert f"vae: at step 20, taken from {half}" in shown
    assert "vae: continues from step 20" in shown
    for step in (30, 40):
        there, here = checkpoint(long, step), checkpoint(tmp_path / "run", step)
        for name in ("sha256", "valid_loss", "config"):
            assert here[name] == there[name], (step, name)
    seconds = json.loads(half.with_suffix(".json").read_text())["seconds"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["run"]
    assert results["wall_seconds"]["vae"] > seconds > 0
    origin = json.loads((tmp_path / "run" / "vae" / "taken_over.json").read_text())
    assert origin["resume"] == str(half) and origin["record"]["kind"] == "state"
    stages.run(settings, tmp_path / "run", "vae")
    shown = capsys.readouterr().out
    assert f"vae: goes on from its own checkpoints, not from {half}" in shown
    assert "vae: complete, 40 steps" in shown


def test_a_checkpoint_that_was_cut_off_is_none_of_its_own(half, tmp_path, capsys):
    cut_off = tmp_path / "run" / "vae" / "checkpoints" / "10.orbax-checkpoint-tmp"
    cut_off.mkdir(parents=True)
    stages.run(config(resume=str(half)), tmp_path / "run", "vae")
    assert f"vae: at step 20, taken from {half}" in capsys.readouterr().out


def test_a_training_that_was_stopped_is_written_where_it_stands(half, tmp_path):
    """Its record says that there is no held-out loss between two validations."""
    run = shutil.copytree(half.parent / "run", tmp_path / "run")
    experiment = tiny.experiment(run, config())
    with (
        contextlib.closing(experiment.workdir),
        experiment.checkpoints("vae") as saved,
    ):
        state = saved.restore(20, experiment.state_shapes()).state
        saved.forget(20)
        saved.save(15, state.replace(step=np.int32(15)), None)
    assert main("--stage=export", OF_STATE, f"--workdir={run}") == 0
    record, arrays = weights_file.read(run / "export" / "state" / "vae.npz")
    assert (record.step, record.held_out_loss) == (15, None)
    assert arrays["step"] == 15
    for name in ("params", "averages/params", "mu", "nu"):
        assert any(f"{name}/encoder/Dense_0/bias" in other for other in arrays), name
    # Not those of the run that ended, which results.json has.
    assert record.seconds == checkpoint(run, 15)["wall_seconds"] > 0


def test_a_file_of_the_end_is_a_complete_stage_1(half, tmp_path, capsys):
    stages.run(config(resume=str(half)), tmp_path / "run", "vae")
    assert "vae: complete, 20 steps" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["run"]["stages"]["vae"]["weights"]["vae"]["step"] == 20


# --- refusals: exit code 2, one sentence


def edited(change):
    """Changes the record of a file."""
    return lambda path: edit(path.with_suffix(".json"), change)


@rewritten
def other_arrays(arrays):
    arrays["new"] = arrays.pop("step")


REFUSALS = {
    "damaged": (changed_byte, [], r"half\.npz is damaged"),
    "no such file": (None, ["--config.vae.resume=x.npz"], "export.format=state makes"),
    "weights": (edited(lambda r: r.pop("kind")), [], "no optimiser's state: give it"),
    "other rate": (
        None,
        ["--config.vae.learning_rate=0.5"],
        "other settings .*here.: give its",
    ),
    "other seed": (None, ["--config.seed=1"], "config.seed is 0 there and 1 here"),
    "too short": (None, ["--config.vae.num_steps=10"], "is at step 20, beyond .* 10"),
    "between validations": (
        edited(lambda r: r.update(step=15)),
        ["--config.vae.num_steps=40"],
        "ended at step 15, which is no multiple of config.vae.steps_per_eval = 10",
    ),
    "other schedule": (
        edited(lambda r: r["config"]["vae"].update(schedule="cosine")),
        ["--config.vae.num_steps=40", "--config.vae.schedule=cosine"],
        r"config\.vae\.extend=true goes on so",
    ),
    "other data": (
        edited(lambda r: r["data"]["splits"]["test"].update(sha256="0")),
        [],
        "trained on other data .test: .*leave config.vae.resume out",
    ),
    "other arrays": (other_arrays, [], r"other arrays .*\(new\)"),
    "two origins": (None, ["--config.vae.pretrained=mnist_mlp"], "give one of them"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_does_not_fit_is_one_sentence(kind, state, capsys):
    damage, arguments, message = REFUSALS[kind]
    if damage:
        damage(state)
    if not any("resume" in argument for argument in arguments):
        arguments = [*arguments, f"--config.vae.resume={state}"]
    workdir = state.parent / "run"
    assert main(*arguments, f"--workdir={workdir}", "--stage=vae") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and re.search(message, line), line
    assert not [*workdir.glob("vae/checkpoints/[0-9]*")]


def test_a_state_is_no_pretrained_file(state, tmp_path, capsys):
    flags = [f"--config.vae.pretrained={state}", f"--workdir={tmp_path / 'run'}"]
    assert main(*flags, "--stage=vae") == 2
    assert "is the state of a training: give it as" in capsys.readouterr().err


def test_weights_that_came_from_a_file_have_no_state(half, tmp_path, capsys):
    run = f"--workdir={half.parent / 'run'}"
    file = tmp_path / "weights.npz"
    weights = ["--config.export.format=weights", f"--config.export.file={file}"]
    assert main("--stage=export", *weights, run) == 0
    taken = [f"--config.vae.pretrained={file}", f"--workdir={tmp_path / 'run'}"]
    assert main("--stage=export", OF_STATE, *taken) == 2
    assert "no training can go on from it" in capsys.readouterr().err


def test_nothing_to_export_is_one_sentence(tmp_path, capsys):
    assert main("--stage=export", OF_STATE, f"--workdir={tmp_path / 'run'}") == 2
    assert "no checkpoint of stage 1: run --stage=vae first" in capsys.readouterr().err
