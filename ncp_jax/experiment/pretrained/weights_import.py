"""A file of weights in the place of stage 1, or where its training begins.

`config.vae.pretrained` names the first, `config.vae.init_from` the second.
"""

from pathlib import Path

import jax.numpy as jnp
import msgspec
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from ncp_jax.errors import InputError
from ncp_jax.experiment.pretrained import exported, given
from ncp_jax.experiment.pretrained.exported import Changes, said
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import config_files, schema, validation
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.records import weights_file
from ncp_jax.records.array_files import Arrays
from ncp_jax.training.checkpoint_records import saved_steps
from ncp_jax.training.loop import TrainState

_OF_MODEL = ("vae.model.", "vae.prior")  # and vae.prior_settings
_ABSENT = "absent"  # of `config_lib.changes`


def with_its_training(config: ConfigDict) -> ConfigDict:
    """Returns the config with the training of the file that `vae.pretrained` names.

    So `vae.num_steps`, `vae.learning_rate` and what else there is of training say how
    the weights were made. The model and the data are the config's, and must be the
    file's, too. The seed is the config's: stage 1 draws nothing from it any more.

    Raises:
      InputError: there is no such file, its record is damaged, or it is of another
        model or of other data.
    """
    name = config.vae.pretrained
    path = config_files.weights_path(name)
    record = weights_file.read_record(path)
    _check_kind("pretrained", name, record)
    other = _differences(config, record)
    _check_data(name, other)
    _check_model("pretrained", name, other)
    _check_version(path, record, other)
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({n: value for n, (value, _) in other.items()})
    try:
        config = schema.checked(config)
        validation.validate(config)
    except InputError as error:
        raise InputError(f"{weights_file.beside(path)}: {error}") from error
    instead = [f"config.{n}: {now} -> {its}" for n, (its, now) in other.items()]
    print(
        f"vae: {config.vae.num_steps:,} steps of {path.name}"
        + (f", which sets {'; '.join(instead)}" if instead else "")
    )
    return config


def take(experiment: Experiment) -> None:
    """Writes the weights of the file as what stage 1 would have left, unless done.

    Raises:
      InputError: the file is damaged, of other data or other arrays than this code
        has; or another stage 1 is there.
    """
    name, workdir = experiment.config.vae.pretrained, experiment.workdir
    path = config_files.weights_path(name)
    record, arrays = weights_file.read(path)
    exported.check_data(experiment, "pretrained", name, record)
    with experiment.checkpoints("vae") as checkpoints:
        is_there = checkpoints.restore_latest(experiment.state_shapes()) is not None
        if not is_there:
            given.check_one_process("a file of weights")
            task, state = experiment.vae_task()
            state = _with_weights(state, arrays, path)
            state = state.replace(
                step=jnp.asarray(experiment.config.vae.num_steps, jnp.int32)
            )
            loss = given.save(experiment, checkpoints, task, state, str(path))
            its = record.held_out_loss
            print(
                f"vae: taken from {path}, held-out loss {loss:.2f}"
                + ("" if its is None else f"; in its record {its:.2f}")
            )
        if not workdir.is_done("vae"):  # killed between the two
            origin = {"pretrained": name, "record": msgspec.to_builtins(record)}
            workdir.write_json(f"vae/{given.ORIGIN}", origin)
            seconds = record.seconds
            if seconds is None:
                seconds = checkpoints.wall_seconds()
            workdir.add_results("vae", {}, seconds, record.environment)


def begin(experiment: Experiment) -> None:
    """Writes the weights of the file as step 0 of stage 1, unless that has begun.

    The optimiser and its schedule begin anew, and the data may be others: the file's
    training is over, and this is another one.

    Raises:
      InputError: the file is damaged, is no file of weights, or is of another model.
    """
    name, field = experiment.config.vae.init_from, "init_from"
    if saved_steps(experiment.path / "vae" / "checkpoints"):
        return
    path = config_files.weights_path(name, field)
    record, arrays = weights_file.read(path)
    _check_kind(field, name, record)
    _check_model(field, name, _differences(experiment.config, record))
    given.check_one_process("a file of weights", given.GO_ON)
    task, state = experiment.vae_task()
    state = task.collect(_with_weights(state, arrays, path))
    with experiment.checkpoints("vae") as saved:
        saved.save(0, state, None)
    origin = {field: name, "record": msgspec.to_builtins(record)}
    experiment.workdir.write_json(f"vae/{given.ORIGIN}", origin)
    print(f"vae: begins at the weights of {path}")


def _check_kind(field: str, name: str, record: weights_file.Record) -> None:
    """Refuses the state of a training."""
    if record.kind != "weights":
        raise InputError(
            f"config.vae.{field}={name} is the state of a training: give it as "
            "--config.vae.resume to go on with it"
        )


def _differences(config: ConfigDict, record: weights_file.Record) -> Changes:
    """Settings of stage 1 and of its data that the file has others of."""
    theirs = msgspec.to_builtins(record.config)
    return config_lib.changes(theirs, config_lib.as_json(config), ("data", "vae"))


def _check_data(name: str, other: Changes) -> None:
    """Refuses data whose settings are not those of the file."""
    data = {n: both for n, both in other.items() if n.startswith("data.")}
    if data:
        raise InputError(
            f"config.vae.pretrained={name} is a stage 1 of other data than the "
            f"config's ({said(data)}): give its settings, or leave "
            "config.vae.pretrained out and train stage 1"
        )


def _check_model(field: str, name: str, other: Changes) -> None:
    """Refuses models whose settings are not those of the file."""
    model = {n: both for n, both in other.items() if n.startswith(_OF_MODEL)}
    if model:
        model = {n: model[n] for n in ("vae.model.name",) if n in model} or model
        raise InputError(
            f"config.vae.{field}={name} is another model than the config's "
            f"({said(model)}): give its settings, or leave config.vae.{field} out and "
            "train stage 1"
        )


def _check_version(path: Path, record: weights_file.Record, other: Changes) -> None:
    """Refuses settings of training that the file or this code does not know."""
    strange = {n: both for n, both in other.items() if _ABSENT in both}
    if strange:
        raise InputError(
            f"{weights_file.beside(path)} and this version have other settings of "
            f"stage 1 ({said(strange)}): use the version that wrote it, "
            f"{record.environment.get('ncp_jax', 'which it does not name')}"
        )


def _with_weights(state: TrainState, arrays: Arrays, path: Path) -> TrainState:
    """A state of stage 1 with the file's arrays in the place of its own."""
    exported.check_arrays(path, flatten_dict(state.variables, sep="/"), arrays)
    variables = unflatten_dict(arrays, sep="/")
    averages = state.averages
    if averages is not None:
        averages = {name: variables[name] for name in averages}
    params = variables.pop("params")
    return state.replace(params=params, model_state=variables, averages=averages)
