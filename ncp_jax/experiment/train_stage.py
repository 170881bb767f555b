"""The stages that train, from the newest checkpoint to the last step."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import clu.parameter_overview

from ncp_jax import parallel
from ncp_jax.experiment.setup import extension
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.training import loop
from ncp_jax.training.checkpoints import Checkpoints, Restored, fingerprint
from ncp_jax.training.loop import TrainState
from ncp_jax.training.ncp.ncp_state import NCPState
from ncp_jax.training.run_log import Progress, RunLog, SilentLog


def train(experiment: Experiment, stage: str) -> None:
    """Trains "vae" or "ncp" to its end, from its newest checkpoint if it has one."""
    settings, workdir = experiment.config[stage], experiment.workdir
    vae = experiment.load_vae() if stage == "ncp" else None
    if vae:
        _set_outdated_aside(experiment.path, fingerprint(vae.variables))
    with experiment.checkpoints(stage, vae) as checkpoints:
        restored = _restored(checkpoints, experiment.state_shapes(vae), settings)
        if restored and restored.step == settings.num_steps:
            print(f"{stage}: complete, {settings.num_steps} steps")
            if not workdir.is_done(stage):  # killed between the two
                workdir.add_results(stage, {}, restored.metadata["wall_seconds"])
            return
        task, state = experiment.ncp_task(vae) if vae else experiment.vae_task()
        state = restored.state if restored else state
        print(clu.parameter_overview.get_parameter_overview(_trained(state)))
        if restored:
            print(f"{stage}: continues from step {restored.step}")
        log: Progress = SilentLog()
        if parallel.is_writer():
            log = RunLog(experiment.path, stage, int(state.step), settings.num_steps)
        with contextlib.closing(log):
            loop.fit(
                task,
                state,
                checkpoints,
                log,
                num_steps=settings.num_steps,
                steps_per_dispatch=settings.steps_per_dispatch,
                steps_per_eval=settings.steps_per_eval,
            )
        checkpoints.wait()
        workdir.add_results(stage, {}, checkpoints.wall_seconds())


def _restored(checkpoints: Checkpoints, like: Any, settings: Any) -> Restored | None:
    """The newest checkpoint that a run of this length goes through, too.

    The last step of a shorter run may lie between two validations: what it left there
    has been validated once more than that of a run which passes by.
    """
    restored = checkpoints.restore_latest(like)
    if restored is None or restored.step == settings.num_steps:
        return restored
    was_validated = restored.metadata["valid_loss"] is not None
    if was_validated and restored.step % settings.steps_per_eval:
        print(
            f"step {restored.step} ended a shorter run, and is no multiple of "
            f"steps_per_eval = {settings.steps_per_eval}: goes on from the step before"
        )
        checkpoints.forget(restored.step)
        return _restored(checkpoints, like, settings)
    return restored


def _set_outdated_aside(run: Path, vae_digest: str) -> None:
    """Makes way for discriminators of a stage 1 that has become longer."""
    is_outdated = extension.is_outdated(run, vae_digest)
    if not parallel.any_process(int(is_outdated)):  # all have looked
        return
    folder = run / "ncp" / "checkpoints"
    aside = folder.with_name("of_shorter_stage_1")
    if parallel.is_writer():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        print(f"ncp: stage 1 has other weights now: training again; old: {aside}")
    parallel.any_process(0)


def _trained(state: TrainState | NCPState) -> dict[str, Any]:
    """The parameters that a stage trains, to be shown."""
    if isinstance(state, TrainState):
        return state.params
    return {f"stack_{i}": stack.params for i, stack in enumerate(state.stacks)}
