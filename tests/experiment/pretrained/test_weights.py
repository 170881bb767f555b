"""`config.vae.pretrained`: what one run has exported is the stage 1 of another."""

import json
import re
import shutil

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.pretrained import weights_export
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files
from ncp_jax.records import weights_file
from ncp_jax.training import vae_update
from ncp_jax.training.checkpoint_records import best_weights, read_record
from ncp_jax.training.checkpoints import digests, fingerprint
from tests import tiny
from tests.experiment.pretrained.digits import (
    changed_byte,
    config,
    edit,
    main,
    rewritten,
)

# tensorstore reports to an event loop that Orbax has closed after an error.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
KERNEL = "params/encoder/Dense_0/kernel"
OTHERS = {"num_steps": 77, "learning_rate": 0.5, "ema_decay": 0.0, "batch_size": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with both stages, never to be written to."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    for stage in ("vae", "ncp"):
        stages.run(config(), workdir, stage)
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Its weights, from a copy in which stage 1 alone is done."""
    folder = tmp_path_factory.mktemp("exported")
    copy = shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("ncp"))
    weights = ["--stage=export", "--config.export.format=weights"]
    assert main(*weights, f"--workdir={copy}") == 0
    file = f"--config.export.file={folder / 'toy.npz'}"
    assert main(*weights, file, f"--workdir={copy}") == 0
    return folder


@pytest.fixture
def toy(exported, tmp_path):
    """A copy of the file and its record, to be damaged."""
    for name in ("toy.npz", "toy.json"):
        shutil.copy(exported / name, tmp_path / name)
    return tmp_path / "toy.npz"


@pytest.fixture(scope="module")
def taken(exported, tmp_path_factory):
    """(settings, workdir) of both stages from the file; trained otherwise by config."""
    workdir = tmp_path_factory.mktemp("taken") / "run"
    settings = config(**OTHERS, pretrained=str(exported / "toy.npz"))
    stages.run(settings, workdir, "ncp")
    return settings, workdir


def sealed(workdir, stage):
    """Of the best checkpoint of a stage, what is recorded with it."""
    folder = workdir / stage / "checkpoints"
    return read_record(folder / str(best_weights(folder).step))


def stage_1(workdir, settings):
    """The step and the variables of the best of stage 1."""
    experiment = tiny.experiment(workdir, settings)
    with experiment.workdir._lock:
        best = experiment.best_stage_1()
        return best.step, vae_update.freeze(experiment.vae_module, best.state).variables


def test_the_same_run_gives_the_same_bytes(exported):
    first = exported / "run" / "export" / "weights" / "vae.npz"
    for one, other in (
        (first, exported / "toy.npz"),
        (first.with_suffix(".json"), exported / "toy.json"),
    ):
        assert one.read_bytes() == other.read_bytes()


def test_half_the_bytes_hold_the_same_to_eleven_bits(exported, tmp_path):
    run, file = exported / "run", tmp_path / "half.npz"
    weights = ["--stage=export", "--config.export.format=weights"]
    half = ["--config.export.dtype=float16", f"--config.export.file={file}"]
    assert main(*weights, *half, f"--workdir={run}") == 0
    (record, arrays), (whole, before) = (
        weights_file.read(path) for path in (file, exported / "toy.npz")
    )
    num_bytes = sum(array.nbytes for array in arrays.values())
    assert whole.num_bytes - record.num_bytes == num_bytes // 2
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, before[name], rtol=2**-11, atol=2**-25)
    settings = config(**OTHERS, pretrained=str(file))
    stages.run(settings, tmp_path / "taken", "ncp")
    assert sealed(tmp_path / "taken", "ncp")["vae"] == record.fingerprint


def test_numbers_too_large_for_half_the_bytes_are_named():
    large = np.full((64, 8), 1e6, np.float32)
    with pytest.raises(InputError, match=f"{KERNEL} with numbers too large for float"):
        weights_export._rounded(KERNEL, large, "float16")


def test_the_file_holds_what_stage_2_reads(exported, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    step, variables = stage_1(copy, config())
    record, arrays = weights_file.read(exported / "toy.npz")
    assert digests(unflatten_dict(arrays, sep="/")) == digests(variables)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert KERNEL in arrays
    assert (record.step, record.fingerprint) == (step, fingerprint(variables))
    assert record.fingerprint == sealed(run, "ncp")["vae"]
    assert record.held_out_loss == sealed(run, "vae")["valid_loss"]
    results = json.loads((run / "results.json").read_text())["run"]
    assert record.seconds == results["wall_seconds"]["vae"]
    assert record.environment == results["stages"]["vae"]["environment"]
    assert record.config.vae["num_steps"] == 20 and "workdir" not in record.config.vae
    assert record.data.splits["train"].count == 1_297
    begin, end = "python -m ncp_jax --config=digits:smoke --workdir=RUN", "weights"
    assert record.command.startswith(f"{begin} --stage=export --config.vae.model.")
    assert record.command.endswith(end) and str(exported) not in record.command


def test_stage_2_on_the_file_is_that_on_the_run_to_the_bit(taken, run):
    _, workdir = taken
    its, own = sealed(workdir, "ncp"), sealed(run, "ncp")
    for name in ("sha256", "vae", "config", "step", "valid_loss"):
        assert its[name] == own[name], name
    assert its["valid_loss"] != 0
    config = json.loads((workdir / "config.json").read_text())["vae"]
    assert config["num_steps"] == 20 and config["ema_decay"] == 0.9  # as trained


def test_it_is_kept_where_stage_1_came_from(taken, exported, capsys):
    settings, workdir = taken
    record = json.loads((exported / "toy.json").read_text())
    origin = json.loads((workdir / "vae" / "taken_over.json").read_text())
    assert origin == {"pretrained": str(exported / "toy.npz"), "record": record}
    results = json.loads((workdir / "results.json").read_text())["run"]
    assert results["wall_seconds"]["vae"] == record["seconds"]
    assert results["stages"]["vae"]["environment"] == record["environment"]
    line, *_ = (workdir / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["stage"], found["split"], found["step"]) == ("vae", "valid", 20)
    assert found["loss"] == pytest.approx(record["held_out_loss"], rel=1e-6)
    stages.run(settings, workdir, "vae")
    shown = capsys.readouterr().out
    assert (
        "vae: 20 steps of toy.npz, which sets config.vae.batch_size: 16 -> 32" in shown
    )
    assert "vae: complete, 20 steps" in shown and "vae: taken" not in shown


def test_what_is_lost_is_taken_again_and_none_of_it_trains_on(taken, tmp_path):
    settings, workdir = taken
    here = shutil.copytree(workdir, tmp_path / "run")
    (here / "vae" / "checkpoints" / "20" / "metadata" / "metadata").write_text("{")
    stages.run(settings, here, "import")
    assert best_weights(here / "vae" / "checkpoints").step == 20
    assert json.loads((here / "results.json").read_text())["run"]["stages"]["vae"]
    longer = config(num_steps=40)  # without the file
    with pytest.raises(InputError, match=r"num_steps: 20 -> 40\n.*another --workdir"):
        stages.run(longer, here, "vae")


def test_a_stage_1_that_was_trained_is_not_replaced(run, toy, tmp_path):
    here = shutil.copytree(run, tmp_path / "here")
    settings = config(pretrained=str(toy))
    with pytest.raises(InputError, match=r"another vae\.pretrained \(None, now "):
        stages.run(settings, here, "vae")


# --- refusals: exit code 2, one sentence


def other_examples(toy):
    def change(record):
        record["data"]["splits"]["test"]["sha256"] = "0"

    edit(toy.with_suffix(".json"), change)


@rewritten
def other_arrays(arrays):
    arrays["params/new"] = arrays.pop(KERNEL)


@rewritten
def not_finite(arrays):
    arrays[KERNEL][0, 0] = np.nan


def newer_setting(toy):
    def change(record):
        record["config"]["vae"]["momentum"] = 0.5
        record["environment"]["ncp_jax"] = "9.9.9"

    edit(toy.with_suffix(".json"), change)


def wrong_setting(toy):
    edit(toy.with_suffix(".json"), lambda r: r["config"]["vae"].update(num_steps="x"))


REFUSALS = {
    "unknown name": (None, ["--config.vae.pretrained=mnits"], "there are other, toy;"),
    "damaged": (changed_byte, [], r"toy\.npz is damaged \(its sha256 .*: bring this"),
    "no record": (lambda f: f.with_suffix(".json").unlink(), [], "no record toy.json"),
    "other model": (
        None,
        ["--config.vae.model.latent_dim=4"],
        "another model .*latent_dim is 3 there and 4 here.: give its settings, or",
    ),
    "other prior": (None, ["--config.vae.prior=vamp"], "vae.prior is 'gaussian' there"),
    "other binarisation": (
        None,
        ["--config.data.binarization=fixed"],
        "other data .*binarization is 'dynamic' there and 'fixed' here",
    ),
    "other shape": (None, ["--config.data.shape=(4, 16, 1)"], r"shape is \[8, 8, 1\]"),
    "other examples": (other_examples, [], "other data .test: 250 examples .*dir"),
    "other arrays": (other_arrays, [], r"other arrays .*\(params/encoder/Dense_0/ke"),
    "not finite": (not_finite, [], "held-out loss of nan"),
    "another version": (newer_setting, [], "momentum is 0.5 there.*9.9.9"),
    "wrong setting": (wrong_setting, [], r"toy\.json: config\.vae\.num_steps must be"),
    "two origins": (None, ["--config.vae.workdir=x"], "give one of them"),
    "an address": (None, ["--config.vae.pretrained=gs://b/x.npz"], "is an address"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_does_not_fit_is_one_sentence(kind, toy, monkeypatch, capsys):
    damage, arguments, message = REFUSALS[kind]
    (toy.parent / "other.npz").touch()
    monkeypatch.setattr(config_files, "WEIGHTS", toy.parent)
    if damage:
        damage(toy)
    if not any("pretrained" in argument for argument in arguments):
        arguments = [*arguments, "--config.vae.pretrained=toy"]
    code = main(*arguments, f"--workdir={toy.parent / 'run'}", "--stage=vae")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ")
    assert re.search(message, line), line
    assert not [*toy.parent.glob("run/vae/checkpoints/[0-9]*")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.export.file=x.npz"], "is for --config.export.format=weights"),
        (["--config.export.format=weights", "--config.export.file=x"], "ends in .npz"),
        (["--config.export.format=weights"], "run --stage=vae first"),
        (["--config.export.dtype=float16"], "is for --config.export.format=weights"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(tmp_path, capsys, arguments, message):
    code = main("--stage=export", *arguments, f"--workdir={tmp_path / 'run'}")
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and message in line


# --- what a file does not change


def test_older_runs_keep_their_fingerprint():
    new = config_lib.as_json(config_lib.default())
    old = json.loads(json.dumps(new))
    del old["vae"]["pretrained"]
    new["vae"]["pretrained"] = "mnist_mlp"
    sections = ("seed", "data", "vae", "ncp")
    assert config_lib.fingerprint(old, sections) == config_lib.fingerprint(
        new, sections
    )
    assert config_lib.differences(old, new, sections) == []
