"""README says what is true: its code runs, its numbers are those of the records."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ncp_jax import experiment, quantities, report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _records(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def _interval(results, metric):
    shown = {q.name: q for q in quantities.printable(results)}[metric]
    return f"{shown.value} {shown.interval}"


def test_the_plug_in_example_runs_and_repairs_the_prior():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    base = names["prior"].generate(
        names["ncp"], names["keys"][4], 500, 100, names["prior"].by_base()
    )

    def distance(samples):  # to the nearest of the four points that are the data
        points = np.unique(np.asarray(names["x"]), axis=0)
        return np.linalg.norm(samples[:, None] - points[None], axis=-1).min(1).mean()

    assert jnp.isfinite(names["samples"]).all()
    # 0.25 is the floor: the mean distance of q(z | x), 0.2 wide, from its centre
    assert distance(names["samples"]) < 0.35 < 0.7 < distance(base.images)


def test_the_closing_table_is_that_of_the_recorded_run():
    assert report.summary_table(_records("digits")) in README


def test_the_results_table_is_that_of_the_recorded_runs():
    for name in ("digits", "toy25", "mnist_mlp"):
        (row,) = re.findall(rf"^\| `{name}.*CPU.*", README, re.MULTILINE)
        for metric in ("nll_base", "nll_ncp", "gain_nats", "log_z", "nce_loss"):
            assert _interval(_records(name), metric) in row, (name, metric)


def test_the_prior_hole_table_is_that_of_the_recorded_run():
    toy = _records("toy25")
    for source in ("base", "sir", "langevin", "floor"):
        assert f"| {_interval(toy, f'off_mode_{source}')} |" in README


def test_every_stage_and_config_is_described():
    for stage in experiment.STAGES:
        assert f"| `{stage}`" in README
    for config in (ROOT / "configs").glob("*.py"):
        assert f"| `{config.name}` |" in README
