"""One training loop for both stages: many steps per dispatch, resumable to the bit."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from ncp_jax import parallel
from ncp_jax.errors import InputError, NotFinite

if TYPE_CHECKING:  # whoever only measures needs neither Orbax nor TensorBoard
    from ncp_jax.training.checkpoints import Checkpoints
    from ncp_jax.training.run_log import Progress

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]  # name -> scalar, or [K] with one value per latent group
Recorded = dict[str, np.ndarray]  # the same, on the host
Prepare = Callable[[Array, Array], Array]  # (key, stored examples) -> x for the model


class TrainState(struct.PyTreeNode):
    """Everything that an update of a model changes; a checkpoint holds just this."""

    step: Array  # int32 scalar: updates done
    params: PyTree
    model_state: PyTree  # the model's other collections (statistics, constants)
    opt_state: optax.OptState
    averages: PyTree  # of "params" and "batch_stats" over time; None without averaging
    penalty_state: PyTree = None  # what a penalty of the loss carries along

    @property
    def variables(self) -> dict[str, PyTree]:
        """All collections of the model, as training left them."""
        return {"params": self.params, **self.model_state}

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """The same with averages in the place of what is averaged."""
        return self.variables | (self.averages or {})


def mean_of_steps(metrics: Recorded) -> Recorded:
    """The means over the steps of metrics [n, ...]."""
    return {name: value.mean(axis=0) for name, value in metrics.items()}


def no_remarks(metrics: Recorded) -> Sequence[str]:
    """Nothing to say."""
    del metrics
    return ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage trains.

    A stage's state is a pytree with a field `step`, by default a `TrainState`.

    Attributes:
      name: of the stage.
      data: arrays that every update reads; passed to it, not compiled into it.
      inputs: (first_step, n) -> pytree [n, ...], one slice per step (batch indices).
      update: (state, data, input) -> (state, metrics), metrics with "loss"; pure.
      validate: (state, data) -> (state, metrics); pure.  The sum of "best_loss", else
        of "loss", decides which checkpoint is best.  Where there is "stopped", training
        ends once it is all ones.
      average: metrics [n, ...] of n steps -> those that are recorded of them.
      remarks: last metrics of "valid" -> lines that are printed when training ends.
      place: puts a state that was made or restored on the devices.
      collect: undoes `place`, to NumPy arrays; what is saved.
      scores_start: whether validation comes before the first update, too, so that the
        best may be the start.
      kind: what a message calls it.
      learning_rate: what a message calls that setting; "" for that of a stage.
    """

    name: str
    data: PyTree
    inputs: Callable[[int, int], PyTree]
    update: Callable[[Any, PyTree, PyTree], tuple[Any, Metrics]]
    validate: Callable[[Any, PyTree], tuple[Any, Metrics]]
    average: Callable[[Recorded], Recorded] = mean_of_steps
    remarks: Callable[[Recorded], Sequence[str]] = no_remarks
    place: Callable[[Any], Any] = jax.device_put
    collect: Callable[[Any], Any] = parallel.gather
    scores_start: bool = False
    kind: str = "stage"
    learning_rate: str = ""


def take(stored: Array | None, rows: Array) -> Array:
    """Returns the examples of one batch.

    Args:
      stored: [N, ...] on the devices; None where they are too many for that.
      rows: [B] numbers of examples; without `stored` the examples [B, ...] themselves.
    """
    return rows if stored is None else stored[rows]


def init_state(
    params: PyTree,
    model_state: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    penalty_state: PyTree = None,
) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        averages=_moving(params, model_state) if ema_decay else None,
        penalty_state=penalty_state,
    )


def descend(
    optimizer: optax.GradientTransformation,
    gradients: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    **extra: Any,
) -> tuple[PyTree, optax.OptState]:
    """Returns the parameters and the optimiser's state after one step.

    Args:
      optimizer: an optax optimiser.
      gradients: of the loss by `params`.
      opt_state: the optimiser's state before.
      params: before.
      **extra: more that the optimiser may want to know; others do not see it.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in int32
        updates, opt_state = optimizer.update(gradients, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def decay_at(ema_decay: float, step: Array) -> Array:
    """The decay of a running average at a step: min(decay, (1 + t) / (10 + t)).

    So an average of t steps reaches back over t / 9 of them at most, and the weights
    that training started from are forgotten however short the run: after 2,000 steps
    at 0.9999 their share is below 1e-23, not 0.82.

    Args:
      ema_decay: the decay that it ends with.
      step: [] int32, t, updates done before.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(ema_decay, (1.0 + t) / (10.0 + t))


