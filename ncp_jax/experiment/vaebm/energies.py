"""From the settings of "vaebm" to trained energies, one for each sampler with one."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.data import pixels
from ncp_jax.errors import InputError
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import ENERGIES
from ncp_jax.priors.group_samplers import SIR
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.priors.pixel_energy import joint
from ncp_jax.priors.pixel_energy.fitting import Fit, Pool
from ncp_jax.priors.pixel_energy.settings import Settings
from ncp_jax.training.checkpoint_records import checked_record, saved_steps
from ncp_jax.training.run_log import RunLog

Array = jax.Array

CHUNK_SIZE = 100  # proposals of each of 500 chains at a time, for the pool of starts
FIELDS = tuple(field.name for field in dataclasses.fields(Settings))


def named(experiment: Experiment) -> list[str]:
    """Those samplers of the settings that need an energy."""
    return [name for name in ENERGIES if name in experiment.config.sample.samplers]


def train(experiment: Experiment) -> None:
    """Trains the energies of the settings' samplers, each from its newest checkpoint.

    Raises:
      InputError: no sampler needs one, or what they start at is not there.
    """
    names = named(experiment)
    if not names:
        raise InputError(
            "config.sample.samplers names none of "
            f"{', '.join(ENERGIES)}, so there is no energy to train: add one of them"
        )
    for name in names:
        fit, folder = _fit(experiment, name), experiment.path / name / "checkpoints"
        num_steps = fit.settings.num_steps
        fit(
            _prior(experiment, name),
            experiment.dataset.train,
            experiment.dataset.valid,
            experiment.key("vaebm"),
            folder,
            partial(_log, experiment.path, name, num_steps),
            experiment.mesh,
        )
        steps = saved_steps(folder)
        newest = checked_record(steps[max(steps)])
        experiment.workdir.add_results(name, {}, newest["wall_seconds"])


def _log(path: Path, name: str, num_steps: int, first_step: int) -> RunLog:
    return RunLog(path, name, first_step, num_steps)


def prior_of(experiment: Experiment, name: str, ncp: NCPPrior) -> NCPPrior:
    """What a sampler draws from: `ncp`, or a prior with the energy that is its own.

    Args:
      experiment: the run.
      name: of the sampler.
      ncp: the run's prior.

    Raises:
      InputError: its energy has not been trained.
    """
    if name not in ENERGIES:
        return ncp
    # Its activations may be in another type here: the weights are the same.
    found = _fit(experiment, name).restored(
        _prior(experiment, name),
        experiment.dataset.train,
        experiment.dataset.valid,
        experiment.key("vaebm"),
        experiment.path / name / "checkpoints",
        experiment.mesh,
    )
    return dataclasses.replace(found, discriminator=ncp.discriminator)


def _prior(experiment: Experiment, name: str) -> NCPPrior:
    """Where the chains of a sampler start."""
    if name == "vaebm":
        return joint.of_vae(experiment.load_vae(), experiment.discriminator)
    return experiment.load_ncp()


def _fit(experiment: Experiment, name: str) -> Fit:
    settings, pool = experiment.config.vaebm, None
    if name == "sirvaebm":
        chunk_size = min(settings.num_proposals, CHUNK_SIZE)
        sir = SIR(settings.num_proposals, chunk_size)
        pool = Pool(sir, settings.num_starts)
    has_flips = experiment.config.data.horizontal_flips

    def pictures(key: Array, stored: Array) -> Array:
        """Grey pictures in [0, 1], never binarised, as the means of p(x | z) are."""
        if not experiment.has_pictures:
            return stored
        if experiment.config.data.binarization == "none":
            return experiment.prepare(key, stored)
        return stored.astype(jnp.float32) / 255.0

    def in_training(key: Array, stored: Array) -> Array:
        if has_flips:
            stored = pixels.flip_half(rng.stream(key, "flips"), stored)
        return pictures(key, stored)

    chosen = {field: settings[field] for field in FIELDS}
    return Fit(name, Settings(**chosen), pool, in_training, pictures)
