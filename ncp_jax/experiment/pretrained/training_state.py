"""The state of stage 1's training as one file, for it to go on in another folder.

`--stage=export --config.export.format=state` writes it, `--config.vae.resume=FILE`
goes on from it: a training that is longer than a machine is lent for.
"""

from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.experiment.pretrained import exported, given
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files, extension
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.records import weights_file
from ncp_jax.records.array_files import Arrays
from ncp_jax.training.checkpoint_records import saved_steps
from ncp_jax.training.loop import TrainState

_FIELD = "resume"
_LENGTH = "vae.num_steps"


def export(experiment: Experiment, command: str) -> Path:
    """Writes the newest checkpoint of stage 1, which need not have ended.

    Args:
      experiment: the run.
      command: that was given, for the record.

    Returns:
      The npz: `config.export.file`, else `export/state/vae.npz` in the run's folder.

    Raises:
      InputError: there is no checkpoint; or the weights were not trained here, so
        that there is no optimiser's state; or an array is not finite.
    """
    if extension.is_given(experiment.path / "vae"):
        raise InputError(
            f"stage 1 in {experiment.path} came from a file without an optimiser's "
            "state: no training can go on from it"
        )
    with experiment.checkpoints("vae") as checkpoints:
        newest = checkpoints.restore_latest(experiment.state_shapes())
    if newest is None:
        raise InputError(
            f"{experiment.path} has no checkpoint of stage 1: run --stage=vae first"
        )
    arrays = {name: np.asarray(array) for name, array in _named(newest.state).items()}
    return exported.write(experiment, "state", newest, arrays, command)


def take(experiment: Experiment) -> None:
    """Writes the file's state as a checkpoint, unless stage 1 has begun here.

    What follows is to the bit what would have followed in the folder that the file is
    from, on the same kind of machine. Checkpoints before it stay there, the best one
    among them.

    Raises:
      InputError: the file is damaged, of other settings, data or arrays, or beyond
        `config.vae.num_steps`.
    """
    settings = experiment.config.vae
    name, path = settings.resume, config_files.weights_path(settings.resume, _FIELD)
    if saved_steps(experiment.path / "vae" / "checkpoints"):
        print(f"vae: goes on from its own checkpoints, not from {path}")
        return
    given.check_one_process("a state", given.GO_ON)
    record, arrays = weights_file.read(path)
    _check_settings(experiment, name, record)
    exported.check_data(experiment, _FIELD, name, record)
    state = _with_arrays(experiment.state_shapes(), arrays, path)
    workdir = experiment.workdir
    origin = {_FIELD: name, "record": msgspec.to_builtins(record)}
    with experiment.checkpoints("vae", seconds_before=record.seconds or 0.0) as saved:
        saved.save(record.step, state, record.held_out_loss)
    workdir.write_json(f"vae/{given.ORIGIN}", origin)
    print(f"vae: at step {record.step:,}, taken from {path}")


def _check_settings(
    experiment: Experiment, name: str, record: weights_file.Record
) -> None:
    """Refuses a file that this run would not go through."""
    if record.kind != "state":
        raise InputError(
            f"config.vae.resume={name} holds weights and no optimiser's state: give it "
            "as --config.vae.pretrained, or a file of --config.export.format=state"
        )
    theirs = msgspec.to_builtins(record.config)
    mine = config_lib.as_json(experiment.config)
    other = config_lib.changes(theirs, mine, ("seed", "data", "vae"))
    length, settings = other.pop(_LENGTH, None), experiment.config.vae
    if other:
        raise InputError(
            f"config.vae.resume={name} is of other settings than the config's "
            f"({exported.said(other)}): give its settings, or leave config.vae.resume "
            "out and train stage 1"
        )
    if record.step > settings.num_steps:
        raise InputError(
            f"config.vae.resume={name} is at step {record.step}, beyond "
            f"config.vae.num_steps = {settings.num_steps}: give more steps"
        )
    if length:
        was_validated = record.held_out_loss is not None
        if was_validated and record.step % settings.steps_per_eval:
            raise InputError(
                f"config.vae.resume={name} ended at step {record.step}, which is no "
                f"multiple of config.vae.steps_per_eval = {settings.steps_per_eval}: a "
                f"longer run does not go through it; give {length[0]} steps, or train "
                "stage 1"
            )
        extension.check(["vae"], theirs, mine, {"vae": record.step})


def _named(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by their paths, as "params/encoder/Dense_0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _with_arrays(shapes: TrainState, arrays: Arrays, path: Path) -> TrainState:
    """The state of these shapes with a file's arrays."""
    named = _named(shapes)
    exported.check_arrays(path, named, arrays)
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[n] for n in named])
