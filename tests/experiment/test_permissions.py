"""Folders and files of another user: which one, and what is not permitted."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from ncp_jax.data import picture_files, sealed_file
from ncp_jax.errors import InputError, explained
from ncp_jax.experiment import command_line, stages
from ncp_jax.experiment.setup import wiring
from tests.data.test_picture_files import PNG, write
from tests.experiment.test_seals import settings

IS_ROOT, NOBODY = os.geteuid() == 0, 65534


@contextlib.contextmanager
def as_another_user():
    """For root, who may do anything, nobody; else one's own rights are enough."""
    if IS_ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if IS_ROOT:
            os.seteuid(0)


@pytest.fixture(scope="module")
def place():
    """A folder that every user may enter, as pytest's are not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for folder in path.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def whole(place):
    """A whole run, after which nothing is left to be imported."""
    stages.run(settings(), place / "whole", "all")
    return place / "whole"


@pytest.fixture
def run(whole, place):
    """A copy of it that the other user owns."""
    path = shutil.copytree(whole, place / "run")
    for part in (path, *path.rglob("*")):
        if IS_ROOT:
            os.chown(part, NOBODY, NOBODY)
    yield path
    for part in (path, *path.rglob("*")):
        part.chmod(0o755)
    shutil.rmtree(path)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a stage as another user, expects exit code 2, and returns the message."""
    dataset, versions = wiring.load_data(settings()), stages.environment()
    monkeypatch.setattr(wiring, "load_data", lambda config: dataset)
    monkeypatch.setattr(stages, "environment", lambda: versions)

    def run(workdir, stage):
        options = command_line.Options(settings(), str(workdir), stage, "")
        monkeypatch.setattr(command_line, "_parse", lambda argv: options)
        with as_another_user():
            code = command_line.main([])
        message = capsys.readouterr().err
        assert code == 2 and message.startswith("error: "), message
        return message

    return run


def lock(path):
    if IS_ROOT:
        os.chown(path, 0, 0)
    path.chmod(0)


@pytest.mark.parametrize("stage", ["all", "vae", "ncp", "sample", "evaluate"])
def test_a_workdir_that_may_only_be_read_is_named(run, refused, stage):
    for part in (run, *run.rglob("*")):
        if IS_ROOT:
            os.chown(part, 0, 0)
        part.chmod(0o555 if part.is_dir() else 0o444)
    message = refused(run, stage)
    assert f"cannot write to --workdir={run}" in message
    assert f"may not write to {run}/.lock (-r--r--r--, owner " in message
    assert "may not write to the folder " in refused(run, "report")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("config.json", "all"),
        ("config.json", "report"),
        ("results.json", "evaluate"),
        ("results.json", "report"),
        ("metrics.jsonl", "report"),
        ("data.json", "all"),
        ("samples/sir.npz", "evaluate"),
        ("ncp/checkpoints/20/metadata/metadata", "evaluate"),
    ],
)
def test_a_file_that_may_not_be_read_is_named(run, refused, name, stage):
    lock(run / name)
    assert f"may not read or write to {run / name} (---" in refused(run, stage)


@pytest.mark.parametrize("stage", ["all", "ncp", "evaluate"])
def test_a_checkpoint_of_another_user_is_not_taken_for_damage(run, refused, stage):
    files = [p for p in (run / "ncp/checkpoints/20/state").rglob("d/*") if p.is_file()]
    lock(files[0])
    assert f"may not read or write to {files[0]}" in refused(run, stage)
    assert not (run / "ncp" / "damaged").exists()


@pytest.mark.parametrize("name", ["ncp/checkpoints", "ncp/checkpoints/20", "samples"])
@pytest.mark.parametrize("stage", ["all", "sample"])
def test_a_folder_that_may_not_be_entered_is_named(run, refused, name, stage):
    lock(run / name)
    message = refused(run, stage)
    assert f"{run / name} (d---------, owner " in message


def test_pictures_that_may_not_be_read_are_named(place):
    folder = write(place / "pictures", {"a/1.png": PNG, "b/2.png": PNG})
    lock(folder / "b")
    with (
        as_another_user(),
        pytest.raises(
            InputError, match=rf"^{folder}/b: .* may not read or write to or"
        ),
    ):
        picture_files.find(folder)
    lock(folder / "a" / "1.png")
    with (
        as_another_user(),
        pytest.raises(InputError, match=rf"may not read or write to {folder}/a/1\.png"),
    ):
        sealed_file.check(folder / "a" / "1.png")


def test_other_errors_of_the_system_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "nowhere").read_bytes()
    assert explained(error.value) == str(error.value)
    gone = PermissionError(13, "Permission denied", str(tmp_path / "no" / "where"))
    assert explained(gone).startswith(str(gone))
