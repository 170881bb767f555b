"""Signal directions of a run: found once, kept in its folder, read by stage 2."""

from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ncp_jax import rng
from ncp_jax.data.datasets import Dataset
from ncp_jax.errors import InputError
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.ncp import signal
from ncp_jax.training.ncp.signal_settings import SignalSettings

Array = jax.Array


class Run(Protocol):
    """What is read here of a `wiring.Experiment`, which builds on this module."""

    @property
    def config(self) -> ConfigDict:
        """The settings."""
        ...

    @property
    def workdir(self) -> Workdir:
        """The folder and its lock."""
        ...

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def dataset(self) -> Dataset:
        """Stored examples."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        ...

    def key(self, section: str) -> Array:
        """The key that owns the random streams of a section of the settings."""
        ...

    def prepare(self, key: Array, stored: Array) -> Array:
        """Makes the model's x from stored examples."""
        ...

    def prepare_to_train(self, key: Array, stored: Array) -> Array:
        """The same, with what only training pictures undergo."""
        ...


def settings_of(config: ConfigDict) -> SignalSettings | None:
    """The settings of directions, `config.ncp.directions`; None without directions.

    Raises:
      InputError: settings that exclude each other.
    """
    fields = config.ncp.directions.to_dict()
    return SignalSettings(**fields) if fields["cap"] else None


def _settings(experiment: Run) -> SignalSettings:
    """The settings of a run on directions."""
    return SignalSettings(**experiment.config.ncp.directions.to_dict())


def model(
    experiment: Run, vae: LatentVariableModel, vae_digest: str
) -> SignalVAE | DirectedVAE:
    """The VAE as ratios on directions see it; these are found if they are not there.

    Args:
      experiment: the run.
      vae: its frozen stage 1.
      vae_digest: of its variables; other directions are kept for another stage 1.
    """
    settings, path = _settings(experiment), _file(experiment, vae_digest)

    def find() -> Directions:
        return signal.find(
            vae,
            experiment.dataset.train,
            experiment.prepare,
            rng.stream(experiment.key("ncp"), "directions"),
            settings,
            batch_size=experiment.config.ncp.batch_size,
            mesh=experiment.mesh,
        )

    return signal.view(vae, signal.kept(path, find), settings)


def check_found(experiment: Run, vae_digest: str) -> None:
    """Refuses a run whose directions would have to be found again.

    Raises:
      InputError: their file is not there.
    """
    path = _file(experiment, vae_digest)
    if not path.exists():
        raise InputError(
            f"{path} is not there, which holds the signal directions that stage 2 "
            "reads: bring it back, or run --stage=ncp first"
        )


def _file(experiment: Run, vae_digest: str) -> Path:
    """Where the directions of a run on this stage 1 are kept."""
    lengths = [e["fingerprint"] for e in experiment.workdir.earlier("ncp")]
    first = [*lengths, experiment.workdir.fingerprint("ncp")][0]  # the length is idle
    return signal.file_in(experiment.path / "ncp", [vae_digest, first])


def encoded(experiment: Run, of_vae: SignalVAE) -> tuple[np.ndarray, np.ndarray]:
    """Encodings of training and validation examples: u [., K, m] each."""
    return signal.encoded(
        of_vae,
        experiment.dataset.train,
        experiment.dataset.valid,
        rng.stream(experiment.key("ncp"), "encodings"),
        _settings(experiment),
        prepare=experiment.prepare_to_train,
        prepare_held_out=experiment.prepare,
        num_passes=experiment.config.ncp.num_passes,
        batch_size=experiment.config.ncp.batch_size,
        mesh=experiment.mesh,
    )
