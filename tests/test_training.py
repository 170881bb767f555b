"""`training.fit` on a toy task: boundaries, resuming, stopping, failing."""

import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import training
from ncp_jax.checkpoints import Checkpoints
from ncp_jax.errors import InputError
from ncp_jax.run_log import RunLog, read_metrics
from ncp_jax.training import Preempted
from tests.tiny import OPTIMIZER, toy_state, toy_task

STEPS = {"num_steps": 25, "steps_per_dispatch": 4, "steps_per_eval": 10}
BOUNDARIES = [4, 8, 10, 12, 16, 20, 24, 25]


def fit(path, task, **steps):
    """Trains from the newest checkpoint in `path` and returns the state."""
    steps = STEPS | steps
    with Checkpoints(path / "checkpoints", {}) as checkpoints:
        restored = checkpoints.restore_latest(toy_state())
        state = restored.state if restored else toy_state()
        log = RunLog(path, task.name, int(state.step), steps["num_steps"])
        try:
            return training.fit(task, state, checkpoints, log, **steps)
        finally:
            log.close()


def newest(path):
    with Checkpoints(path / "checkpoints", {}) as checkpoints:
        return checkpoints.restore_latest(toy_state())


def records(path, split):
    return [r for r in read_metrics(path / "metrics.jsonl") if r["split"] == split]


def signal_at(step, signum, task):
    """The task, with a signal to this process while the inputs of `step` are made."""

    def inputs(first_step, num_steps):
        if first_step <= step < first_step + num_steps:
            os.kill(os.getpid(), signum)
        return task.inputs(first_step, num_steps)

    return toy_task(inputs)


def test_fit_trains_validates_and_saves_on_the_boundaries(tmp_path):
    state = fit(tmp_path, toy_task())
    assert int(state.step) == 25
    assert [r["step"] for r in records(tmp_path, "train")] == BOUNDARIES
    assert [r["step"] for r in records(tmp_path, "valid")] == [10, 20, 25]
    last = newest(tmp_path)
    assert last.step == 25
    chex.assert_trees_all_equal(last.state, state)
    valid = np.sum(records(tmp_path, "valid")[-1]["loss"])
    assert last.metadata["valid_loss"] == pytest.approx(valid)


def test_records_are_means_over_the_steps_of_a_dispatch(tmp_path):
    fit(tmp_path, toy_task())
    first_rows = [r["first_row"] for r in records(tmp_path, "train")]
    assert first_rows == [1.5, 5.5, 8.5, 10.5, 13.5, 17.5, 21.5, 24.0]
    assert all(len(r["loss"]) == 2 for r in records(tmp_path, "train"))


