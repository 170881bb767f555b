"""The stages of a run for a VAE and a prior that are given, not built of a config."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.data.datasets import Dataset
from ncp_jax.errors import local_path
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.priors.standardized import itself
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import preparation

Array = jax.Array


def report(
    ncp: NCPPrior,
    folder: str | Path,
    *,
    train: np.ndarray | Array,
    test: np.ndarray | Array,
    key: Array,
    valid: np.ndarray | Array | None = None,
    prepare: Prepare | None = None,
    samplers: Sequence[str] = ("sir",),
    name: str = "",
    settings: Mapping[str, Any] | None = None,
    benchmark: bool = False,
    mesh: Mesh | None = None,
) -> Path:
    """Draws, measures and writes one page about a prior: all that `main.py` does.

    The folder holds samples/*.npz and *.png, evaluation/arrays.npz, results.json (every
    number with its standard error and n) and report/index.html.  It may be the
    `workdir` of `fit`: then the page shows the course of its losses, too.

    Args:
      ncp: of `fit`.
      folder: created if missing; what an earlier call left is replaced.
      train: [N, *data_shape] that it was fitted on, for neighbours and reference
        pictures.  Pictures are uint8, or floats in [0, 1], of shape [N, H, W, 1 or 3].
      test: [M, *data_shape] that all is measured on.
      key: PRNG key; consumed here.
      valid: [M', *data_shape], for `{"evaluate.split": "valid"}`.
      prepare: (key, stored) -> x; the same as that of `fit`.
      samplers: of "sir", "langevin", "mala", "asir", "isir", "sirmala".
      name: of the data, for the page; "" for that of the VAE.
      settings: others than the defaults of `experiment.config`'s sections "sample",
        "evaluate" and "benchmark", e.g. {"sample.num_proposals": 100}.
      benchmark: whether to time the samplers and stage 2 as well, in benchmark.html.
      mesh: the devices; None for all.

    Returns:
      Path of the page.

    Raises:
      InputError: the data or the settings are not as they should be, or the folder is
        another run's.
    """
    # Only a page needs configs, plots and what they import.
    from ncp_jax.experiment import stages
    from ncp_jax.experiment.from_python import given
    from ncp_jax.pages import run_page

    valid = test if valid is None else valid
    found = preparation.splits(train=train, test=test, valid=valid)
    prepare = preparation.checked(itself(ncp.vae), found["test"], prepare)
    experiment = given.open_folder(
        ncp,
        Path(local_path("folder", str(folder))),
        Dataset(**found),
        prepare,
        rng.typed(key),
        mesh or parallel.mesh_of(),
        name,
        {"sample.samplers": tuple(samplers), **(settings or {})},
    )
    with contextlib.closing(experiment.workdir):
        for stage in stages.MEASURING:
            stages.measure(experiment, stage)
        if benchmark:
            stages.benchmark(experiment)
    return run_page.write(experiment.path)
