"""Weights that were not trained in a run, kept as what its stage 1 would have left."""

import contextlib

import jax
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.training.checkpoints import Checkpoints
from ncp_jax.training.loop import Task, TrainState
from ncp_jax.training.run_log import RunLog

ORIGIN = "taken_over.json"  # within the folder of a stage 1: where it came from
GO_ON = ", stop it, and go on with them"  # of a training that begins with what is taken


def check_one_process(what: str, and_then: str = "") -> None:
    """Refuses to take something over in several processes at once.

    Args:
      what: is taken over.
      and_then: what to do once that is done.

    Raises:
      InputError: there are several.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"{what} is taken over by one process: run --stage=vae without the "
            f"variables that join several{and_then}"
        )


def save(
    experiment: Experiment,
    checkpoints: Checkpoints,
    task: Task,
    state: TrainState,
    source: str,
) -> float:
    """Validates a state once, and saves it as the last one of stage 1.

    Args:
      experiment: the run.
      checkpoints: of its stage 1, which has none yet.
      task: of its stage 1.
      state: that has the weights.
      source: where they are from, for the error.

    Returns:
      The held-out loss; the negative ELBO, in nats.

    Raises:
      InputError: it is not finite.
    """
    num_steps = experiment.config.vae.num_steps
    state = task.place(state)
    _, metrics = jax.jit(task.validate)(state, task.data)
    valid = jax.device_get(metrics)
    if not np.isfinite(valid["loss"]).all():
        raise InputError(
            f"{source} has a held-out loss of {valid['loss']} on "
            f"{experiment.config.data.name}: its weights or the data are broken"
        )
    log = RunLog(experiment.path, "vae", 0, num_steps)
    with contextlib.closing(log):
        log.write(num_steps, "valid", valid)
    loss = float(np.sum(valid["loss"]))
    checkpoints.save(num_steps, task.collect(state), loss)
    checkpoints.wait()
    return loss
