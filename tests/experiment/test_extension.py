"""A trained stage may become longer: then it is what a longer run is, to the bit."""

import contextlib
import json
import shutil

import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup.workdir import Workdir
from tests import tiny
from tests.experiment import toy_run


def records(run, stage):
    """{step: sha256 by array} of the checkpoints of a stage."""
    paths = (run / stage / "checkpoints").glob("*/metadata/metadata")
    return {
        path.parents[1].name: json.loads(path.read_text())["sha256"] for path in paths
    }


def results(run):
    return json.loads((run / "results.json").read_text())["run"]["stages"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A toy run of 40 steps in each stage, and its log."""
    path = tmp_path_factory.mktemp("short")
    toy_run.train(path)
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A toy run of 80 steps in each stage."""
    path = tmp_path_factory.mktemp("long")
    toy_run.train(path, **{"vae.num_steps": 80, "ncp.num_steps": 80})
    return path


def test_a_longer_stage_1_is_that_of_the_longer_run(short, long, tmp_path, capsys):
    """And stage 2 is trained again on it, in as many steps."""
    path = shutil.copytree(short, tmp_path / "run")
    changes = {"vae.num_steps": 80}
    toy_run.train(path, ("vae",), **changes)
    shown = capsys.readouterr().out
    assert "vae: of 80 steps in the place of 40, under the same schedule" in shown
    assert "vae: continues from step 40" in shown
    assert records(path, "vae")["80"] == records(long, "vae")["80"]
    with pytest.raises(InputError, match=r"became longer: run --stage=ncp first"):
        load_ncp(path, **changes)
    changes |= {"ncp.num_steps": 80}
    log = toy_run.train(path, ("ncp",), **changes)
    assert "other weights now: training again; old: " in capsys.readouterr().out
    assert log == (long / "metrics.jsonl").read_text()
    assert (path / "ncp" / "of_shorter_stage_1" / "40").is_dir()
    for stage in ("vae", "ncp"):
        assert records(path, stage)["80"] == records(long, stage)["80"]
    toy_run.train(path, **changes)
    assert "ncp: complete, 80 steps" in capsys.readouterr().out


def load_ncp(path, **changes):
    settings = toy_run.config(**changes)
    with contextlib.closing(Workdir(path, config_lib.as_json(settings), {})) as folder:
        return toy_run.ToyExperiment(settings, folder, None).load_ncp()


def test_a_longer_stage_2_is_that_of_the_longer_run(short, tmp_path):
    path = shutil.copytree(short, tmp_path / "run")
    once = toy_run.train(tmp_path / "once", **{"ncp.num_steps": 80})
    for num_steps in (60, 80):  # twice longer
        log = toy_run.train(path, **{"ncp.num_steps": num_steps})
    assert log == once
    assert records(path, "ncp") == records(tmp_path / "once", "ncp")
    assert results(path)["ncp"]["extended_from"] == [40, 60]
    assert "extended_from" not in results(path)["vae"]
    load_ncp(path, **{"ncp.num_steps": 80})  # its best step may be of any length


@pytest.mark.parametrize("end", [35, 37])  # on a dispatch's boundary, and beside it
def test_what_ends_between_validations_goes_on_from_the_one_before(
    long, tmp_path, end, capsys
):
    toy_run.train(tmp_path, ("vae",), **{"vae.num_steps": end})
    log = toy_run.train(tmp_path, ("vae",), **{"vae.num_steps": 80})
    assert f"step {end} ended a shorter run" in capsys.readouterr().out
    expected = (long / "metrics.jsonl").read_text().splitlines()
    assert log.splitlines() == [r for r in expected if '"stage": "vae"' in r]
    assert records(tmp_path, "vae")["80"] == records(long, "vae")["80"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vae.schedule": "cosine"},
            r"vae\.num_steps: 40 -> 80 changes a schedule .*: the learning rate goes "
            r"from 0 to 0\.00015 at step 40, and to 0 by step 80\. --config\.vae\.ext",
        ),
        (
            {"vae.kl_warmup_fraction": 0.75},
            r"the weight of the KL goes from 1 to 0\.667 at step 40, and rises as in a",
        ),
        (
            {"vae.schedule": "cosine", "vae.kl_warmup_fraction": 0.1},
            "the learning rate .*; the weight of the KL goes from 1 to 1 ",
        ),
    ],
)
def test_a_schedule_that_follows_the_length_changes_on_request_only(
    tmp_path, changes, message, capsys
):
    toy_run.train(tmp_path, ("vae",), **changes)
    longer = changes | {"vae.num_steps": 80}
    with pytest.raises(InputError, match=message):
        toy_run.train(tmp_path, ("vae",), **longer)
    toy_run.train(tmp_path, ("vae",), **longer, **{"vae.extend": True})
    shown = capsys.readouterr().out
    assert "vae: of 80 steps in the place of 40; the " in shown
    assert results(tmp_path)["vae"]["extended_from"] == [40]
    toy_run.train(tmp_path, ("vae",), **longer)  # said once, done once
    assert "vae: complete, 80 steps" in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_a_schedule_that_does_not_needs_no_word(tmp_path, schedule):
    changes = {"vae.schedule": schedule}
    toy_run.train(tmp_path, ("vae",), **changes)
    toy_run.train(tmp_path, ("vae",), **changes, **{"vae.num_steps": 50})


