"""`--stage=export --config.export.format=weights`: the best of stage 1 as one file."""

from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ncp_jax.experiment.pretrained import exported
from ncp_jax.experiment.setup.wiring import Experiment


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
    best = experiment.best_stage_1()
    variables = jax.device_get(best.state.eval_variables)
    arrays = {n: np.asarray(a) for n, a in flatten_dict(variables, sep="/").items()}
    return exported.write(experiment, "weights", best, arrays, command)
