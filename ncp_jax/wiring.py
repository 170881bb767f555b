"""From a config to what it names: data, models, training tasks, random streams."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ncp_jax import (
    data,
    ncp_stage,
    optimizers,
    prior,
    rng,
    training,
    vae_stage,
)
from ncp_jax.checkpoints import Checkpoints, digests
from ncp_jax.errors import InputError
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.training import Task, TrainState
from ncp_jax.workdir import Workdir

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings, the folder and the data of one run, and what is built of them."""

    config: ConfigDict
    workdir: Workdir
    dataset: data.Dataset

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.workdir.path

    @property
    def has_pictures(self) -> bool:
        """Whether examples are pictures; else they are points."""
        return self.dataset.train.dtype == np.uint8

    def key(self, stream: str) -> Array:
        """The key that owns a random stream of this run."""
        return rng.stream(rng.root(self.config.seed), stream)

    def prepare(self, key: Array, stored: Array) -> Array:
        """Makes the model's x from stored examples [B, ...]."""
        if not self.has_pictures:
            return stored
        if self.config.data.binarization == "none":
            return stored.astype(jnp.float32) / 255.0
        return data.binarize(key, stored)  # fixed zeros and ones stay as they are

    def vae_task(self) -> tuple[Task, TrainState]:
        """Returns what stage 1 trains, and the state that it starts from."""
        settings, key = self.config.vae, self.key("vae")
        task = Task(
            name="vae",
            data=self._train_data(settings.batch_size),
            inputs=self._batches(settings.batch_size, key),
            update=vae_stage.make_update(
                self._vae_module(),
                _optimizer(settings),
                self.prepare,
                key,
                kl_warmup_steps=settings.kl_warmup_steps,
                ema_decay=settings.ema_decay,
            ),
            validate=vae_stage.make_validate(
                self._vae_module(), self.prepare, rng.stream(key, "valid")
            ),
        )
        return task, self._initial_vae()

    def ncp_task(self, vae: FrozenVAE) -> tuple[Task, TrainState]:
        """Returns what stage 2 trains on `vae`, and the state that it starts from."""
        settings, key = self.config.ncp, self.key("ncp")
        task = Task(
            name="ncp",
            data={"vae": vae, **self._train_data(settings.batch_size)},
            inputs=self._batches(settings.batch_size, key),
            update=ncp_stage.make_update(
                self._discriminator(),
                _optimizer(settings),
                self.prepare,
                key,
                ema_decay=settings.ema_decay,
            ),
            validate=ncp_stage.make_validate(
                self._discriminator(),
                self.prepare,
                rng.stream(key, "valid"),
                num_passes=settings.num_passes,
            ),
        )
        return task, self._initial_ncp(vae)

    def checkpoints(self, stage: str, vae: FrozenVAE | None = None) -> Checkpoints:
        """Opens the checkpoints of "vae", or of "ncp" on `vae`; to use in a `with`."""
        metadata = {"config": self.workdir.fingerprint(stage)}
        if vae is not None:  # its discriminators fit no other
            leaves = json.dumps(digests(vae.variables), sort_keys=True)
            metadata["vae"] = hashlib.sha256(leaves.encode()).hexdigest()[:16]
        folder = self.path / stage / "checkpoints"
        return Checkpoints(folder, metadata)

    def load_vae(self) -> FrozenVAE:
        """Returns the stage-1 model of lowest validation loss."""
        best = self._best("vae", self._initial_vae())
        return FrozenVAE(
            self._vae_module(), {"params": best.eval_params, **best.model_state}
        )

    def load_ncp(self) -> prior.NCPPrior:
        """Returns the prior of lowest held-out NCE loss, on its frozen VAE."""
        vae = self.load_vae()
        best = self._best("ncp", self._initial_ncp(vae), vae)
        return prior.NCPPrior(vae, self._discriminator(), best.eval_params)

    def _initial_vae(self) -> TrainState:
        init_key = rng.stream(self.key("vae"), "init")
        x = jnp.zeros((1, *self.config.data.shape))
        variables = jax.jit(self._vae_module().init)(init_key, x, init_key)
        params = variables.pop("params")
        scale = 255.0 if self.has_pictures else 1.0
        mean = self.dataset.train.mean(axis=0, dtype=np.float64) / scale
        variables["statistics"] = {"data_mean": jnp.asarray(mean, jnp.float32)}
        return training.init_state(
            params, variables, _optimizer(self.config.vae), self.config.vae.ema_decay
        )

    def _initial_ncp(self, vae: FrozenVAE) -> TrainState:
        init_key = rng.stream(self.key("ncp"), "init")
        params = ncp_stage.init_params(self._discriminator(), vae, init_key)
        return training.init_state(
            params, {}, _optimizer(self.config.ncp), self.config.ncp.ema_decay
        )

    def _vae_module(self) -> MLPVAE:
        return MLPVAE(data_shape=self.config.data.shape, **self.config.vae.model)

    def _discriminator(self) -> MLPDiscriminator:
        return MLPDiscriminator(**self.config.ncp.discriminator)

    def _train_data(self, batch_size: int) -> dict[str, Array]:
        valid = self.dataset.valid
        batches = data.padded_batches(valid, min(batch_size, len(valid)))
        rows, masks = zip(*batches, strict=True)
        return {
            "train": jnp.asarray(self.dataset.train),
            "valid": jnp.asarray(np.stack(rows)),  # [n, B, ...]
            "valid_mask": jnp.asarray(np.stack(masks)),  # [n, B]
        }

    def _batches(self, batch_size: int, key: Array) -> Callable[[int, int], Array]:
        batch_key, num_examples = rng.stream(key, "batch"), len(self.dataset.train)
        data.batch_indices(batch_key, 0, 1, batch_size, num_examples)  # or InputError
        return lambda first_step, num_steps: data.batch_indices(
            batch_key, first_step, num_steps, batch_size, num_examples
        )

    def _best(
        self, stage: str, like: TrainState, vae: FrozenVAE | None = None
    ) -> TrainState:
        num_steps = self.config[stage].num_steps
        with self.checkpoints(stage, vae) as saved:
            if saved.latest_step() != num_steps:
                raise InputError(
                    f"stage {stage} has not reached its {num_steps} steps in "
                    f"{self.path}: run --stage={stage} first"
                )
            return jax.device_put(saved.restore_best(like).state)


