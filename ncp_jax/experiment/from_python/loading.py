"""A run of `main.py`, read from Python: its models."""

import contextlib
from pathlib import Path
from typing import Literal, overload

from ncp_jax.errors import InputError, local_path
from ncp_jax.experiment.from_python import given
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import run_files, schema, signal, wiring
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.models.base import FrozenVAE
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.training.checkpoints import fingerprint


@overload
def load(workdir: str | Path, stage: Literal["ncp"] = "ncp") -> NCPPrior: ...


@overload
def load(workdir: str | Path, stage: Literal["vae"]) -> FrozenVAE: ...


def load(
    workdir: str | Path, stage: Literal["vae", "ncp"] = "ncp"
) -> NCPPrior | FrozenVAE:
    """Returns what a run of `main.py` has trained, at its best on held-out examples.

    Nothing in the folder changes, and the data need not be there.  `sample`, `evaluate`
    and `compare` want x as the run had it: of `data.binarization="dynamic"`, the
    default of grey pictures, that is `prepare=ncp_jax.binarize`.

    Args:
      workdir: of the run.
      stage: "ncp" for the prior on its frozen VAE, "vae" for the VAE alone.

    Raises:
      InputError: it is no run, of settings that this version does not know, or the
        stage has not ended.
    """
    if stage not in ("vae", "ncp"):
        raise InputError(f'stage must be "vae" or "ncp", got {stage!r}')
    path = Path(local_path("workdir", str(workdir)))
    content = run_files.read_json(path, "config.json") if path.is_dir() else None
    if content is None:
        raise InputError(
            f"{path} is no workdir of main.py: it has no config.json. A prior of `fit` "
            "is loaded by the same call of `fit` with its workdir"
        )
    if content.keys() == given.RECORDED:
        raise InputError(
            f"{path} is a folder of ncp_jax.report, which holds no models: a prior of "
            "`fit` is loaded by the same call of `fit` with its workdir"
        )
    config = schema.checked(config_lib.completed(content))
    folder = Workdir(path, config_lib.as_json(config), {}, is_writer=False)
    with contextlib.closing(folder):
        # Shapes and types of the data are all that is asked for.
        experiment = Experiment(config, folder, wiring.noise_for_data(config))
        vae = experiment.load_vae()
        if stage == "vae":
            return vae
        if config.ncp.directions.cap:
            signal.check_found(experiment, fingerprint(vae.variables))
        return experiment.load_ncp()
