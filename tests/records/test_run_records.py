"""`run_records.py`, `log_lines.py`: what people edit is named, and enters no number."""

import json
import re
from pathlib import Path

import pytest

from ncp_jax.errors import InputError
from ncp_jax.pages import run_page
from ncp_jax.records import log_lines, run_records

RESULTS = Path(__file__).parents[2] / "results"
CONFIG = {
    "seed": 7,
    "data": {"name": "digits", "shape": [8, 8, 1]},
    "vae": {"model": {"name": "mlp"}, "num_steps": 20},
    "ncp": {"negative_weight": 1.0},
    "sample": {"samplers": ["sir", "langevin"]},
    "evaluate": {"split": "test"},
}
METRIC = {"value": -1.5, "stderr": 0.1, "n": 100, "unit": "nats"}
STAGE = {
    "fingerprint": "0123",
    "config": CONFIG,
    "weights": {"vae": {"step": 20, "fingerprint": "ab"}},
    "environment": {"device": "cpu"},
}
LINES = [
    {"stage": "vae", "split": "train", "step": 10, "loss": 9.0, "kl": [0.0, 1.0]},
    {"stage": "ncp", "split": "valid", "step": 10, "loss": [1.3], "gain": [0.1]},
]


def results():
    run = {
        "jax": "0.1",
        "seed": 7,
        "config": CONFIG,
        "wall_seconds": {"vae": 3.5, "ncp": 2},
        "metric_names": {"evaluate": ["gain_nats"]},
        "stages": {"vae": STAGE, "evaluate": STAGE},
    }
    metrics = {"gain_nats": METRIC, "log_z": METRIC | {"stderr": None}}
    return json.loads(json.dumps({"metrics": metrics, "run": run}))


def replaced(content, path, value):
    """A copy with another value at a path; without the field where it is `...`."""
    *outer, last = path
    part = content = json.loads(json.dumps(content))
    for name in outer:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return content


