"""Stages that go back since checkpoints are lost leave what an unbroken run leaves."""

import json
import shutil

import pytest

from tests.experiment import toy_run

pytestmark = pytest.mark.filterwarnings(  # tensorstore, of a damaged file
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of both stages and its metrics.jsonl."""
    path = tmp_path_factory.mktemp("unbroken")
    return path, toy_run.train(path)


def delete(checkpoint):
    shutil.rmtree(checkpoint)


def damage(checkpoint):
    record = checkpoint / "metadata" / "metadata"
    record.write_bytes(record.read_bytes().replace(b"valid_loss", b"valid_lost"))


@pytest.mark.parametrize("stage", ["vae", "ncp"])
@pytest.mark.parametrize("which", ["newest", "all"])
@pytest.mark.parametrize("lose", [delete, damage])
def test_the_log_is_that_of_the_unbroken_run(unbroken, tmp_path, stage, which, lose):
    source, expected = unbroken
    path = shutil.copytree(source, tmp_path / "run")
    saved = sorted((path / stage / "checkpoints").iterdir(), key=lambda p: int(p.name))
    assert [p.name for p in saved[-2:]] == ["30", "40"]
    for checkpoint in saved if which == "all" else saved[-1:]:
        lose(checkpoint)
    assert toy_run.train(path) == expected
    records = [json.loads(line) for line in expected.splitlines()]
    assert [r["stage"] for r in records] == 12 * ["vae"] + 12 * ["ncp"]