@pytest.mark.parametrize(
    ("stages", "changes"),
    [
        (("vae", "ncp"), {"vae.num_steps": 30}),  # shorter
        (("vae", "ncp"), {"vae.num_steps": 80, "vae.learning_rate": 1.0}),
        (("sample",), {"ncp.num_steps": 80}),
        (("vae", "ncp"), {"vae.num_steps": 80, "vae.checkpoint": "an_nvae.pt"}),
    ],
)
def test_what_is_more_than_a_longer_stage_is_refused(short, stages, changes):
    before = (short / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"another config:\n  config\.\w+\.\w+: "):
        toy_run.train(short, stages, **changes)
    assert (short / "config.json").read_bytes() == before
    assert not (short / "vae" / "extended.json").exists()


def test_a_begun_run_may_become_longer_and_be_stopped_again(short, long, tmp_path):
    path = shutil.copytree(short, tmp_path / "run")
    shutil.rmtree(path / "vae" / "checkpoints" / "40")  # as if stopped at 30
    for num_steps in (50, 80):
        toy_run.train(path, ("vae",), **{"vae.num_steps": num_steps})
    assert records(path, "vae")["80"] == records(long, "vae")["80"]


def test_a_length_that_was_given_by_mistake_may_be_taken_back(short, tmp_path):
    path = shutil.copytree(short, tmp_path / "run")
    longer = {"vae.num_steps": 80}
    with pytest.raises(InputError, match="vae has not reached its 80 steps"):
        toy_run.train(path, ("ncp",), may_extend=("vae", "ncp"), **longer)
    assert toy_run.train(path) == (short / "metrics.jsonl").read_text()
    toy_run.train(path, **longer)
    with pytest.raises(InputError, match=r"vae\.num_steps: 80 -> 40"):
        toy_run.train(path)


@pytest.mark.parametrize("content", ["{", '{"lengths": [{"num_steps": "40"}]}'])
def test_a_damaged_record_of_lengths_is_named(short, tmp_path, content):
    path = shutil.copytree(short, tmp_path / "run")
    (path / "vae" / "extended.json").write_text(content)
    with pytest.raises(InputError, match=r"vae/extended\.json is .*: bring it back"):
        toy_run.train(path, ("vae",))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "ncp"])
def test_true_networks_learn_the_same_in_two_lengths(tmp_path, stage):
    """Both, though only one stage is cut: stage 2 reads what stage 1 has left."""
    for name, lengths in (("once", (20,)), ("twice", (10, 20))):
        for num_steps in lengths:
            config = tiny.config()
            config.ncp.schedule = "constant"
            config[stage].num_steps = num_steps
            for trained in ("vae", "ncp"):
                if (stage, trained, num_steps) != ("vae", "ncp", 10):
                    stages.run(config, tmp_path / name, trained)
    for trained in ("vae", "ncp"):
        once, twice = (records(tmp_path / name, trained) for name in ("once", "twice"))
        assert once.keys() == twice.keys() == {"10", "20"} and once == twice
