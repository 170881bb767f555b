"""`workdir.py`: one process, one config, one results file."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup.workdir import Workdir

CONFIG = config_lib.as_json(config_lib.default())


@contextlib.contextmanager
def opened(path, **changes):
    """A workdir with changed settings, e.g. vae__num_steps=3."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            config[section][field] = value
        else:
            config[section] = value
    with contextlib.closing(Workdir(path, config, {"device": "cpu"})) as workdir:
        yield workdir


def save_checkpoint(path, stage):
    (path / stage / "checkpoints" / "10").mkdir(parents=True)


# --- one config


def test_a_new_folder_gets_config_and_environment(tmp_path):
    with opened(tmp_path / "a" / "b"):
        pass
    assert json.loads((tmp_path / "a/b/config.json").read_text()) == CONFIG
    environment = json.loads((tmp_path / "a/b/environment.json").read_text())
    assert environment == {"device": "cpu"}


def test_another_config_is_refused_with_the_fields_that_differ(tmp_path):
    with opened(tmp_path):
        save_checkpoint(tmp_path, "vae")
    with (
        pytest.raises(InputError) as refused,
        opened(tmp_path, vae__num_steps=3, seed=1, ncp__num_steps=9),
    ):
        pass
    message = str(refused.value)
    assert "config.vae.num_steps: 10000 -> 3" in message
    assert "config.seed: 0 -> 1" in message
    assert "ncp" not in message  # not trained yet, so free to change
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    with opened(tmp_path):  # the refused one holds no lock
        pass


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("vae", {"ncp__num_steps": 3}),
        ("ncp", {"sample__num_images": 3}),
        ("ncp", {"evaluate__batch_size": 3}),
        ("ncp", {"data__dir": "elsewhere"}),
        ("ncp", {"data__download": True}),
    ],
)
def test_what_cannot_have_changed_a_trained_stage_may_change(tmp_path, stage, changes):
    with opened(tmp_path):
        save_checkpoint(tmp_path, stage)
    with opened(tmp_path, **changes):
        pass


def test_a_stage_without_a_checkpoint_pins_nothing(tmp_path):
    with opened(tmp_path, vae__batch_size=100_000):
        (tmp_path / "vae" / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(
            parents=True
        )
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [b'{"vae": {', b"", b"\xff\xfe", b"[1]"])
def test_damaged_files_are_named_with_a_cure(tmp_path, name, content):
    with opened(tmp_path):
        pass
    (tmp_path / name).write_bytes(content)
    with (
        pytest.raises(InputError, match=rf"{name} is .*: delete it"),
        opened(tmp_path) as workdir,
    ):
        workdir.results()
    (tmp_path / name).unlink()
    with opened(tmp_path) as workdir:
        assert workdir.results() == {"metrics": {}, "run": {}}


# --- one process


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("results.json", {"run": {"stages": []}}, "run.stages"),
        ("results.json", {"run": {"stages": "x"}}, "run.stages"),
        ("results.json", {"run": {"wall_seconds": None}}, "run.wall_seconds"),
        ("results.json", {"metrics": {"log_z": {"value": "1"}}}, "'log_z'.*value"),
        ("results.json", {"metrics": {"log_z": {"n": "1"}}}, "'log_z'.*n"),
        ("config.json", {"vae": []}, "vae"),
        ("config.json", {"seed": "0"}, "seed"),
    ],
)
def test_edited_files_are_named_before_anything_is_done(tmp_path, name, content, field):
    (tmp_path / name).write_text(json.dumps(content))
    named = rf"{name} is not one of ours \(.*{field}.*: Expected .*\): delete it"
    with pytest.raises(InputError, match=named), opened(tmp_path):
        pass
    assert json.loads((tmp_path / name).read_text()) == content


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    with opened(tmp_path):
        with (
            pytest.raises(InputError, match=rf"in use.*pid {os.getpid()}\)"),
            opened(tmp_path),
        ):
            pass
        # The refused one left the first's pid alone.
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with opened(tmp_path):
        pass