def averaged(newest: PyTree, averages: PyTree, ema_decay: float, step: Array) -> PyTree:
    """One step of a running average, whose decay is that of `decay_at`."""
    share = 1.0 - decay_at(ema_decay, step)
    return optax.incremental_update(newest, averages, share)


def apply_gradients(
    state: TrainState,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    model_state: PyTree = None,
) -> TrainState:
    """One optimiser step, and one step of the running averages.

    Batch statistics are averaged with the weights: those of the newest weights do not
    fit averaged ones.

    Args:
      state: before.
      gradients: of the loss by `state.params`.
      optimizer: an optax optimiser.
      ema_decay: of the averages, where the state has some; less at first (`decay_at`).
      model_state: collections that the pass over the model has changed.
    """
    params, opt_state = descend(optimizer, gradients, state.opt_state, state.params)
    model_state = state.model_state | (model_state or {})
    averages = state.averages
    if averages is not None:
        newest = _moving(params, model_state)
        averages = averaged(newest, averages, ema_decay, state.step)
    return state.replace(
        step=state.step + 1,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        averages=averages,
    )


def _moving(params: PyTree, model_state: PyTree) -> dict[str, PyTree]:
    """A copy of what is averaged over time; constants are not."""
    moving = {"params": params, **model_state}
    names = moving.keys() & {"params", "batch_stats"}
    return {name: jax.tree.map(jnp.copy, moving[name]) for name in sorted(names)}


class Preempted(BaseException):
    """The run was asked to stop and may be continued.

    Like KeyboardInterrupt, not an `Exception`: it may come at any time.
    """

    def __init__(
        self,
        signum: int,
        what: str = "stopped; complete stages are kept",
        advice: str = "Run the same command again to continue",
    ):
        super().__init__(f"{signal.Signals(signum).name}: {what}. {advice}.")
        self.exit_code = 128 + signum


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """For those who call from Python: after Ctrl-C a KeyboardInterrupt, as ever."""
    try:
        yield
    except Preempted as stop:
        if stop.exit_code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt(str(stop)) from None


