"""`--stage=export --config.export.format=weights`: the best of stage 1 as one file."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ncp_jax.errors import InputError, local_path
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import data_seal
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.records import weights_file
from ncp_jax.training.checkpoints import fingerprint

LICENCE = (
    "Apache-2.0, as ncp_jax, whose program made this file; the data that it was "
    "trained on have terms of their own"
)


def export(experiment: Experiment, command: str) -> Path:
    """Writes the weights that stage 2 reads into an npz, and its record beside it.

    The same run gives the same bytes. Stage 2 need not be there.

    Args:
      experiment: the run.
      command: that was given, for the record.

    Returns:
      The npz: `config.export.file`, else `export/weights/vae.npz` in the run's folder.

    Raises:
      InputError: stage 1 has not ended, or holds what is not finite.
    """
    path = experiment.path / "export" / "weights" / "vae.npz"
    if file := experiment.config.export.file:
        path = Path(local_path("config.export.file", file))
    best = experiment.best_stage_1()
    variables = jax.device_get(best.state.eval_variables)
    arrays = {n: np.asarray(a) for n, a in flatten_dict(variables, sep="/").items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"stage 1 in {experiment.path} has an array {name} that is not finite: "
                "train it again, in a new workdir, at a lower config.vae.learning_rate"
            )
    known = {
        "step": best.step,
        "fingerprint": fingerprint(variables),
        "held_out_loss": best.metadata["valid_loss"],
        "config": settings_of(config_lib.as_json(experiment.config)),
        "data": data_seal.short(experiment.data_seal),
        **_how_it_was_trained(experiment),
        "licence": LICENCE,
        "command": command,
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


def _how_it_was_trained(experiment: Experiment) -> dict[str, Any]:
    """Where, and how long; nothing where the run's records are lost."""
    run = experiment.workdir.results()["run"]
    of_stage = run.get("stages", {}).get("vae", {})
    return {
        "environment": of_stage.get("environment", {}),
        "seconds": run.get("wall_seconds", {}).get("vae"),
    }
