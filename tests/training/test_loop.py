"""`loop.fit` on a toy task: boundaries, resuming, stopping, failing."""

import dataclasses
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import parallel
from ncp_jax.errors import InputError
from ncp_jax.training import loop
from ncp_jax.training.checkpoints import Checkpoints, Nowhere
from ncp_jax.training.loop import Preempted
from ncp_jax.training.run_log import RunLog, SilentLog, read_metrics
from tests.tiny import OPTIMIZER, toy_state, toy_task

STEPS = {"num_steps": 25, "steps_per_dispatch": 4, "steps_per_eval": 10}
BOUNDARIES = [4, 8, 10, 14, 18, 20, 24, 25]


def fit(path, task, start=toy_state, **steps):
    """Trains from the newest checkpoint in `path` and returns the state."""
    steps = STEPS | steps
    with Checkpoints(path / "checkpoints", {}) as checkpoints:
        restored = checkpoints.restore_latest(start())
        state = restored.state if restored else start()
        log = RunLog(path, task.name, int(state.step), steps["num_steps"])
        try:
            return loop.fit(task, state, checkpoints, log, **steps)
        finally:
            log.close()


def newest(path, start=toy_state):
    with Checkpoints(path / "checkpoints", {}) as checkpoints:
        return checkpoints.restore_latest(start())


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
    assert first_rows == [1.5, 5.5, 8.5, 11.5, 15.5, 18.5, 21.5, 24.0]
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
        other = loop.fit(toy_task(), forgetful, checkpoints, log, **STEPS)
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


def test_what_nothing_keeps_is_not_said_to_be_saved():
    task = signal_at(4, signal.SIGTERM, toy_task())
    with pytest.raises(Preempted) as stopped:
        loop.fit(task, toy_state(), Nowhere(), SilentLog(), **STEPS)
    message = str(stopped.value)
    assert message.startswith("SIGTERM: toy stopped at step 8 of 25. Nothing keeps it")
    assert "Run the same command" not in message


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(tmp_path, toy_task())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_acts_at_once():
    with pytest.raises(KeyboardInterrupt), loop.StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_a_non_finite_loss_stops_with_step_group_and_last_metrics(tmp_path):
    with pytest.raises(InputError) as stopped:
        fit(tmp_path, toy_task(nan_at=15))
    message = str(stopped.value)
    assert "stage toy" in message and "step 15, group 1" in message
    assert "'first_row': 14" in message  # of the step before
    assert "toy.learning_rate" in message
    last = newest(tmp_path)
    assert last.step == 10
    chex.assert_tree_all_finite(last.state.params)
    assert [r["step"] for r in records(tmp_path, "train")] == [4, 8, 10, 14]


def test_a_gradient_that_is_not_finite_stops_as_well(tmp_path):
    """A loss of 1e30 is finite; nothing can be learned from it."""
    task = toy_task()

    def update(state, data, rows):
        new, metrics = task.update(state, data, rows)
        bad = jnp.where(state.step == 15, jnp.array([jnp.inf, 1.0]), 1.0)
        return new, metrics | {"gradient_norm": bad}

    with pytest.raises(InputError) as stopped:
        fit(tmp_path, dataclasses.replace(task, update=update))
    message = str(stopped.value)
    assert "the gradient norm is inf at step 15, group 0" in message
    assert "'first_row': 14" in message and "toy.learning_rate" in message


def test_a_task_says_what_is_recorded_of_steps_and_what_remains_to_be_said(
    tmp_path, capsys
):
    task = dataclasses.replace(
        toy_task(),
        average=lambda metrics: {n: value.max(0) for n, value in metrics.items()},
        remarks=lambda valid: [f"the last loss of two: {valid['loss'].shape}"],
    )
    fit(tmp_path, task)
    assert [r["first_row"] for r in records(tmp_path, "train")] == [
        3, 7, 9, 13, 17, 19, 23, 24
    ]  # fmt: skip
    assert capsys.readouterr().out.count("the last loss of two: (2,)") == 1