HOLD = """
import sys, time
from pathlib import Path
from tests.experiment.setup.test_workdir import CONFIG, Workdir
workdir = Workdir(Path(sys.argv[1]), CONFIG, {})
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_dies_with_its_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.getcwd(),
    )
    with process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=rf"pid {process.pid}\)"),
            opened(tmp_path),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to --workdir"):
        Workdir(tmp_path / below, CONFIG, {})


# --- results


def save_outputs(path):
    for name in ("base", "sir", "langevin"):
        (path / "samples").mkdir(exist_ok=True)
        (path / "samples" / f"{name}.npz").touch()
    (path / "evaluation").mkdir()
    (path / "evaluation" / "arrays.npz").touch()


def test_results_merge_and_know_their_settings(tmp_path):
    save_outputs(tmp_path)
    with opened(tmp_path) as workdir:
        workdir.add_results("vae", {}, 1.234)
        workdir.add_results("sample", {"a": Estimate(1.0, 0.1, 5, "nats")}, 2.0)
        workdir.add_results("sample", {"a": Estimate(2.0, 0.1, 5, "nats")}, 3.0)
        workdir.add_results("evaluate", {"b": Estimate(4.0, None, 1, "x")}, 3.0)
        assert all(map(workdir.is_done, ("vae", "sample", "evaluate")))
        assert not workdir.is_done("ncp")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"] == {
        "a": {"value": 2.0, "stderr": 0.1, "n": 5, "unit": "nats"},
        "b": {"value": 4.0, "stderr": None, "n": 1, "unit": "x"},
    }
    assert results["run"]["wall_seconds"] == {"vae": 1.23, "sample": 3.0, "evaluate": 3}
    assert results["run"]["seed"] == 0 and results["run"]["config"] == CONFIG
    assert results["run"]["device"] == "cpu"
    with opened(tmp_path, sample__num_images=3) as workdir:
        assert workdir.is_done("vae")
        assert not workdir.is_done("sample") and not workdir.is_done("evaluate")
    with opened(tmp_path, evaluate__batch_size=3) as workdir:
        assert workdir.is_done("sample") and not workdir.is_done("evaluate")


def test_a_metric_that_a_stage_no_longer_gives_is_gone(tmp_path):
    a, b, c = (Estimate(value, 0.1, 5, "nats") for value in (1.0, 2.0, 3.0))
    with opened(tmp_path) as workdir:
        workdir.add_results("sample", {"a": a}, 1.0)
        workdir.add_results("evaluate", {"b": b, "c": c}, 1.0)
        workdir.unmark("evaluate")
        workdir.add_results("evaluate", {"b": b}, 1.0)
        assert workdir.results()["metrics"].keys() == {"a", "b"}


def test_each_stage_keeps_the_settings_and_the_machine_that_it_had(tmp_path):
    with opened(tmp_path, sample__num_images=3) as workdir:
        workdir.add_results("sample", {}, 1.0)
    with contextlib.closing(Workdir(tmp_path, CONFIG, {"device": "gpu"})) as workdir:
        workdir.add_results("evaluate", {}, 1.0)
    stages = json.loads((tmp_path / "results.json").read_text())["run"]["stages"]
    assert stages["sample"]["config"]["sample"]["num_images"] == 3
    assert stages["sample"]["environment"] == {"device": "cpu"}
    assert stages["evaluate"]["config"]["sample"] == CONFIG["sample"]
    assert stages["evaluate"]["environment"] == {"device": "gpu"}


def test_a_stage_that_starts_anew_is_not_done_nor_what_builds_on_it(tmp_path):
    save_outputs(tmp_path)
    with opened(tmp_path) as workdir:
        for stage in ("ncp", "sample", "evaluate"):
            workdir.add_results(stage, {}, 1.0)
            assert workdir.is_done(stage)
        workdir.unmark("sample")
        done = [s for s in ("ncp", "sample", "evaluate") if workdir.is_done(s)]
        stages = workdir.results()["run"]["stages"]
    assert done == ["ncp"]
    for name in ("sample", "evaluate"):  # of the numbers that are still there
        assert stages[name]["config"]["sample"] == CONFIG["sample"]


@pytest.mark.parametrize("name", ["samples/sir.npz", "evaluation/arrays.npz"])
def test_a_stage_whose_files_are_gone_is_not_done(tmp_path, name):
    save_outputs(tmp_path)
    with opened(tmp_path) as workdir:
        for stage in ("sample", "evaluate"):
            workdir.add_results(stage, {}, 1.0)
        (tmp_path / name).unlink()
        done = [stage for stage in ("sample", "evaluate") if workdir.is_done(stage)]
    assert len(done) == 1


def test_numbers_that_json_lacks_become_null(tmp_path):
    with opened(tmp_path) as workdir:
        workdir.add_results("sample", {"a": Estimate(-math.inf, math.nan, 1, "x")}, 1.0)
    text = (tmp_path / "results.json").read_text()
    metric = json.loads(text, parse_constant=pytest.fail)["metrics"]["a"]
    assert metric["value"] is None and metric["stderr"] is None


def test_a_failed_write_leaves_the_old_file(tmp_path):
    with opened(tmp_path) as workdir:
        workdir.write_json("x.json", {"a": 1})
        with pytest.raises(TypeError):
            workdir.write_json("x.json", {"a": object()})
        assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_folder_that_no_checkpoint_can_be_written_into_is_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"run\xff") / "deeper"
    with pytest.raises(InputError, match=r"run\\xff/deeper' is not valid UTF-8"):
        Workdir(path, CONFIG, {})
    assert not list(tmp_path.iterdir())
