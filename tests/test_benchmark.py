"""The benchmark times what it says, at a size of seconds."""

import json
import math

import pytest

from ncp_jax import benchmark, experiment
from tests import tiny


def test_the_stage_writes_ratios_and_trains_nothing(tmp_path):
    settings = tiny.config(benchmark={"num_steps": 10, "num_repeats": 2})
    experiment.run(settings, tmp_path, "benchmark")
    timings = json.loads((tmp_path / "benchmark.json").read_text())["vae"]
    ratio = timings["loop_over_bare_scan"]
    assert ratio["n"] == 2 and 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    for loop, scan in zip(
        timings["loop_steps_per_second"],
        timings["bare_scan_steps_per_second"],
        strict=True,
    ):
        assert ratio["min"] <= scan / loop * (1 + 1e-9)
        assert scan / loop <= ratio["max"] * (1 + 1e-9)
    assert not (tmp_path / "vae").exists()


def test_the_timed_part_is_what_follows_the_first_validation(monkeypatch):
    clock = iter(range(1_000_000))
    monkeypatch.setattr(benchmark, "perf_counter", lambda: next(clock))
    timings = benchmark.training_loop(
        tiny.toy_task(),
        tiny.toy_state(),
        num_steps=40,
        num_repeats=1,
        steps_per_dispatch=5,
        steps_per_eval=10,
    )
    # A tick per look at the clock: 8 dispatches after the first validation and the end
    # of the last save; the bare scan looks twice.
    assert timings["loop_over_bare_scan"]["median"] == pytest.approx(9.0)
    assert math.isclose(timings["loop_steps_per_second"][0], 40 / 9)
