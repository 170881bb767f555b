"""`group_curves.py` and the plots of what it reads."""

import json
import math

import numpy as np
import pytest

from ncp_jax.pages.parts import group_curves, group_plots, plots


def record(step, gain, split="train", stage="ncp"):
    row = {"stage": stage, "split": split, "step": step, "loss": 1.0, "gain": gain}
    return json.dumps(row) + "\n"


def test_curves_have_a_column_per_group_and_the_last_word_on_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        record(20, [0.3, 0.1])
        + record(10, [0.1, 0.0])
        + record(20, [0.2, 0.1])  # after a resume
        + record(10, 5.0, stage="vae")
        + record(20, [0.05, 0.02], split="valid")
        + '{"stage": "ncp", "split": "train", "step": 25, "loss": 1.0}\n'
        + record(30, [9.0, 9.0])[:40]
    )
    found = group_curves.read(path, "gain")
    assert found.keys() == {"train", "valid"}
    np.testing.assert_array_equal(found["train"][0], [10, 20])
    np.testing.assert_array_equal(found["train"][1], [[0.1, 0.0], [0.2, 0.1]])
    np.testing.assert_array_equal(found["valid"][1], [[0.05, 0.02]])
    panels = group_plots.gains(found)
    assert [p.caption for p in panels] == [
        "Group 0. Last gain: 0.2 train, 0.05 held out (nats)",
        "Group 1. Last gain: 0.1 train, 0.02 held out (nats)",
    ]
    assert all(p.png.startswith(b"\x89PNG") for p in panels)


def test_runs_without_gains_have_no_curves(tmp_path):
    assert group_curves.read(tmp_path / "absent", "gain") == {}
    (tmp_path / "old").write_text('{"stage": "ncp", "split": "valid", "step": 1}\n3\n')
    assert group_curves.read(tmp_path / "old", "gain") == {}
    assert group_plots.gains({}) == []


def test_one_group_has_no_number_and_many_are_thinned_out():
    def curves(num_groups):
        steps, values = np.array([10.0, 20.0]), np.full((2, num_groups), 0.5)
        values[0] = np.nan
        return {"valid": (steps, values)}

    (panel,) = group_plots.gains(curves(1))
    assert panel.caption == "Last gain: 0.5 held out (nats)"
    assert len(group_plots.gains(curves(40))) == group_plots.MAX_GROUPS


@pytest.mark.parametrize("m", [1.0, 100.0])
def test_the_line_of_no_signal_follows_the_weight(m):
    softplus = [math.log1p(math.exp(x)) for x in (math.log(m), -math.log(m))]
    expected = softplus[0] + m * softplus[1]
    assert plots.no_signal(m) == pytest.approx(expected, rel=1e-12)
    assert (plots.no_signal(m) == pytest.approx(plots.NO_SIGNAL)) == (m == 1.0)