@pytest.mark.parametrize(
    ("nan_at", "shown"), [(0, "metrics: none"), (14, "'first_row': 11.5")]
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

    counting = loop.Task("toy", task.data, task.inputs, counted, task.validate)
    fit(tmp_path, counting, num_steps=80)
    lengths = {4, 2}  # a whole dispatch, and the last before a validation
    # One trace for scan's types, one for its body, at most.
    assert len(lengths) <= len(traces) <= 2 * len(lengths)


@pytest.mark.parametrize("intervals", [(50, 99), (100, 469), (500, 1_172), (50, 250)])
def test_dispatches_have_few_lengths_and_validations_their_steps(intervals):
    ends = [0]
    while ends[-1] < 5_000:
        ends.append(loop._dispatch_end(ends[-1], 5_000, *intervals))
    assert len(set(np.diff(ends).tolist())) <= 3
    assert set(range(0, 5_000, intervals[1])) <= set(ends)


def test_apply_gradients_averages_the_weights():
    state = toy_state()
    stepped = loop.apply_gradients(state, jnp.array([1.0, -1.0]), OPTIMIZER, 0.9)
    assert int(stepped.step) == 1
    chex.assert_trees_all_close(stepped.params, jnp.array([-0.1, 0.1]), rtol=1e-5)
    average = stepped.averages["params"]
    chex.assert_trees_all_close(average, 0.9 * stepped.params, rtol=1e-5)  # fast
    late = loop.apply_gradients(
        state.replace(step=jnp.asarray(1_000)), jnp.array([1.0, -1.0]), OPTIMIZER, 0.9
    )
    chex.assert_trees_all_close(late.averages["params"], 0.1 * late.params, rtol=1e-5)
    chex.assert_trees_all_equal(stepped.eval_variables, {"params": average})
    chex.assert_trees_all_equal(stepped.variables, {"params": stepped.params})


@pytest.mark.parametrize("ema_decay", [0.5, 0.999, 0.9999])
def test_an_average_forgets_where_it_started(ema_decay):
    """2,000 weights of 1 after a start of 0: without the warm-up 0.18 at 0.9999."""

    def step(average, t):
        return loop.averaged(jnp.ones(()), average, ema_decay, t), None

    average, _ = jax.lax.scan(step, jnp.zeros(()), jnp.arange(2_000))
    np.testing.assert_allclose(average, 1.0, rtol=1e-5)
    late = loop.decay_at(ema_decay, jnp.asarray(200_000))
    np.testing.assert_allclose(late, ema_decay, rtol=1e-6)  # in the end as asked


def test_batch_statistics_are_averaged_with_the_weights_and_constants_are_not():
    """A running mean of 4 that moves to 8, beside a constant."""
    model_state = {"batch_stats": jnp.array([4.0]), "statistics": jnp.array([7.0])}
    state = loop.init_state(jnp.zeros(2), model_state, OPTIMIZER, ema_decay=0.9)
    assert state.averages.keys() == {"params", "batch_stats"}
    changed = {"batch_stats": jnp.array([8.0])}
    for expected in (0.1 * 4 + 0.9 * 8, 2 / 11 * 7.6 + 9 / 11 * 8):
        state = loop.apply_gradients(state, jnp.ones(2), OPTIMIZER, 0.9, changed)
        variables = state.eval_variables
        np.testing.assert_allclose(variables["batch_stats"], expected, rtol=1e-6)
        assert state.variables["batch_stats"] == 8.0
        assert variables["statistics"] == state.variables["statistics"] == 7.0
        assert not np.allclose(variables["params"], state.params)


def test_without_averaging_the_weights_themselves_are_evaluated():
    model_state = {"batch_stats": jnp.ones(1)}
    state = loop.init_state(jnp.ones(2), model_state, OPTIMIZER, ema_decay=0.0)
    assert state.averages is None
    changed = {"batch_stats": jnp.zeros(1)}
    stepped = loop.apply_gradients(state, jnp.ones(2), OPTIMIZER, 0.0, changed)
    expected = {"params": stepped.params, **changed}
    chex.assert_trees_all_equal(stepped.eval_variables, expected)
    assert jax.tree.structure(stepped) == jax.tree.structure(state)


def test_without_stored_examples_rows_are_the_examples_themselves():
    stored, rows = 10.0 * jnp.arange(5.0), jnp.array([3, 1])
    np.testing.assert_array_equal(loop.take(stored, rows), [30.0, 10.0])
    assert loop.take(None, rows) is rows


# --- what a validation may do: change the state, judge, and end the training


def judging(**metrics):
    """The toy task whose validations count themselves and return more metrics."""
    task = toy_task()

    def validate(state, data):
        _, old = task.validate(state, data)
        count = state.penalty_state + 1
        new = {name: value(count) for name, value in metrics.items()}
        return state.replace(penalty_state=count), old | new

    return dataclasses.replace(task, validate=validate)


def counting_state():
    return toy_state().replace(penalty_state=jnp.zeros(()))


def test_a_validation_may_change_the_state_and_judge_by_another_loss(tmp_path):
    """The loss itself falls; of "best_loss" the second validation has the lowest."""
    lowest_at_two = judging(best_loss=lambda count: jnp.abs(count - 2.0))
    state = fit(tmp_path, lowest_at_two, counting_state)
    assert state.penalty_state == 3.0  # trained on
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        saved = checkpoints.restore_latest(counting_state())
        best = checkpoints.restore_best(counting_state())
    assert (saved.step, saved.state.penalty_state) == (25, 3.0)
    assert (best.step, best.metadata["valid_loss"]) == (20, 0.0)


def test_training_ends_where_all_have_stopped(tmp_path, capsys):
    """The second validation says so; nothing after it is trained or logged."""
    one_then_both = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    stopping = judging(stopped=lambda n: jnp.where(n < 2, *one_then_both))
    state = fit(tmp_path, stopping, counting_state)
    assert [r["step"] for r in records(tmp_path, "train")] == [4, 8, 10, 14, 18, 20]
    assert [r["stopped"] for r in records(tmp_path, "valid")] == [[1, 0], [1, 1]]
    assert "toy ends at step 20: validations get no better" in capsys.readouterr().out
    saved = newest(tmp_path, counting_state)  # where a run looks for its end
    assert int(state.step) == saved.step == int(saved.state.step) == 25
    (tmp_path / "long").mkdir()
    twenty = fit(tmp_path / "long", judging(), counting_state, num_steps=20)
    chex.assert_trees_all_equal(twenty.params, saved.state.params)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = fit(tmp_path, stopping, counting_state)
    chex.assert_trees_all_equal(again, saved.state)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_what_is_saved_is_collected_and_what_is_restored_is_placed(tmp_path):
    """A layout on the devices with one more row than what a checkpoint holds."""
    task = toy_task()

    def place(state):
        padded = jnp.concatenate([jnp.asarray(state.params), jnp.full(1, 5.0)])
        return jax.device_put(state.replace(params=padded))

    def resize(state, change):
        return state.replace(params=change(state.params))

    def update(state, data, rows):
        inner, metrics = task.update(resize(state, lambda p: p[:2]), data, rows)
        tail = state.params[2:]
        return resize(inner, lambda p: jnp.concatenate([p, tail])), metrics

    padded = dataclasses.replace(
        task,
        update=update,
        place=place,
        collect=lambda state: parallel.gather(resize(state, lambda p: p[:2])),
    )
    fit(tmp_path, padded, num_steps=12)
    saved = newest(tmp_path).state.params
    assert saved.shape == (2,) and (saved != 0.0).all()
    state = fit(tmp_path, padded)
    assert state.params[2] == 5.0 and (state.params[:2] != saved).all()
