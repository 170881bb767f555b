"""One training loop for both stages: many steps per dispatch, resumable to the bit."""

import dataclasses
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from ncp_jax.checkpoints import Checkpoints
from ncp_jax.errors import InputError
from ncp_jax.run_log import RunLog

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]  # name -> scalar, or [K] with one value per latent group
Prepare = Callable[[Array, Array], Array]  # (key, stored examples) -> x for the model


class TrainState(struct.PyTreeNode):
    """Everything that a step changes; a checkpoint holds this and nothing else."""

    step: Array  # int32 scalar: updates done
    params: PyTree
    model_state: PyTree  # the model's other collections (statistics, constants)
    opt_state: optax.OptState
    ema_params: PyTree  # None without averaging

    @property
    def eval_params(self) -> PyTree:
        """The averaged weights where there are any, else the weights."""
        return self.params if self.ema_params is None else self.ema_params


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
      name: of the stage.
      data: arrays that every update reads; passed to it, not compiled into it.
      inputs: (first_step, n) -> pytree [n, ...], one slice per step (batch indices).
      update: (state, data, input) -> (state, metrics), metrics with "loss"; pure.
      validate: (state, data) -> metrics with "loss", which decides what is best; pure.
    """

    name: str
    data: PyTree
    inputs: Callable[[int, int], PyTree]
    update: Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]
    validate: Callable[[TrainState, PyTree], Metrics]


def init_state(
    params: PyTree,
    model_state: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema_decay else None,
    )


def apply_gradients(
    state: TrainState,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """One optimiser step, and one step of the running average of the weights."""
    with jax.numpy_dtype_promotion("standard"):  # Adam counts its steps in int32
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
    return state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params
    )


class Preempted(BaseException):
    """The run was asked to stop and may be continued.

    Like KeyboardInterrupt, not an `Exception`: it may come at any time.
    """

    def __init__(self, signum: int, what: str = "stopped; complete stages are kept"):
        name = signal.Signals(signum).name
        super().__init__(f"{name}: {what}. Run the same command again to continue.")
        self.exit_code = 128 + signum


class StopSignals:
    """While entered, SIGTERM and SIGINT set `received` instead of killing.

    A second Ctrl-C acts at once.
    """

    def __enter__(self) -> "StopSignals":
        self.received: int | None = None
        self._before: dict[int, Any] = {
            signum: signal.signal(signum, self._remember)
            for signum in (signal.SIGTERM, signal.SIGINT)
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
        os.write(2, b"stopping as soon as the steps under way are saved\n")


def fit(
    task: Task,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    *,
    num_steps: int,
    steps_per_dispatch: int,
    steps_per_eval: int,
) -> TrainState:
    """Trains from `state.step` to `num_steps`; validates and saves on the way.

    Dispatches end at multiples of `steps_per_dispatch` and of `steps_per_eval`
    whatever the first step was, so an interrupted run goes through the same programs
    as an uninterrupted one and ends with the same bits.

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
    validate = jax.jit(task.validate)
    step, valid_loss = int(state.step), None
    finite: dict[str, np.ndarray] = {}
    with StopSignals() as signals:
        while step < num_steps:
            end = _next_boundary(step, num_steps, steps_per_dispatch, steps_per_eval)
            inputs = task.inputs(step, end - step)
            state, metrics = run(state, task.data, inputs)
            finite = _mean_over_steps(task.name, metrics, step, finite)
            step = end
            log.write(step, "train", finite)
            if step % steps_per_eval == 0 or step == num_steps:
                valid = jax.tree.map(lambda v: v[None], validate(state, task.data))
                valid = _mean_over_steps(task.name, valid, step, finite)
                valid_loss = float(np.sum(valid["loss"]))
                log.write(step, "valid", valid)
                checkpoints.save(step, state, valid_loss)
            log.progress(step, float(np.sum(finite["loss"])), valid_loss)
            if signals.received is not None:
                checkpoints.save(step, state, None)
                checkpoints.wait()
                where = f"{task.name} is saved at step {step} of {num_steps}"
                raise Preempted(signals.received, where)
    if signals.received is not None:  # after the last look, all is saved
        raise Preempted(signals.received)
    return state


def scan_updates(task: Task) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns (state, data, inputs [n, ...]) -> state after n updates, metrics [n]."""

    def run(
        state: TrainState, data: PyTree, inputs: PyTree
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda s, i: task.update(s, data, i), state, inputs)

    return run


def _next_boundary(step: int, num_steps: int, *intervals: int) -> int:
    return min(num_steps, *((step // n + 1) * n for n in intervals))


def _mean_over_steps(
    stage: str, metrics: Metrics, first_step: int, last_finite: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the means over the steps of `metrics` [n, ...]."""
    loss = np.asarray(metrics["loss"])
    if not np.isfinite(loss).all():
        i, *group = np.argwhere(~np.isfinite(loss))[0].tolist()
        where = f"step {first_step + i}" + (f", group {group[0]}" if group else "")
        if i:
            last_finite = {n: np.asarray(value)[i - 1] for n, value in metrics.items()}
        shown = {n: np.round(value, 4).tolist() for n, value in last_finite.items()}
        raise InputError(
            f"stage {stage}: the loss is {loss[i, *group]} at {where}.\n"
            f"Last finite metrics: {shown or 'none'}.\n"
            "Checkpoints so far are kept. Lower the learning rate (config."
            f"{stage}.learning_rate) or lengthen its warm-up, in a new workdir."
        )
    return {name: np.asarray(value).mean(axis=0) for name, value in metrics.items()}
