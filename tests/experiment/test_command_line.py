"""The program: every way of going wrong ends with a message and an exit code."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ncp_jax.data import datasets, picture_cache
from ncp_jax.errors import InputError
from ncp_jax.experiment import command_line, stages
from ncp_jax.experiment.setup import config_files
from ncp_jax.training import loop
from ncp_jax.training.run_log import RunLog
from tests import tiny

pytestmark = [
    # tensorstore reports to an event loop that Orbax has closed after an error.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
    ),
]
ROOT = Path(__file__).parents[2]
DIGITS = "--config=digits"
SMOKE = f"{DIGITS}:smoke"


@pytest.fixture
def call(tmp_path, capsys):
    """Runs main with a workdir and returns (exit code, stdout, stderr)."""

    def run(*arguments, workdir=tmp_path / "run"):
        code = command_line.main(["main.py", *arguments, f"--workdir={workdir}"])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call, tmp_path):
    """Runs main, expects bad input to be told, and returns the message."""

    def run(*arguments, **keywords):
        code, _, message = call(*arguments, **keywords)
        assert code == 2
        assert message.startswith("error: ") and "Traceback" not in message
        return message

    return run


def configs():
    return ["digits", *config_files.names()]  # digits, so that it is not nothing


# --- what is allowed


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_flags_stages_configs_and_overrides(flag, capsys):
    assert command_line.main(["main.py", SMOKE, flag]) == 0
    shown = capsys.readouterr().out
    words = ["--config=", "--workdir=", "--stage=", ":smoke", "--config.vae.num_steps="]
    for word in [*words, *stages.STAGES, *configs(), *datasets.NAMES, "143"]:
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config=FILE is missing", *configs()]),
        (["--config.seed=1"], ["--config=FILE is missing", *configs()]),
        ([SMOKE, "--stage=bogus"], ["'bogus'", *stages.STAGES]),
        ([SMOKE, "--stage="], ["--stage must be one of"]),
        (["--config=configs/digitz.py"], ["configs/digitz.py", *configs()]),
        (["--config=digitz:smoke"], ["'digitz'", "Did you mean 'digits'?", *configs()]),
        (["--config=."], ["no config '.'", *configs()]),
        ([f"{DIGITS}:tiny"], ["'tiny'", ":smoke"]),
        ([SMOKE, "--config.data.name=mnits"], ["'mnits'", "'mnist'?", *datasets.NAMES]),
        ([SMOKE, "--nope=1"], ["Unknown command line flag 'nope'"]),
        ([SMOKE, "extra"], ["unexpected arguments: extra"]),
        (
            [SMOKE, "--config.vae.learning_rat=1"],
            ["Did you mean --config.vae.learning_rate?", "config.vae.batch_size"],
        ),
        ([SMOKE, "--config.vae.model.latent=1"], ["config.vae.model.latent_dim?"]),
        ([SMOKE, "--config.vea.num_steps=1"], ["Did you mean --config.vae.num_steps?"]),
        ([SMOKE, "--config.x=1"], ["no setting --config.x.", "config.seed"]),
        ([SMOKE, "--config.vae=3"], ["no setting --config.vae.", "config.vae.num_"]),
        ([SMOKE, "--config.vae.num_steps=abc"], ["config.vae.num_steps=abc", "digits"]),
        ([SMOKE, "--config.vae.num_steps=1.5"], ["config.vae.num_steps=1.5"]),
        ([SMOKE, "--config.vae.learning_rate="], ["config.vae.learning_rate"]),
        ([SMOKE, "--config.vae.num_steps=0"], ["config.vae.num_steps must be"]),
        ([SMOKE, "--config.ncp.batch_size=-4"], ["config.ncp.batch_size must be"]),
        (
            [SMOKE, "--config.ncp.batch_size=5000"],
            ["config.ncp.batch_size = 5000", "1297 training examples"],
        ),
        ([SMOKE, "--config.vae.model.hidden_dims=(3,'a')"], ["an integer", "'a'"]),
        ([SMOKE, "--config.vae.model.hidden_dims=(3,-1)"], ["positive integers"]),
        ([SMOKE, SMOKE], ["--config is given 2 times"]),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    refused, tmp_path, arguments, parts
):
    message = refused(*arguments)
    for part in parts:
        assert part in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["", "--workdir="])
def test_a_workdir_is_required(capsys, flag):
    assert command_line.main(["main.py", SMOKE, *([flag] if flag else [])]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("", "get_config"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
        ("def get_config(): return int('x')", "invalid literal for int"),
        (
            "from ncp_jax.experiment.setup import config\n"
            "def get_config():\n"
            "  c = config.default()\n"
            "  c.vae.update(numsteps=3)\n"
            "  return c",
            "numsteps",
        ),
    ],
)
def test_a_broken_config_file_is_bad_input(refused, tmp_path, source, reason):
    file = tmp_path / "broken.py"
    file.write_text(source)
    message = refused(f"--config={file}")
    assert "cannot load --config" in message and reason in message


def test_overrides_reach_the_experiment(monkeypatch, call, tmp_path):
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    overrides = [
        "--config.seed",
        "7",
        "--config.vae.model.hidden_dims=(5, 6)",
        "-config.vae.learning_rate=1",
        "--config.data.download",
    ]
    assert call(*overrides, SMOKE, "--stage=ncp")[0] == 0
    ((config, workdir, stage, command),) = calls
    assert (config.seed, config.vae.learning_rate) == (7, 1.0)
    assert config.vae.model.hidden_dims == (5, 6) and config.data.download is True
    assert config.vae.num_steps == 60  # of smoke
    assert (workdir, stage) == (tmp_path / "run", "ncp")
    assert command == (  # without what is of one machine
        "python -m ncp_jax --config=digits:smoke --workdir=RUN --stage=ncp "
        "--config.seed=7 '--config.vae.model.hidden_dims=(5, 6)' "
        "--config.vae.learning_rate=1"
    )
    assert call(DIGITS)[0] == 0  # nothing is left of the first call
    config, _, stage, _ = calls[1]
    assert (config.seed, config.vae.num_steps, stage) == (0, 10_000, "all")


@pytest.mark.parametrize("field", ["init_from", "pretrained", "resume"])
def test_the_command_says_where_stage_1_begins(monkeypatch, call, field):
    """It was left out, so that the command made other weights."""
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    flag = f"--config.vae.{field}"
    for given, said in (
        ("/home/me/first.npz", "first.npz"),
        ("mnist_mlp", "mnist_mlp"),
        ("sub/first.npz", "sub/first.npz"),
    ):
        assert call(SMOKE, f"{flag}={given}", "--config.vae.workdir=/run")[0] == 0
        assert calls[-1][3].endswith(f"--stage=all {flag}={said}")


def test_a_config_is_named_or_a_file(monkeypatch, call, tmp_path):
    """With or without the variant, in one word or in two."""
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    own = tmp_path / "own.py"
    own.write_text((config_files.FOLDER / "digits.py").read_text())
    monkeypatch.chdir(tmp_path)  # no folder configs/ here
    for name in ("digits", "configs/digits.py", str(own), "own.py"):
        for variant, num_steps in (("", 10_000), (":smoke", 60)):
            for words in ([f"--config={name}{variant}"], ["-config", name + variant]):
                assert call(*words)[0] == 0
                assert calls.pop()[0].vae.num_steps == num_steps


@pytest.mark.parametrize("start", [["main.py"], ["-m", "ncp_jax"]])
def test_the_program_starts_in_a_checkout(start):
    command = [sys.executable, *start, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "python main.py --config=" in shown.stdout


def test_a_tilde_is_the_home_folder(monkeypatch, call, tmp_path):
    """Of the run, of the data, of their cache and of runs side by side."""
    monkeypatch.setenv("HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    assert call(SMOKE, workdir="~/x")[0] == 0
    assert calls[0][1] == tmp_path / "x"
    with pytest.raises(InputError, match=f"data folder {tmp_path}/y does not exist"):
        datasets.load("folder", (8, 8, 3), "~/y")
    monkeypatch.setenv("NCP_JAX_DATA", "~/z")
    with pytest.raises(InputError, match=f"data folder {tmp_path}/z does not exist"):
        datasets.load("folder", (8, 8, 3))
    assert picture_cache.folders("~/c", tmp_path) == [tmp_path / "c"]


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://b/x", "file://there/x"])
def test_an_address_is_refused_before_anything_is_made(
    monkeypatch, refused, tmp_path, address
):
    monkeypatch.chdir(tmp_path)
    assert f"--workdir={address} is an address" in refused(SMOKE, workdir=address)
    for setting in ("data.dir", "data.cache_dir", "vae.workdir", "vae.checkpoint"):
        message = refused(SMOKE, f"--config.{setting}={address}")
        assert f"config.{setting}={address} is an address" in message
    with pytest.raises(InputError, match=f"NCP_JAX_DATA={address} is an address"):
        monkeypatch.setenv("NCP_JAX_DATA", address)
        datasets.load("mnist", (28, 28, 1))
    assert not list(tmp_path.iterdir())


def test_an_address_of_a_file_is_its_path(monkeypatch, call):
    calls = []
    monkeypatch.setattr(stages, "run", lambda *arguments: calls.append(arguments))
    for address in ("file:///a/b", "FILE://localhost/a/b"):
        assert call(SMOKE, workdir=address)[0] == 0
        assert calls.pop()[1] == Path("/a/b")


def test_runs_side_by_side_may_be_in_the_home_folder(monkeypatch, refused, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refused(SMOKE, "--stage=report", "--config.report.workdirs=~/a, ~/b")
    assert f"{tmp_path}/a" in message


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_devices_that_are_not_there_are_one_sentence(tmp_path, platform):
    command = [sys.executable, "main.py", SMOKE, f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": platform}
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    *_, message = ended.stderr.strip().splitlines()  # CUDA's own words come first
    assert message.startswith("error: JAX finds no device, with JAX_PLATFORMS=")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_workdir_is_bad_input(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused(SMOKE, workdir=tmp_path / "file" / "run")
    assert "cannot write to --workdir" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with stage 1 complete, never to be written to."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    arguments = [SMOKE, *tiny.flags(), "--stage=vae", f"--workdir={workdir}"]
    assert command_line.main(["main.py", *arguments]) == 0
    return workdir


@pytest.fixture
def half_trained(trained, tmp_path):
    """A copy of it, killed after step 10 of 20."""
    workdir = shutil.copytree(trained, tmp_path / "half")
    shutil.rmtree(workdir / "vae" / "checkpoints" / "20")
    return workdir


# --- runs that are stopped


def stop_at(monkeypatch, action, split="train", step=15):
    """Does `action` when the record of `step` is written, once."""
    write, done = RunLog.write, []

    def interrupting(self, at, of, metrics):
        if (at, of) == (step, split) and not done:
            done.append(at)
            action()
        write(self, at, of, metrics)

    monkeypatch.setattr(RunLog, "write", interrupting)


def test_a_signal_saves_and_the_same_command_goes_on(monkeypatch, call, half_trained):
    command = [SMOKE, *tiny.flags(), "--stage=vae"]
    stop_at(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped, shown, message = call(*command, workdir=half_trained)
    assert stopped == 143 and "vae: continues from step 10" in shown
    assert "SIGTERM: vae is saved at step 15 of 20" in message
    assert "same command" in message
    finished, shown, _ = call(*command, workdir=half_trained)
    assert finished == 0 and "vae: continues from step 15" in shown


def test_a_signal_outside_of_training_ends_tidily(monkeypatch, call):
    def run(*unused):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not reached")

    monkeypatch.setattr(stages, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    code, _, message = call(SMOKE)
    assert code == 143 and "SIGTERM" in message and "same command" in message
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_outside_of_training_ends_tidily(monkeypatch, call):
    def run(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "run", run)
    code, _, message = call(SMOKE)
    assert code == 130 and "SIGINT" in message


def test_a_non_finite_loss_is_told_with_its_step_and_keeps_the_workdir(refused, call):
    command = [SMOKE, *tiny.flags({**tiny.SETTINGS, "vae.learning_rate": 1e20})]
    message = refused(*command, "--stage=vae")
    assert re.search(r"stage vae: the loss is (nan|inf) at step \d+", message)
    assert "Last finite metrics" in message and "'gradient_norm'" in message
    assert "config.vae.learning_rate" in message


def test_a_full_disk_is_bad_luck_and_the_same_command_goes_on(
    refused, call, half_trained
):
    command = [SMOKE, *tiny.flags(), "--stage=vae"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        message = refused(*command, workdir=half_trained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write a checkpoint" in message and "File too large" in message
    assert "same command" in message
    code, shown, _ = call(*command, workdir=half_trained)
    assert code == 0 and "vae: continues from step 10" in shown


def test_an_error_of_the_operating_system_is_told(monkeypatch, refused):
    def run(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages, "run", run)
    message = refused(SMOKE)
    assert "No space left on device" in message and "same command" in message


# --- a workdir with a history


def test_a_complete_stage_is_not_trained_again(trained, call):
    before = (trained / "metrics.jsonl").read_bytes()
    code, shown, _ = call(SMOKE, *tiny.flags(), "--stage=vae", workdir=trained)
    assert code == 0 and "vae: complete, 20 steps" in shown
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_even_without_config_json(trained, refused):
    other = tiny.flags({**tiny.SETTINGS, "vae.model.latent_dim": 4})
    message = refused(SMOKE, *other, "--stage=vae", workdir=trained)
    assert "config.vae.model.latent_dim: 3 -> 4" in message
    (trained / "config.json").rename(trained / "aside")
    message = refused(SMOKE, *other, "--stage=vae", workdir=trained)
    assert "made with another config" in message
    (trained / "aside").rename(trained / "config.json")


def test_a_damaged_final_checkpoint_is_trained_again(trained, call, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    newest = workdir / "vae" / "checkpoints" / "20"
    for file in Path(newest / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    code, shown, _ = call(SMOKE, *tiny.flags(), "--stage=vae", workdir=workdir)
    assert code == 0 and "vae: continues from step 10" in shown
    redone, first = (run / "metrics.jsonl" for run in (workdir, trained))
    assert redone.read_text() == first.read_text()


def test_a_later_stage_says_which_stage_is_missing(refused, trained):
    message = refused(SMOKE, *tiny.flags(), "--stage=sample", workdir=trained)
    assert "stage ncp has not reached its 20 steps" in message
    assert "--stage=ncp" in message


def test_wall_seconds_survive_a_kill_between_checkpoint_and_results(trained, call):
    results = trained / "results.json"
    whole = results.read_text()
    results.unlink()
    assert call(SMOKE, *tiny.flags(), "--stage=vae", workdir=trained)[0] == 0
    seconds = json.loads(results.read_text())["run"]["wall_seconds"]["vae"]
    before = json.loads(whole)["run"]["wall_seconds"]["vae"]
    assert 0 < seconds <= before


def test_preempted_is_not_an_exception():
    """So that no `except Exception` takes a signal for a damaged file."""
    assert not issubclass(loop.Preempted, Exception)
