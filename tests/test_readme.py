"""README says what is true: its code runs, its numbers are those of the records."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ncp_jax.experiment import stages
from ncp_jax.report import benchmark_page, quantities, run_page

BENCHMARK_TABLES = (  # record, part, columns that the README leaves out
    ("mnist_nvae", "samplers", "images", "first call", "ESS/s"),
    ("mnist_nvae", "alone"),
    ("mnist_nvae", "stage_two", "devices"),
    ("mnist_mlp", "samplers", "images", "first call", "ESS/s"),
    ("mnist_mlp", "alone"),
    ("mnist_mlp", "stage_two", "devices"),
    ("mnist_mlp", "training"),
    ("celeba64", "samplers", "images", "ESS/s", "lowest to highest"),
    ("celeba64", "stage_two", "devices"),
)
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _records(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def _interval(results, metric):
    return " ".join(quantities.estimate(results["metrics"][metric]))


@pytest.fixture(scope="module")
def plugged_in():
    """The names that the README's example defines."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    return names


def test_the_plug_in_example_gains_and_draws(plugged_in):
    gain = plugged_in["numbers"]["gain_nats"]
    assert gain.value > 3 * gain.stderr > 0
    for drawn in (plugged_in["sir"], plugged_in["langevin"]):
        assert drawn.images.shape == (50, 8, 8, 1)
        assert np.all((drawn.images > 0) & (drawn.images < 1))
        z_1, z_2 = drawn.latents
        assert z_1.shape == (50, 1, 2, 2, 4) and z_2.shape == (50, 1, 4, 4, 2)
    ess = [info.ess for info in plugged_in["sir"].infos]
    assert all(np.all((e >= 1) & (e <= 100)) for e in ess)


def test_the_plugged_in_vae_is_short():
    (body,) = re.findall(r"(class TwoScales.*?\n)\n\n\S", README, re.DOTALL)
    assert len(body.splitlines()) < 60


def test_the_closing_table_is_that_of_the_recorded_run():
    assert run_page.summary_table(_records("digits")) in README


def test_the_results_table_is_that_of_the_recorded_runs():
    for name in ("digits", "toy25", "mnist_mlp", "static_mlp", "fashion_mlp"):
        (row,) = re.findall(rf"^\| `{name}.*CPU.*", README, re.MULTILINE)
        for metric in ("nll_base", "nll_ncp", "gain_nats", "log_z", "nce_loss"):
            assert _interval(_records(name), metric) in row, (name, metric)


def test_the_groups_table_is_that_of_the_recorded_run():
    nvae = _records("mnist_nvae")
    (row,) = re.findall(r"^\| `mnist_nvae.py:cpu.*", README, re.MULTILINE)
    for metric in ("nll_base", "nll_ncp", "gain_nats", "log_z"):
        assert _interval(nvae, metric) in row, metric
    for k in range(10):
        names = (f"nce_loss/{k}", f"sir_ess/{k}", f"sir_log_z/{k}")
        cells = " | ".join(_interval(nvae, name) for name in names)
        assert f"| {k} | {cells} |" in README


def test_the_prior_hole_table_is_that_of_the_recorded_run():
    toy = _records("toy25")
    for source in ("base", "sir", "langevin", "floor"):
        assert f"| {_interval(toy, f'off_mode_{source}')} |" in README


def test_the_table_of_sample_quality_is_that_of_the_recorded_run():
    record = _records("mnist_mlp")
    metrics = record["metrics"]
    for source in ("base", "sir", "langevin", "floor", "real"):
        names = (f"fd_lenet_{source}", f"kid_lenet_{source}")
        cells = [_interval(record, name) for name in names]
        near = f"nearer_than_held_out_{source}"
        cells.append(_interval(record, near) if near in metrics else "")
        assert f"| {' | '.join(cells)} |" in README
    for name in ("mmd_base", "mmd_sir"):
        assert _interval(record, name) in README
    settings = record["run"]["config"]["evaluate"]
    assert (settings["feature_net"], settings["fid_num_images"]) == ("lenet5", 10_000)


TABLE_2 = ("nll_ncp", "gain_nats", "gain_snis_nats", "log_z", "ess_fraction")


def test_table_2_is_that_of_the_recorded_runs():
    """All on one frozen VAE, that of results/mnist_mlp.json."""
    names = [f"table2/{path.stem}" for path in (ROOT / "results/table2").glob("*.json")]
    base = _records("mnist_mlp")["metrics"]["nll_base"]
    for record in map(_records, ["mnist_mlp", *names]):
        cells = [_interval(record, name) for name in TABLE_2]
        assert f"| {' | '.join(cells)} |" in README
        assert record["metrics"]["nll_base"] == base
    for seeds in (
        ("mnist_mlp", "table2/paper_1", "table2/paper_2"),
        ("table2/ranking_0", "table2/ranking_1", "table2/ranking_2"),
        ("table2/deep_0", "table2/deep_1", "table2/deep_2"),
    ):
        gains = [_records(s)["metrics"]["gain_nats"]["value"] for s in seeds]
        spread = f"{np.std(gains, ddof=1):.3f}"
        said = f"{np.mean(gains):.3f} (standard deviation {spread})"
        assert said in " ".join(README.split())


def test_the_table_of_other_bases_is_that_of_the_recorded_runs():
    for run in _records("table2_bases"):
        cells = [_interval(run, name) for name in ("nll_base", *TABLE_2)]
        assert f"| {' | '.join((run['stage_1'], run['ratio'], *cells))} |" in README


def test_what_the_gain_follows_is_that_of_the_recorded_runs():
    for run in _records("table2_ablation"):
        names = ("nce_loss", "gain_nats", "log_z", "ess_fraction")
        settings = f"`{run['settings']}`" if run["settings"] else "none"
        cells = " | ".join((settings, *(_interval(run, name) for name in names)))
        assert f"| {cells} |" in README


def test_the_benchmark_tables_are_those_of_the_recorded_runs():
    for name, part, *omitted in BENCHMARK_TABLES:
        record = _records(f"benchmark_{name}")
        found = record[part]
        if name == "celeba64":  # most of what draws ten was too long to be run
            rows = [row for row in found["rows"] if row.get("num_images", 1) == 1]
            found = found | {"rows": rows}
        assert benchmark_page.markdown(found, *omitted) in README, (name, part)
        assert record["environment"]["date"] in README


def test_every_stage_and_config_is_described():
    for stage in stages.STAGES:
        assert f"| `{stage}`" in README
    for config in (ROOT / "configs").glob("*.py"):
        assert f"| `{config.name}` |" in README
