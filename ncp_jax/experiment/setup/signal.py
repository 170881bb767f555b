"""Signal directions of a run: found once, kept in its folder, read by stage 2."""

import hashlib
import json
from functools import partial
from typing import Any

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.priors.directions import Directions, fit_directions
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training import encodings

Array = jax.Array

OF_FIT = ("share", "floor", "cap")  # settings that are arguments of `fit_directions`


def model(experiment: Any, vae: LatentVariableModel, vae_digest: str) -> SignalVAE:
    """The VAE in signal coordinates; its directions are found if they are not there.

    Args:
      experiment: the run (`wiring.Experiment`).
      vae: its frozen stage 1.
      vae_digest: of its variables; other directions are kept for another stage 1.
    """
    settings = experiment.config.ncp.directions
    identity = [vae_digest, experiment.workdir.fingerprint("ncp")]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = experiment.path / "ncp" / f"directions-{name}.npz"
    if path.exists():
        found = Directions.load(path)
    else:
        print("ncp: finds signal directions")
        found = _find(experiment, vae)
        path.parent.mkdir(exist_ok=True)
        found.save(path)
        print(f"ncp: directions of each group: {', '.join(map(str, found.widths))}")
    found.check(vae.blocks)
    return SignalVAE(vae, found, settings.context_size, settings.is_joint)


def _find(experiment: Any, vae: LatentVariableModel) -> Directions:
    settings = experiment.config.ncp.directions
    key = rng.stream(experiment.key("ncp"), "directions")
    train = experiment.dataset.train
    chosen = np.random.default_rng(rng.numpy_seed(rng.stream(key, "examples")))
    rows = np.sort(chosen.permutation(len(train))[: settings.num_examples])
    batch_size = min(experiment.config.ncp.batch_size, len(rows))
    return fit_directions(
        vae,
        datasets.padded_batches(train[rows], batch_size),
        experiment.prepare,
        rng.stream(key, "fit"),
        mesh=experiment.mesh,
        **{name: settings[name] for name in OF_FIT},
    )


def encoded(experiment: Any, of_vae: SignalVAE) -> tuple[np.ndarray, np.ndarray]:
    """Encodings of training and validation examples: u [., K, m] each."""
    settings, data = experiment.config.ncp, experiment.dataset
    key = rng.stream(experiment.key("ncp"), "encodings")
    make = partial(
        encodings.pool, of_vae, batch_size=settings.batch_size, mesh=experiment.mesh
    )
    num = settings.directions.num_encodings
    print(f"ncp: encodes {len(data.train):,} training examples {num} times")
    train = make(
        data.train,
        experiment.prepare_to_train,
        rng.stream(key, "train"),
        num_passes=num,
    )
    valid = make(
        data.valid,
        experiment.prepare,
        rng.stream(key, "valid"),
        num_passes=settings.num_passes,
    )
    return train, valid