@contextlib.contextmanager
def preempted_by(signum: int) -> Iterator[None]:
    """Outside of training, where it would save first, the signal raises `Preempted`."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        raise Preempted(signum)

    before = signal.signal(signum, stop)
    try:
        yield
    finally:
        signal.signal(signum, before)


class StopSignals:
    """While entered, SIGTERM and SIGINT set `received` instead of killing.

    A second Ctrl-C acts at once.  Threads but the main one get no signals.
    """

    def __enter__(self) -> "StopSignals":
        self.received: int | None = None
        is_main = threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {
            signum: signal.signal(signum, self._remember)
            for signum in (signal.SIGTERM, signal.SIGINT)
            if is_main
        }
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.received = signum
        if signum == signal.SIGINT:
            # Not the handler before: a background job's ignores Ctrl-C.
            signal.signal(signum, signal.default_int_handler)
        os.write(2, b"stopping after the steps under way\n")


def fit(
    task: Task,
    state: Any,
    checkpoints: "Checkpoints",
    log: "Progress",
    *,
    num_steps: int,
    steps_per_dispatch: int,
    steps_per_eval: int,
) -> Any:
    """Trains from `state.step` to `num_steps`; validates and saves on the way.

    Dispatches are counted from the last multiple of `steps_per_eval`, whatever the
    first step was, so an interrupted run goes through the same programs as an
    uninterrupted one and ends with the same bits.

    Args:
      task: what to train.
      state: where to start; its buffers are donated.
      checkpoints: gets a checkpoint at every validation.
      log: gets the metrics.
      num_steps: updates in all.
      steps_per_dispatch: updates per compiled call (`lax.scan`).
      steps_per_eval: updates between validations.

    Raises:
      InputError: on a non-finite loss, with the step, the group and the last finite
        metrics.
      Preempted: after SIGTERM or SIGINT, once the state is saved.
    """
    run = jax.jit(scan_updates(task), donate_argnums=0)
    validate = jax.jit(task.validate, donate_argnums=0)
    step, valid_loss = int(state.step), None
    finite: Recorded = {}
    valid: Recorded = {}
    state = task.place(state)
    with StopSignals() as signals:
        if step == 0 and task.scores_start:
            state, _ = validate(state, task.data)
        while step < num_steps:
            end = _dispatch_end(step, num_steps, steps_per_dispatch, steps_per_eval)
            inputs = task.inputs(step, end - step)
            state, metrics = run(state, task.data, inputs)
            finite = _recorded(task, metrics, step, finite)
            step = end
            log.write(step, "train", finite)
            if step % steps_per_eval == 0 or step == num_steps:
                state, metrics = validate(state, task.data)
                metrics = jax.tree.map(lambda value: value[None], metrics)
                valid = _recorded(task, metrics, step, finite)
                log.write(step, "valid", valid)
                valid_loss = float(np.sum(valid.get("best_loss", valid["loss"])))
                if np.all(valid.get("stopped", False)):  # no step would change a thing
                    step = num_steps
                    state = state.replace(step=jnp.full_like(state.step, step))
                    log.ended(end)
                checkpoints.save(step, task.collect(state), valid_loss)
            log.progress(end, float(np.sum(finite["loss"])), valid_loss)
            if received := parallel.any_process(signals.received or 0):
                checkpoints.save(step, task.collect(state), None)
                checkpoints.wait()
                raise _stopped(received, task, checkpoints, step, num_steps)
    if valid and parallel.is_writer():
        for line in task.remarks(valid):
            print(line, flush=True)
    if signals.received is not None:  # after the last look
        raise _stopped(signals.received, task, checkpoints, step, num_steps)
    return state


def _stopped(
    signum: int, task: Task, checkpoints: "Checkpoints", step: int, num_steps: int
) -> Preempted:
    """What to raise once the state is where it is kept, if it is."""
    at = f"at step {step} of {num_steps}"
    if checkpoints.keeps:
        return Preempted(signum, f"{task.name} is saved {at}")
    advice = "Nothing keeps it: give a folder of checkpoints to go on another time"
    return Preempted(signum, f"{task.name} stopped {at}", advice)


def scan_updates(task: Task) -> Callable[..., tuple[Any, Metrics]]:
    """Returns (state, data, inputs [n, ...]) -> state after n updates, metrics [n]."""

    def run(state: Any, data: PyTree, inputs: PyTree) -> tuple[Any, Metrics]:
        return jax.lax.scan(lambda s, i: task.update(s, data, i), state, inputs)

    return run


def _dispatch_end(
    step: int, num_steps: int, steps_per_dispatch: int, steps_per_eval: int
) -> int:
    """Where the dispatch from `step` on ends.

    There are at most three lengths, and the program is compiled for each: whole
    dispatches, the last before a validation, and the last of all.
    """
    last_eval = step // steps_per_eval * steps_per_eval
    dispatches = (step - last_eval) // steps_per_dispatch + 1
    end = last_eval + dispatches * steps_per_dispatch
    return min(num_steps, last_eval + steps_per_eval, end)


def _recorded(
    task: Task, metrics: Metrics, first_step: int, last_finite: Recorded
) -> Recorded:
    """Returns what is recorded of the steps of `metrics` [n, ...]."""
    on_host = {name: np.asarray(value) for name, value in metrics.items()}
    for name in ("loss", "gradient_norm"):  # a loss of 1e30 may still be finite
        if not np.isfinite(on_host.get(name, 0.0)).all():
            raise _blown_up(task, name, on_host, first_step, last_finite)
    return task.average(on_host)


def _blown_up(
    task: Task, name: str, metrics: Recorded, first_step: int, last_finite: Recorded
) -> InputError:
    """What to say of metrics [n, ...] of which that called `name` is not finite."""
    values = metrics[name]
    i, *group = np.argwhere(~np.isfinite(values))[0].tolist()
    where = f"step {first_step + i}" + (f", group {group[0]}" if group else "")
    if i:
        last_finite = {n: value[i - 1] for n, value in metrics.items()}
    shown = {n: np.round(value, 4).tolist() for n, value in last_finite.items()}
    remedy = f"Lower the learning rate ({task.learning_rate})."
    if not task.learning_rate:  # a stage, which has a workdir and a schedule
        remedy = (
            "Checkpoints so far are kept. Lower the learning rate (config."
            f"{task.name}.learning_rate) or lengthen its warm-up, in a new workdir."
        )
    return NotFinite(
        f"{task.kind} {task.name}: the {name.replace('_', ' ')} is "
        f"{values[i, *group]} at {where}.\nLast finite metrics: {shown or 'none'}.\n"
        f"{remedy}"
    )
