"""What the training loop costs beside its steps, as a ratio within one run."""

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.training import loop
from ncp_jax.training.checkpoints import Checkpoints
from ncp_jax.training.loop import Task, TrainState
from ncp_jax.training.run_log import RunLog


class _Stopwatch(RunLog):
    """A log that shows nothing and notes when each dispatch ended."""

    def __init__(self, workdir: Path, stage: str, num_steps: int):
        super().__init__(workdir, stage, 0, num_steps)
        self.times: dict[int, float] = {}

    def progress(self, step: int, train_loss: float, valid_loss: float | None) -> None:
        del train_loss, valid_loss
        self.times[step] = perf_counter()


def training_loop(
    task: Task,
    state: TrainState,
    *,
    num_steps: int,
    num_repeats: int,
    steps_per_dispatch: int,
    steps_per_eval: int,
) -> dict[str, Any]:
    """Times `loop.fit` against one bare `lax.scan` over the same updates, in turn.

    The loop's share holds everything that a real run does: batch indices, metrics,
    logs, validation and checkpoints.  Compilation is outside both as long as
    `num_steps` is a multiple of `steps_per_eval`.

    Args:
      task: what is trained.
      state: where both start.
      num_steps: updates that are timed.
      num_repeats: pairs of runs.
      steps_per_dispatch: of the loop.
      steps_per_eval: of the loop; one interval is run, untimed, to compile.

    Returns:
      Steps per second of both for each pair, and the median, lowest and highest ratio
      of the loop's time to the scan's.
    """
    bare = jax.jit(loop.scan_updates(task))
    inputs = task.inputs(0, num_steps)
    jax.block_until_ready(bare(state, task.data, inputs))  # compiles

    def time_bare() -> float:
        begin = perf_counter()
        jax.block_until_ready(bare(state, task.data, inputs))
        return perf_counter() - begin

    def time_loop() -> float:
        with tempfile.TemporaryDirectory() as folder:
            total = steps_per_eval + num_steps
            log = _Stopwatch(Path(folder), task.name, total)
            checkpoints = Checkpoints(Path(folder) / "checkpoints", {})
            loop.fit(
                task,
                jax.tree.map(jnp.copy, state),  # `fit` donates it
                checkpoints,
                log,
                num_steps=total,
                steps_per_dispatch=steps_per_dispatch,
                steps_per_eval=steps_per_eval,
            )
            checkpoints.wait()
            seconds = perf_counter() - log.times[steps_per_eval]
            checkpoints.close()
            log.close()
            return seconds

    pairs = np.array([(time_loop(), time_bare()) for _ in range(num_repeats)])
    ratios = pairs[:, 0] / pairs[:, 1]
    loop_rate, bare_rate = (num_steps / pairs.T).tolist()
    return {
        "loop_steps_per_second": loop_rate,
        "bare_scan_steps_per_second": bare_rate,
        "loop_over_bare_scan": {
            "median": float(np.median(ratios)),
            "min": float(ratios.min()),
            "max": float(ratios.max()),
            "n": num_repeats,
        },
    }
