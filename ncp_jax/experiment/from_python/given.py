"""An `Experiment` whose VAE, prior and data are given, not built of a config."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ncp_jax import rng
from ncp_jax.data.datasets import Dataset
from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import schema, validation, wiring
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import ENERGIES, Workdir
from ncp_jax.models.base import Block, is_deterministic
from ncp_jax.nested import flatten
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import itself
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import signal

Array = jax.Array

SECTIONS = ("sample", "evaluate", "benchmark")  # that a user may change
RECORDED = {"seed", "data", "vae", "ncp", *SECTIONS}  # in config.json, and no more
DEFAULTS = {  # where those of the paper's tables would take hours
    "sample.num_proposals": 1_000,
    "sample.temperatures": (),  # not every base prior has one
    "evaluate.num_importance_samples": 200,
    "evaluate.num_snis_proposals": 256,
    "evaluate.num_log_z_draws": 100_000,
    "evaluate.log_z_batch_size": 10_000,
    "evaluate.fid_num_images": 10_000,
    "benchmark.parts": ("samplers", "alone", "stage_two", "scaling"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class PluggedIn(Experiment):
    """A run of a prior that exists: it is sampled, measured and timed, not trained."""

    ncp: NCPPrior
    given_prepare: Prepare
    root_key: Array
    given_mesh: Mesh

    @property
    def has_pictures(self) -> bool:
        """Whether examples are pictures: uint8, or floats in [0, 1]."""
        train = self.dataset.train
        if train.ndim != 4 or train.shape[-1] not in (1, 3):
            return False
        return train.dtype == np.uint8 or bool(train.min() >= 0 and train.max() <= 1)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The latent groups, as the discriminators see them."""
        return signal.trained(self.ncp.vae).blocks

    @property
    def vae_blocks(self) -> tuple[Block, ...]:
        """Those of the VAE itself, whose z the samples keep."""
        return itself(self.ncp.vae).blocks

    @property
    def is_deterministic(self) -> bool:
        """Whether the VAE says that its z is a function of x."""
        return is_deterministic(itself(self.ncp.vae))

    @property
    def is_trained(self) -> bool:
        """It is: otherwise there would be no prior."""
        return True

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices that were given."""
        return self.given_mesh

    @functools.cached_property
    def discriminator(self) -> nn.Module:
        """The network of the prior."""
        return self.ncp.discriminator

    @functools.cached_property
    def ncp_optimizer(self) -> optax.GradientTransformation:
        """One as `fit` has it, to be timed."""
        return optax.adam(1e-3)

    def key(self, section: str) -> Array:
        """The key that owns the random streams of a section."""
        return rng.stream(self.root_key, section)

    def prepare(self, key: Array, stored: Array) -> Array:
        """Makes the model's x from stored examples [B, ...]."""
        return self.given_prepare(key, stored)

    def load_ncp(self) -> NCPPrior:
        """Returns the prior that was given, of the groups that are asked for."""
        groups, model = tuple(self.config.sample.groups), self.ncp.vae
        if not groups:
            return self.ncp
        if isinstance(model, SignalVAE | DirectedVAE):
            return dataclasses.replace(self.ncp, groups=model.chosen(groups))
        return dataclasses.replace(self.ncp, groups=groups)


def open_folder(
    ncp: NCPPrior,
    folder: Path,
    dataset: Dataset,
    prepare: Prepare,
    key: Array,
    mesh: Mesh,
    name: str,
    settings: Mapping[str, Any],
) -> PluggedIn:
    """Opens the folder of a run on a given prior; close its `workdir`.

    Args:
      ncp: the prior.
      folder: created if missing.
      dataset: stored examples.
      prepare: (key, stored) -> x.
      key: PRNG key; the run's own.
      mesh: the devices.
      name: of the data; "" for that of the VAE.
      settings: by name, "section.field", of `SECTIONS`.

    Raises:
      InputError: settings that do not exist or cannot work; a folder of main.py.
    """
    config = _config(ncp, dataset, key, name, settings)
    _refuse_run_of_main(folder)
    workdir = Workdir(
        folder, config_lib.as_json(config), stages.environment(), pinning_stages=()
    )
    return PluggedIn(config, workdir, dataset, ncp, prepare, key, mesh)


def _config(
    ncp: NCPPrior,
    dataset: Dataset,
    key: Array,
    name: str,
    settings: Mapping[str, Any],
) -> ConfigDict:
    """All settings of the measuring stages, and what the page says of the rest."""
    full = config_lib.default()
    allowed = {
        field for field, _ in flatten(full.to_dict()) if field.split(".")[0] in SECTIONS
    }
    if unknown := sorted(settings.keys() - allowed):
        raise InputError(
            f"settings has {unknown}; there are {', '.join(sorted(allowed))}"
        )
    full.update_from_flattened_dict({**DEFAULTS, **settings})
    full = schema.checked(full)
    validation.validate(full)
    if "training" in full.benchmark.parts:
        raise InputError(
            "benchmark.parts: 'training' times stage 1, which a given VAE has behind it"
        )
    if named := sorted(set(ENERGIES) & {*full.sample.samplers, full.export.sampler}):
        raise InputError(
            f"sample.samplers: {named[0]!r} draws by an energy that runs of main.py "
            "train; for a given VAE fit one by ncp_jax.priors.pixel_energy.fitting"
        )
    wiring.check_groups(full, itself(ncp.vae).blocks)
    network = ncp.discriminator
    fields = {field: repr(value) for field, value in _attributes(network).items()}
    data = {
        "name": name or ncp.vae_name,
        "shape": dataset.train.shape[1:],
        "binarization": "none",
        "num_bits": 8,
        "horizontal_flips": False,
    }
    return ConfigDict(
        {
            "seed": int(jax.random.key_data(key)[-1]),
            "data": data,
            "vae": {"model": {"name": ncp.vae_name}},
            "ncp": {"discriminator": {"name": type(network).__name__, **fields}},
            **{section: full[section].to_dict() for section in SECTIONS},
        }
    ).lock()


def _attributes(network: nn.Module) -> dict[str, Any]:
    return {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name")
    }


def _refuse_run_of_main(folder: Path) -> None:
    """Its config.json says which checkpoints are whose: it must not be replaced."""
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        model = json.loads(path.read_bytes())["vae"]["model"]["name"]
    except (ValueError, KeyError, TypeError):
        return  # damaged or foreign: `Workdir` speaks of it
    if model in config_lib.VAES:
        raise InputError(f"{folder} holds a run of main.py: give another folder")