@pytest.fixture
def run(tmp_path):
    """A finished run, as far as a page needs it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "results.json").write_text(json.dumps(results()))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    return tmp_path


EDITED_RESULTS = [
    (("metrics",), [], "metrics: Expected `object`, got `array`"),
    (("metrics", "log_z"), 3, r"metrics\['log_z'\]: Expected `object`, got `int`"),
    (("metrics", "log_z", "value"), "x", r"metrics\['log_z'\].value: Expected `float"),
    (("metrics", "log_z", "stderr"), "x", r"metrics\['log_z'\].stderr: Expected"),
    (("metrics", "log_z", "stderr"), -1.0, r"stderr: Expected `float` >= 0"),
    (("metrics", "log_z", "n"), "x", r"metrics\['log_z'\].n: Expected `int"),
    (("metrics", "log_z", "n"), -1, r"n: Expected `int` >= 0"),
    (("metrics", "log_z", "n"), True, r"n: Expected `int"),
    (("metrics", "log_z", "unit"), 1, r"unit: Expected `str"),
    (("run",), [], "run: Expected `object`"),
    (("run", "seed"), "x", "run.seed: Expected `int`"),
    (("run", "wall_seconds"), None, "run.wall_seconds: Expected `object`, got `null`"),
    (("run", "wall_seconds", "vae"), None, r"run.wall_seconds\[...\]: Expected `float"),
    (("run", "metric_names", "evaluate"), "x", "run.metric_names.*Expected `array`"),
    (("run", "stages"), [], "run.stages: Expected `object`, got `array`"),
    (("run", "stages"), "x", "run.stages: Expected `object`, got `str`"),
    (("run", "stages", "vae"), [], r"run.stages\['vae'\]: Expected `object`"),
    (("run", "stages", "vae", "fingerprint"), 3, r"\['vae'\].fingerprint: Expected"),
    (("run", "stages", "vae", "config"), 3, r"\['vae'\].config: Expected `object`"),
    (("run", "stages", "vae", "config", "data"), 3, r"\['vae'\].config.data: Expected"),
    (("run", "stages", "vae", "weights", "vae"), 3, r"\['vae'\].weights"),
    (("run", "stages", "vae", "environment"), [], r"\['vae'\].environment: Expected"),
    (("run", "config", "sample", "samplers"), "sir", "run.config.sample.samplers"),
]


@pytest.mark.parametrize(("path", "value", "message"), EDITED_RESULTS)
def test_an_edited_result_is_named_with_field_and_remedy(run, path, value, message):
    file = run / "results.json"
    file.write_text(json.dumps(replaced(results(), path, value)))
    named = rf"results\.json is not one of ours \(.*{message}.*\): "
    with pytest.raises(InputError, match=named + "delete it"):
        run_records.read_results(file)
    with pytest.raises(InputError, match=named + "delete it"):
        run_page.write(run)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), "x", "seed: Expected `int`"),
        (("data",), [], "data: Expected `object`"),
        (("data", "name"), 3, "data.name: Expected `str`"),
        (("data", "shape"), [8, "x"], "data.shape"),
        (("vae", "model"), "mlp", "vae.model: Expected `object`"),
        (("sample", "samplers"), [1], "sample.samplers"),
        (("evaluate", "split"), None, "evaluate.split: Expected `str`"),
        (("ncp",), 3, "ncp: Expected `object`"),
    ],
)
def test_an_edited_config_is_named_with_field_and_remedy(run, path, value, message):
    (run / "config.json").write_text(json.dumps(replaced(CONFIG, path, value)))
    named = rf"config\.json is not one of ours \({message}.*\): delete it"
    with pytest.raises(InputError, match=named):
        run_page.write(run)


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "damaged"),
        ('{"metrics": {', "damaged"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "damaged"),
        ('{"a":' * 50 + "1" + "}" * 50, "more than 12 sections"),
    ],
)
def test_what_is_no_record_is_named(run, name, content, reason):
    (run / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is .*{reason}.*: delete it"):
        run_page.write(run)


def test_what_older_runs_lack_is_no_error(run):
    for path in [
        ("run",),
        ("metrics",),
        ("run", "stages", "vae", "weights"),
        ("run", "stages", "vae", "config"),
        ("run", "wall_seconds"),
        ("metrics", "log_z", "n"),
    ]:
        (run / "results.json").write_text(json.dumps(replaced(results(), path, ...)))
        assert run_page.write(run).exists()
    (run / "config.json").write_text("{}")
    assert run_page.write(run).exists()


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name
)
def test_our_own_records_pass(path):
    content = json.loads(path.read_text())
    if isinstance(content, dict) and "run" in content:
        assert run_records.read_results(path) == content
        file_config = content["run"]["config"]
        assert file_config["data"]["name"]


# --- metrics.jsonl


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("step", "10", "step: Expected `int`, got `str`"),
        ("step", None, "step: Expected `int`, got `null`"),
        ("step", 1.5, "step: Expected `int`"),
        ("step", -1, "step: Expected `int` >= 0"),
        ("stage", 3, "stage: Expected `str`"),
        ("split", [], "split: Expected `str`"),
        ("loss", "1.3", "loss is no number"),
        ("loss", None, "loss is no number"),
        ("loss", [], "loss is no number"),
        ("loss", [1.0, "x"], "loss is no number"),
        ("loss", [[1.0]], "loss is no number"),
        ("loss", True, "loss is no number"),
        ("loss", 10**400, "loss is no number"),
    ],
)
def test_an_edited_line_is_named_with_its_number(run, field, value, message):
    lines = [LINES[0], LINES[1] | {field: value}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    message = rf"metrics\.jsonl, line 2: {re.escape(message)}.*: mend this line"
    with pytest.raises(InputError, match=message):
        log_lines.read(run / "metrics.jsonl")
    with pytest.raises(InputError, match=message):
        run_page.write(run)


def test_whole_lines_are_read_and_torn_ones_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"stage": "vae", "spl\n3\n{"loss": 1}\n' + "[" * 100_000)
    assert log_lines.read(run / "metrics.jsonl") == LINES
    assert log_lines.read(run / "nowhere.jsonl") == []