def test_a_dispatch_is_the_same_as_its_single_steps(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    many = fit(tmp_path / "a", toy_task())
    single = fit(tmp_path / "b", toy_task(), steps_per_dispatch=1)
    chex.assert_trees_all_close(many, single, rtol=1e-6)


@pytest.mark.parametrize("stop", [0, 9, 24])
def test_a_stopped_run_ends_with_the_same_bits_and_records(tmp_path, stop):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unbroken = fit(tmp_path / "a", toy_task())
    with pytest.raises(Preempted) as stopped:
        fit(tmp_path / "b", signal_at(stop, signal.SIGTERM, toy_task()))
    assert stopped.value.exit_code == 143
    boundary = next(b for b in BOUNDARIES if b > stop)
    assert f"saved at step {boundary} of 25" in str(stopped.value)
    assert "same command" in str(stopped.value)
    assert newest(tmp_path / "b").step == boundary
    chex.assert_trees_all_equal(fit(tmp_path / "b", toy_task()), unbroken)
    a, b = (tmp_path / run / "metrics.jsonl" for run in "ab")
    assert a.read_text() == b.read_text()


def test_a_resumed_run_without_its_optimiser_would_differ(tmp_path):
    """The comparison above can fail."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unbroken = fit(tmp_path / "a", toy_task())
    half = fit(tmp_path / "b", toy_task(), num_steps=12)
    forgetful = half.replace(opt_state=OPTIMIZER.init(half.params))
    with Checkpoints(tmp_path / "b" / "checkpoints", {}) as checkpoints:
        log = RunLog(tmp_path / "b", "toy", 12, 25)
        other = training.fit(toy_task(), forgetful, checkpoints, log, **STEPS)
        log.close()
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(other.params, unbroken.params)


def test_a_stop_while_validating_keeps_the_validated_checkpoint(tmp_path, monkeypatch):
    write = RunLog.write

    def interrupting(self, step, split, metrics):
        if split == "valid":
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, step, split, metrics)

    monkeypatch.setattr(RunLog, "write", interrupting)
    with pytest.raises(Preempted, match="step 10"):
        fit(tmp_path, toy_task())
    assert newest(tmp_path).metadata["valid_loss"] is not None


def test_an_interrupt_stops_as_tidily(tmp_path):
    with pytest.raises(Preempted, match="SIGINT: toy is saved at step 8") as stopped:
        fit(tmp_path, signal_at(4, signal.SIGINT, toy_task()))
    assert stopped.value.exit_code == 130


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(tmp_path, toy_task())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_acts_at_once():
    with pytest.raises(KeyboardInterrupt), training.StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_a_non_finite_loss_stops_with_step_group_and_last_metrics(tmp_path):
    with pytest.raises(InputError) as stopped:
        fit(tmp_path, toy_task(nan_at=14))
    message = str(stopped.value)
    assert "stage toy" in message and "step 14, group 1" in message
    assert "'first_row': 13" in message  # of the step before
    assert "toy.learning_rate" in message
    last = newest(tmp_path)
    assert last.step == 10
    chex.assert_tree_all_finite(last.state.params)
    assert [r["step"] for r in records(tmp_path, "train")] == [4, 8, 10, 12]


@pytest.mark.parametrize(
    ("nan_at", "shown"), [(0, "metrics: none"), (12, "'first_row': 10.5")]
)
def test_the_last_finite_metrics_may_be_of_the_dispatch_before(tmp_path, nan_at, shown):
    with pytest.raises(InputError, match=shown):
        fit(tmp_path, toy_task(nan_at=nan_at))


def test_a_finished_state_is_left_alone(tmp_path):
    state = fit(tmp_path, toy_task())
    before = (tmp_path / "metrics.jsonl").read_text()
    chex.assert_trees_all_equal(fit(tmp_path, toy_task()), state)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_fit_compiles_each_length_of_dispatch_once(tmp_path):
    traces = []
    task = toy_task()

    def counted(state, data, rows):
        traces.append(rows.shape)
        return task.update(state, data, rows)

    counting = training.Task("toy", task.data, task.inputs, counted, task.validate)
    fit(tmp_path, counting, num_steps=80)
    lengths = {4, 2}  # to a multiple of 4, or of 10
    # One trace for scan's types, one for its body, at most.
    assert len(lengths) <= len(traces) <= 2 * len(lengths)


def test_apply_gradients_averages_the_weights():
    state = toy_state()
    stepped = training.apply_gradients(state, jnp.array([1.0, -1.0]), OPTIMIZER, 0.9)
    assert int(stepped.step) == 1
    chex.assert_trees_all_close(stepped.params, jnp.array([-0.1, 0.1]), rtol=1e-5)
    chex.assert_trees_all_close(stepped.ema_params, 0.1 * stepped.params, rtol=1e-5)
    chex.assert_trees_all_equal(stepped.eval_params, stepped.ema_params)


def test_without_averaging_the_weights_themselves_are_evaluated():
    state = training.init_state(jnp.ones(2), {}, OPTIMIZER, ema_decay=0.0)
    assert state.ema_params is None
    stepped = training.apply_gradients(state, jnp.ones(2), OPTIMIZER, 0.0)
    chex.assert_trees_all_equal(stepped.eval_params, stepped.params)
    assert jax.tree.structure(stepped) == jax.tree.structure(state)
