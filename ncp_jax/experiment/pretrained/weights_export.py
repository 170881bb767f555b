"""`--stage=export --config.export.format=weights`: the best of stage 1 as one file."""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ncp_jax.errors import InputError
from ncp_jax.experiment.pretrained import exported
from ncp_jax.experiment.setup.wiring import Experiment


def export(experiment: Experiment, command: str) -> Path:
    """Writes the weights that stage 2 reads into an npz, and its record beside it.

    The same run gives the same bytes. Stage 2 need not be there. With
    `config.export.dtype` "float16" the numbers are rounded to eleven bits.

    Args:
      experiment: the run.
      command: that was given, for the record.

    Returns:
      The npz: `config.export.file`, else `export/weights/vae.npz` in the run's folder.

    Raises:
      InputError: stage 1 has not ended, or holds what is not finite.
    """
    best = experiment.best_stage_1()
    variables = jax.device_get(best.state.eval_variables)
    arrays = {n: np.asarray(a) for n, a in flatten_dict(variables, sep="/").items()}
    if (dtype := experiment.config.export.dtype) != "float32":
        arrays = {n: _rounded(n, array, dtype) for n, array in arrays.items()}
    return exported.write(experiment, "weights", best, arrays, command)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """The same in another type of floats; integers stay."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if np.isfinite(array).all() and not np.isfinite(rounded).all():
        raise InputError(
            f"stage 1 has an array {name} with numbers too large for {dtype}: leave "
            "config.export.dtype out"
        )
    return rounded
