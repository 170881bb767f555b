"""Signal directions of a run: found once, kept in its folder, read by stage 2."""

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from ncp_jax import rng
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training import signal
from ncp_jax.training.signal import SignalSettings

if TYPE_CHECKING:  # it builds on this module
    from ncp_jax.experiment.setup.wiring import Experiment


def settings_of(experiment: "Experiment") -> SignalSettings:
    """The settings of directions, which `config.ncp.directions` holds."""
    return SignalSettings(**experiment.config.ncp.directions.to_dict())


def model(
    experiment: "Experiment", vae: LatentVariableModel, vae_digest: str
) -> SignalVAE:
    """The VAE in signal coordinates; its directions are found if they are not there.

    Args:
      experiment: the run.
      vae: its frozen stage 1.
      vae_digest: of its variables; other directions are kept for another stage 1.
    """
    settings = settings_of(experiment)
    identity = [vae_digest, experiment.workdir.fingerprint("ncp")]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = experiment.path / "ncp" / f"directions-{name}.npz"

    def find() -> Directions:
        num_examples = min(settings.num_examples, len(experiment.dataset.train))
        return signal.find(
            vae,
            experiment.dataset.train,
            experiment.prepare,
            rng.stream(experiment.key("ncp"), "directions"),
            settings,
            batch_size=min(experiment.config.ncp.batch_size, num_examples),
            mesh=experiment.mesh,
        )

    return signal.view(vae, signal.kept(path, find), settings)


def encoded(
    experiment: "Experiment", of_vae: SignalVAE
) -> tuple[np.ndarray, np.ndarray]:
    """Encodings of training and validation examples: u [., K, m] each."""
    return signal.encoded(
        of_vae,
        experiment.dataset.train,
        experiment.dataset.valid,
        rng.stream(experiment.key("ncp"), "encodings"),
        settings_of(experiment),
        prepare=experiment.prepare_to_train,
        prepare_held_out=experiment.prepare,
        num_passes=experiment.config.ncp.num_passes,
        batch_size=experiment.config.ncp.batch_size,
        mesh=experiment.mesh,
    )