def load_data(config: ConfigDict) -> data.Dataset:
    """Loads the data set; with binarization "fixed", its pixels are drawn once."""
    settings = config.data
    dataset = data.load(
        settings.name, settings.shape, settings.dir, settings.download, config.seed
    )
    for section in ("vae", "ncp"):
        size = config[section].batch_size
        if size > len(dataset.train):
            raise InputError(
                f"config.{section}.batch_size = {size} is more than the "
                f"{len(dataset.train)} training examples of {settings.name}"
            )
    is_binary = dataset.train.dtype == np.uint8 and settings.binarization != "none"
    if is_binary != (config.vae.model.likelihood == "bernoulli"):
        kind = "zeros and ones" if is_binary else "real numbers"
        raise InputError(
            f"config.vae.model.likelihood = {config.vae.model.likelihood!r} is no "
            f"likelihood of {kind}, which {settings.name} with "
            f"config.data.binarization = {settings.binarization!r} holds"
        )
    if settings.binarization != "fixed":
        return dataset
    key = rng.stream(rng.root(config.seed), "fixed binarization")
    return data.Dataset(
        *(
            255 * np.asarray(data.binarize(rng.at_step(key, i), split), np.uint8)
            for i, split in enumerate(map(jnp.asarray, dataset))
        )
    )


def _optimizer(settings: ConfigDict) -> optax.GradientTransformation:
    learning_rate = optimizers.schedule(
        settings.schedule,
        settings.learning_rate,
        settings.num_steps,
        settings.warmup_steps,
    )
    return optimizers.adam(learning_rate, settings.weight_decay)
