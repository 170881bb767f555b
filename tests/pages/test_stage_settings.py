"""`stage_settings.py`: numbers stand with the settings that made them."""

import json

import pytest

from ncp_jax.pages import comparison_page, run_page, stage_settings
from tests.pages.test_run_page import METRICS, Page, metric

BEFORE = {
    "seed": 3,
    "data": {"name": "mnist"},
    "vae": {"num_steps": 9},
    "ncp": {"num_steps": 8},
    "sample": {"num_proposals": 100, "chunk_size": 5},
    "evaluate": {"split": "test", "num_importance_samples": 20},
}
SECTIONS = ("seed", "data", "vae", "ncp", "sample", "evaluate")


def changed(config, **values):
    """E.g. changed(config, sample__num_proposals=7)."""
    config = json.loads(json.dumps(config))
    for name, value in values.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def results(sample=BEFORE, evaluate=BEFORE, is_done=True):
    """Records of both measuring stages, each with its own settings."""
    stages = {
        "sample": {"config": {name: sample[name] for name in SECTIONS[:-1]}},
        "evaluate": {"config": evaluate},
    }
    for record in stages.values() if is_done else ():
        record["fingerprint"] = "0123"
    return {"metrics": METRICS, "run": {"stages": stages}}


def written(folder, config, records):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(records))
    return folder


def text_of(folder, config, records):
    path = run_page.write(written(folder, config, records))
    return Page(path.read_text(encoding="utf-8")).text


def test_a_run_of_one_call_prints_every_setting_once(tmp_path):
    assert list(stage_settings.remarks(BEFORE, results())) == []
    tables = stage_settings.tables(BEFORE, results())
    fields = [field for table in tables.values() for field in table]
    assert len(fields) == len(set(fields)) == 8
    assert tables["Settings of sample"]["sample.num_proposals"] == 100
    assert tables["Settings of evaluate"].keys() == {
        "evaluate.split",
        "evaluate.num_importance_samples",
    }
    text = text_of(tmp_path, BEFORE, results())
    assert "Test NLL" in text and "asked for" not in text


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"sample__num_proposals": 7}, "numbers of sample: sample.num_proposals: 100"),
        (
            {"evaluate__num_importance_samples": 7777},
            "of evaluate: evaluate.num_importance_samples: 20",
        ),
    ],
)
def test_settings_of_a_refused_call_are_not_those_of_the_numbers(
    tmp_path, setting, shown
):
    asked = changed(BEFORE, **setting)
    (value,) = setting.values()
    tables = stage_settings.tables(asked, results())
    assert value not in {v for table in tables.values() for v in table.values()}
    text = text_of(tmp_path, asked, results())
    assert f"{shown} -> {value}." in text  # and nowhere else
    assert text.count(str(value)) == 1 or value == 7


def test_samples_of_one_call_beside_measures_of_another_are_told_apart(tmp_path):
    drawn = changed(BEFORE, sample__num_proposals=2)
    records = results(sample=drawn)
    tables = stage_settings.tables(drawn, records)
    assert tables["Settings of sample"]["sample.num_proposals"] == 2
    assert tables["Settings of evaluate"]["sample.num_proposals"] == 100
    text = text_of(tmp_path, drawn, records)
    assert "not those that were measured (sample.num_proposals: 100 -> 2)" in text


def test_what_only_takes_another_time_is_not_spoken_of():
    drawn = changed(BEFORE, sample__chunk_size=50)
    assert list(stage_settings.remarks(drawn, results(sample=drawn))) == []


def test_a_stage_that_did_not_end_is_named(tmp_path):
    text = text_of(tmp_path, BEFORE, results(is_done=False))
    for stage in ("sample", "evaluate"):
        assert f"Stage {stage} was begun again" in text
        assert f"Run --stage={stage}." in text


def with_weights(**read):
    """Records of stages that each read the weights of these versions."""
    records = results()
    for stage, versions in read.items():
        record = records["run"]["stages"].setdefault(stage, {"fingerprint": "0123"})
        record["weights"] = {
            name: {"step": 9, "fingerprint": version}
            for name, version in zip(("vae", "ncp"), versions, strict=False)
        }
    return records


@pytest.mark.parametrize(
    ("vae", "ncp", "sample", "evaluate", "remark"),
    [
        ("a", "ab", "ab", "ab", None),
        ("a", "", "ab", "ab", None),  # an old record
        (
            *("a", "ac", "ab", "ab"),
            "sample and evaluate are of earlier weights of ncp: run --stage=sample, "
            "then --stage=evaluate.",
        ),
        (
            *("a", "ac", "ac", "ab"),
            "results of evaluate are of earlier weights of ncp: run --stage=evaluate.",
        ),
        (
            *("d", "dc", "ab", "ab"),
            "sample and evaluate are of earlier weights of vae and ncp: run --st",
        ),
        (
            *("d", "ab", "ab", "ab"),
            "ncp and sample and evaluate are of earlier weights of vae: run --stage=nc",
        ),
    ],
)
def test_numbers_of_earlier_weights_are_named(
    tmp_path, vae, ncp, sample, evaluate, remark
):
    records = with_weights(vae=vae, ncp=ncp, sample=sample, evaluate=evaluate)
    text = text_of(tmp_path, BEFORE, records)
    if remark:
        assert remark in text
    else:
        assert "earlier weights" not in text


def test_numbers_of_the_validation_set_are_not_called_test(tmp_path):
    chosen = changed(BEFORE, evaluate__split="valid")
    text = text_of(tmp_path, BEFORE, results(evaluate=chosen))
    assert "Validation NLL (nats)" in text and "Test NLL" not in text


def test_records_without_settings_are_shown_with_those_of_the_folder(tmp_path):
    tables = stage_settings.tables(BEFORE, {"metrics": {}})
    assert list(tables) == ["Configuration"] and len(tables["Configuration"]) == 8
    assert stage_settings.of("evaluate", BEFORE, {}) is BEFORE
    for broken in ([], {"sample": []}, {"sample": {"config": 3}}):
        records = {"metrics": {"gain_nats": metric(1.0, 0.1)}, "run": {}}
        records["run"]["stages"] = broken if isinstance(broken, dict) else {}
        assert stage_settings.tables(BEFORE, records) == tables
        assert list(stage_settings.remarks(BEFORE, records)) == []


def test_runs_are_compared_by_what_their_numbers_are_of(tmp_path):
    asked = changed(BEFORE, evaluate__num_importance_samples=7777)
    few = changed(BEFORE, evaluate__num_importance_samples=5)
    runs = [
        written(tmp_path / "a", asked, results()),
        written(tmp_path / "b", few, results(evaluate=few)),
    ]
    html = comparison_page.write(runs, tmp_path / "out").read_text()
    assert "<td>7777<" not in html and "20 -&gt; 7777." in html
    assert "<td>20</td><td>5</td>" in html


def test_runs_side_by_side_keep_their_remarks(tmp_path):
    asked = changed(BEFORE, evaluate__num_importance_samples=7)
    paths = [
        written(tmp_path / "a", BEFORE, results()),
        written(tmp_path / "b", asked, results(is_done=False)),
    ]
    text = Page(comparison_page.write(paths, tmp_path).read_text()).text
    for remark in ("Stage sample was begun again", "Later asked for"):
        assert f"{paths[1]}: {remark}" in text
        assert f"{paths[0]}: {remark}" not in text
