"""What a file of stage 1 and the record beside it hold, whichever kind it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flax.traverse_util import unflatten_dict

from ncp_jax.errors import InputError, local_path
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import data_seal, schema
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.records import weights_file
from ncp_jax.records.array_files import Arrays
from ncp_jax.training.checkpoints import Restored, fingerprint

LICENCE = (
    "Apache-2.0, as ncp_jax, whose program made this file; the data that it was "
    "trained on have terms of their own"
)
MAX_NAMED = 3  # settings that an error names
Changes = dict[str, tuple[Any, Any]]  # the file's and the config's value, by name


def write(
    experiment: Experiment,
    kind: str,
    checkpoint: Restored,
    arrays: Mapping[str, np.ndarray],
    command: str,
) -> Path:
    """Writes arrays of stage 1 into an npz, and what is known of them beside it.

    Args:
      experiment: the run.
      kind: as of `weights_file.Record`.
      checkpoint: that the arrays are from.
      arrays: by their paths.
      command: that was given.

    Returns:
      The npz: `config.export.file`, else `export/KIND/vae.npz` in the run's folder.

    Raises:
      InputError: an array is not finite.
    """
    path = experiment.path / "export" / kind / "vae.npz"
    if file := experiment.config.export.file:
        path = Path(local_path("config.export.file", file))
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"stage 1 in {experiment.path} has an array {name} that is not finite: "
                "train it again, in a new workdir, at a lower config.vae.learning_rate"
            )
    known = {
        "step": checkpoint.step,
        "fingerprint": fingerprint(
            unflatten_dict(weights_file.as_read(arrays), sep="/")
        ),
        "held_out_loss": checkpoint.metadata["valid_loss"],
        "config": settings_of(config_lib.as_json(experiment.config)),
        "data": data_seal.short(experiment.data_seal),
        **_how_it_was_trained(experiment, kind, checkpoint),
        "init_from": checkpoint.metadata.get("vae.init_from"),
        "licence": LICENCE,
        "command": command,
        "kind": kind,
    }
    record = weights_file.write(path, arrays, known)
    print(
        f"export: {path}, {record.num_parameters:,} parameters, {record.num_bytes:,} "
        f"bytes; {weights_file.beside(path).name} says what they are"
    )
    return path


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what tells one stage 1 from another, of a config as JSON values."""
    sections = {
        section: {
            name: value
            for name, value in config[section].items()
            if f"{section}.{name}" not in config_lib.WITHOUT_EFFECT
        }
        for section in ("data", "vae")
    }
    return {"seed": config["seed"], **sections}


def _how_it_was_trained(
    experiment: Experiment, kind: str, checkpoint: Restored
) -> dict[str, Any]:
    """Where, and how long; nothing where the run's records are lost."""
    run = experiment.workdir.results()["run"]
    of_stage = run.get("stages", {}).get("vae", {})
    seconds = run.get("wall_seconds", {}).get("vae")
    if kind == "state":  # the records may be of a shorter stage 1, or not be there
        seconds = checkpoint.metadata["wall_seconds"]
    return {"environment": of_stage.get("environment", {}), "seconds": seconds}


def check_data(
    experiment: Experiment, field: str, name: str, record: weights_file.Record
) -> None:
    """Refuses other examples than those that the arrays were trained on."""
    before = msgspec.to_builtins(record.data)
    if lines := data_seal.differences(before, experiment.data_seal):
        raise InputError(
            f"config.vae.{field}={name} was trained on other data "
            f"({'; '.join(lines)}): bring those back (config.data.dir), or leave "
            f"config.vae.{field} out and train stage 1"
        )


def check_arrays(path: Path, own: Mapping[str, Any], found: Arrays) -> None:
    """Refuses a file whose arrays have other paths, shapes or types than our own."""
    kinds = [
        {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
        for arrays in (own, found)
    ]
    if kinds[0] != kinds[1]:
        both = own.keys() | found.keys()
        differ = [name for name in both if kinds[0].get(name) != kinds[1].get(name)]
        raise InputError(
            f"{path} holds other arrays than this code has ({min(differ)}): it was "
            "written by another version; use that one, or train stage 1"
        )


def said(settings: Changes) -> str:
    """Names settings that differ, the file's value first; a few of many."""
    lines = [
        f"config.{name} is {schema.shown(its)} there and {schema.shown(mine)} here"
        for name, (its, mine) in settings.items()
    ]
    more = f", and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
    return ", ".join(lines[:MAX_NAMED]) + more
