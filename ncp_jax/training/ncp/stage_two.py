"""Stage 2 as a task of the training loop: one builder for configs and for `fit`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.training import batches
from ncp_jax.training.loop import Prepare, Task
from ncp_jax.training.ncp import (
    held_out,
    ncp_state,
    ncp_update,
    ncp_validation,
    preparation,
    signal,
)
from ncp_jax.training.ncp.ncp_state import NCPState
from ncp_jax.training.ncp.signal_settings import SignalSettings

Array = jax.Array

SETTINGS = (  # fields of `StageTwo` that decide on its result, numbers and names
    "batch_size",
    "num_negatives",
    "ranking_weight",
    "negative_weight",
    "select_by",
    "ema_decay",
    "num_passes",
    "patience",
)


@dataclasses.dataclass(frozen=True)
class StageTwo:
    """How the discriminators of a frozen VAE are trained.

    Attributes:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      batch_size: examples of a step.
      num_negatives: prior draws of each group per example.
      ranking_weight: of the ranking losses beside those of NCE (`nce.losses`).
      negative_weight: M of the weighted NCE loss; 1 is the paper's (`nce.nce_losses`).
      select_by: "loss" or "gain", the held-out number that best weights have.
      ema_decay: of the running average of the weights; 0 for none.
      num_passes: encodings of each validation example.
      patience: validations without a lower held-out loss after which a group rests; 0
        for no end.
      formulation: of `stacks.over_groups`.
      is_train_there: as of `batches.on_devices`.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    batch_size: int
    num_negatives: int = 1
    ranking_weight: float = 0.0
    negative_weight: float = 1.0
    select_by: str = "loss"
    ema_decay: float = 0.0
    num_passes: int = 1
    patience: int = 0
    formulation: str = "auto"
    is_train_there: bool = True

    def task(
        self,
        vae: LatentVariableModel,
        train: np.ndarray,
        valid: np.ndarray,
        key: Array,
        *,
        prepare: Prepare,
        prepare_held_out: Prepare,
        mesh: Mesh,
    ) -> Task:
        """Returns what the loop trains.

        Args:
          vae: the frozen model.
          train: [N, ...] stored examples.
          valid: [M, ...] held-out ones.
          key: owner of the stage's random streams.
          prepare: (key, stored) -> x, in training.
          prepare_held_out: the same, in validation.
          mesh: the devices.
        """
        groups = signal.groups_that_read(vae)
        shared: dict[str, Any] = {
            "num_negatives": self.num_negatives,
            "ranking_weight": self.ranking_weight,
            "negative_weight": self.negative_weight,
            "patience": self.patience,
            "mesh": mesh,
            "formulation": self.formulation,
            "groups": groups,
        }
        stored = batches.on_devices(
            mesh, train, valid, self.batch_size, self.is_train_there
        )
        return Task(
            name="ncp",
            data={"vae": parallel.replicate(mesh, vae), **stored},
            inputs=batches.by_step(
                mesh,
                rng.stream(key, "batch"),
                train,
                self.batch_size,
                self.is_train_there,
            ),
            update=ncp_update.make_update(
                self.discriminator,
                self.optimizer,
                prepare,
                key,
                ema_decay=self.ema_decay,
                **shared,
            ),
            validate=ncp_validation.make_validate(
                self.discriminator,
                prepare_held_out,
                rng.stream(key, "valid"),
                num_passes=self.num_passes,
                select_by=self.select_by,
                **shared,
            ),
            average=held_out.mean_of_steps,
            remarks=partial(held_out.remarks, groups=groups),
            place=partial(ncp_state.place, mesh, blocks=vae.blocks, groups=groups),
            collect=partial(ncp_state.collect, vae.blocks, groups=groups),
        )

    def initial(self, vae: LatentVariableModel, key: Array) -> NCPState:
        """Returns the state that `task` starts from, with r = 1.

        Args:
          vae: the frozen model.
          key: as of `task`.
        """
        init_state = partial(
            ncp_state.init_state,
            self.discriminator,
            self.optimizer,
            vae,
            ema_decay=self.ema_decay,
        )
        return jax.jit(init_state)(rng.stream(key, "init"))


class Given(NamedTuple):
    """A frozen VAE and the examples that its discriminators see."""

    vae: Any  # a `LatentVariableModel`: the VAE, or its view in signal coordinates
    train: np.ndarray  # [N, ...]
    valid: np.ndarray  # [M, ...]
    prepare: Prepare
    num_passes: int  # encodings of each validation example
    progress: bool  # whether to show how far it is

    def in_directions(
        self,
        settings: SignalSettings,
        key: Array,
        path: Path | None,
        batch_size: int,
        mesh: Mesh,
    ) -> Self:
        """Returns the same with the VAE in signal coordinates.

        Args:
          settings: of the directions.
          key: owner of the stage's random streams.
          path: of the file that keeps the directions, or will; None for none.
          batch_size: examples at a time.
          mesh: the devices.

        Raises:
          InputError: the file is damaged, or see `signal.find`.
        """
        find = partial(
            signal.find,
            self.vae,
            self.train,
            self.prepare,
            rng.stream(key, "directions"),
            settings,
            batch_size=batch_size,
            mesh=mesh,
        )
        directions = signal.kept(path, find, progress=self.progress)
        return self._replace(vae=signal.view(self.vae, directions, settings))

    def task(
        self,
        stage: StageTwo,
        key: Array,
        settings: SignalSettings | None,
        mesh: Mesh,
    ) -> Task:
        """Returns what the loop trains; on coordinates, those that are made here.

        Args:
          stage: how it is trained.
          key: owner of the stage's random streams.
          settings: of `in_directions`, or None.
          mesh: the devices.
        """
        given = self
        if settings is not None and not settings.is_whole:
            given = self._encoded(stage, key, settings, mesh)
        return dataclasses.replace(stage, num_passes=given.num_passes).task(
            given.vae,
            given.train,
            given.valid,
            key,
            prepare=given.prepare,
            prepare_held_out=given.prepare,
            mesh=mesh,
        )

    def _encoded(
        self, stage: StageTwo, key: Array, settings: SignalSettings, mesh: Mesh
    ) -> Self:
        """The coordinates in the place of VAE and examples."""
        train, valid = signal.encoded(
            self.vae,
            self.train,
            self.valid,
            rng.stream(key, "encodings"),
            settings,
            prepare=self.prepare,
            prepare_held_out=self.prepare,
            num_passes=self.num_passes,
            batch_size=stage.batch_size,
            mesh=mesh,
            progress=self.progress,
        )
        as_stored, model = preparation.as_stored, signal.trained(self.vae)
        return self._replace(
            vae=model, train=train, valid=valid, prepare=as_stored, num_passes=1
        )
