"""What stage 2 of `fit` learns from: a VAE and its examples, or their encodings."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import rng
from ncp_jax.training import preparation, signal
from ncp_jax.training.loop import Prepare, Task
from ncp_jax.training.signal import SignalSettings
from ncp_jax.training.stage_two import StageTwo

Array = jax.Array


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
        """Returns what the loop trains; with settings, on encodings that are made here.

        Args:
          stage: how it is trained.
          key: owner of the stage's random streams.
          settings: of `in_directions`, or None.
          mesh: the devices.
        """
        given = self if settings is None else self._encoded(stage, key, settings, mesh)
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
