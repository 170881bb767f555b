"""`comparison_page.py`: every number of every run, in its own column."""

import json
import os

import pytest
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.pages import comparison_page


def finished(path, gain, *, seed, names=("sir",), **more):
    """A workdir as a run leaves it."""
    (path / "samples").mkdir(parents=True)
    config = {"seed": seed, "vae": {"num_steps": 5}}
    (path / "config.json").write_text(json.dumps(config))
    metrics = {"gain_nats": gain, **more}
    estimates = {
        name: {"value": value, "stderr": 0.1, "n": 50, "unit": "nats"}
        for name, value in metrics.items()
    }
    estimates["unsure"] = {"value": 7.5, "stderr": None, "n": 1, "unit": "nats"}
    results = {"metrics": estimates, "run": {"stages": {"evaluate": {}}}}
    (path / "results.json").write_text(json.dumps(results))
    for name in names:
        Image.new("L", (8, 8)).save(path / "samples" / f"{name}.png")
    return path


@pytest.fixture
def runs(tmp_path):
    return [
        finished(tmp_path / "a", 1.25, seed=0, names=("base", "sir")),
        finished(tmp_path / "b", 2.5, seed=1, **{"nce_loss/1": 1.3}),
    ]


def rows_of(html, first):
    (row,) = [r for r in html.split("<tr>") if f"<code>{first}</code>" in r]
    return [cell.split("</td>")[0] for cell in row.split("<td>")[2:]]


def test_runs_stand_side_by_side(runs, tmp_path):
    html = comparison_page.write(runs, tmp_path / "new" / "folder").read_text()
    assert [str(run) in html for run in runs] == [True, True]
    first, second = rows_of(html, "gain_nats")
    assert first.startswith("1.25 ± 0.20") and second.startswith("2.50 ± 0.20")
    assert "n = 50" in first
    assert rows_of(html, "nce_loss")[0] == ""  # the first run has no such number
    assert "group 1" in html and "7.5" not in html
    assert rows_of(html, "seed") == ["0", "1"]
    assert "num_steps" not in html  # the same in both
    assert html.count("<img") == 3  # two by SIR, one of the base prior


@pytest.mark.parametrize("which", [[], [0], [0, 0]])
def test_fewer_than_two_runs_are_refused(runs, tmp_path, which):
    with pytest.raises(InputError, match=r"config\.report\.workdirs takes two"):
        comparison_page.write([runs[i] for i in which], tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_run_in_other_words_is_the_same_run(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs[0])
    for same in (runs[0] / ".." / "a", tmp_path / "link"):
        with pytest.raises(InputError, match=r"takes two different workdirs"):
            comparison_page.write([runs[0], same], tmp_path)


def test_names_that_are_no_utf_8_are_escaped(runs, tmp_path):
    strange = runs[0].rename(tmp_path / os.fsdecode(b"a\xff"))
    html = comparison_page.write([strange, runs[1]], tmp_path / strange).read_text()
    assert "/a\\xff" in html


def test_a_run_that_is_not_finished_is_named(runs, tmp_path):
    (runs[1] / "results.json").unlink()
    with pytest.raises(InputError, match=r"b/results\.json: run main\.py"):
        comparison_page.write(runs, tmp_path)


@pytest.mark.parametrize("run", [{}, {"stages": {"vae": {}}}])
def test_a_run_that_was_not_evaluated_is_named(runs, tmp_path, run):
    (runs[1] / "results.json").write_text(json.dumps({"metrics": {}, "run": run}))
    with pytest.raises(InputError, match=r"/b has not been evaluated: run --stage=ev"):
        comparison_page.write(runs, tmp_path)


def test_a_name_that_is_left_empty_is_no_run(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(finished(tmp_path / "here", 3.0, seed=2))
    config = config_lib.default()
    config.report.workdirs = ",".join(map(str, runs)) + ", "
    stages.run(config, tmp_path / "out", "report")
    html = (tmp_path / "out" / "report" / "comparison.html").read_text()
    assert len(rows_of(html, "gain_nats")) == 2


def test_the_report_stage_compares_if_it_is_told_to(runs, tmp_path, capsys):
    config = config_lib.default()
    config.report.workdirs = ",".join(map(str, runs))
    stages.run(config, tmp_path / "out", "report")
    assert (
        str(tmp_path / "out" / "report" / "comparison.html") in capsys.readouterr().out
    )
