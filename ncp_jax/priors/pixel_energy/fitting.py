"""Trains an energy of pictures on a frozen prior, and brings a trained one back."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError
from ncp_jax.priors.ncp_prior import DrawGroup, NCPPrior, ancestral
from ncp_jax.priors.pixel_energy.contrast import (
    Contrast,
    EnergyState,
    Fixed,
    Prepare,
)
from ncp_jax.priors.pixel_energy.energy import EnergyNet
from ncp_jax.priors.pixel_energy.joint import Dynamics, PixelEnergyPrior
from ncp_jax.priors.pixel_energy.settings import Settings
from ncp_jax.training import loop
from ncp_jax.training.checkpoint_records import described
from ncp_jax.training.checkpoints import fingerprint, opened
from ncp_jax.training.run_log import Progress, SilentLog

Array = jax.Array

STARTS_AT_A_TIME = 500  # chains, while a pool of starts is drawn
# Settings that a trained energy does not depend on.
OF_THE_COURSE = ("num_steps", "steps_per_dispatch")
NUM_PREPARED = 16  # training pictures: what is made of them tells `prepare` from others
NUM_KNOWN_BY = 1_000  # training pictures: their mean and std are the network's
NOT_SAID = {  # by folders of earlier versions
    "groups": (None,),
    "held_out": (None,),
    "pictures": (None,),
    "prepare": (None,),
    "structure": (None,),
}


@dataclasses.dataclass(frozen=True)
class Pool:
    """Draws of a prior that negatives start at, where those of the VAE will not do.

    Attributes:
      draw: how each group is drawn, one of `group_samplers`.
      num_starts: how many there are, drawn once.
    """

    draw: DrawGroup
    num_starts: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """How an energy is fitted, by name; its folder holds checkpoints.

    Attributes:
      name: of the stage, for its log.
      settings: of the energy and its training.
      pool: where negatives start; None for the VAE's own prior.
      prepare: (key, stored) -> pictures [B, *data_shape] that E reads, in training.
      prepare_held_out: likewise, of held-out ones.
    """

    name: str
    settings: Settings
    pool: Pool | None
    prepare: Prepare
    prepare_held_out: Prepare

    def __call__(
        self,
        prior: NCPPrior,
        train: np.ndarray,
        valid: np.ndarray,
        key: Array,
        folder: Path | None = None,
        log: Callable[[int], Progress] | None = None,
        mesh: Mesh | None = None,
    ) -> PixelEnergyPrior:
        """Returns the prior with the energy of the lowest held-out distance.

        Args:
          prior: the frozen VAE and its ratios, or none of them.
          train: [N, ...] stored pictures.
          valid: [M, ...] stored held-out pictures, of which the first are used.
          key: PRNG key; consumed here.
          folder: of checkpoints, which a stopped fit goes on from; None keeps none.
          log: makes what gets the metrics, of the first step; None for silence.
          mesh: the devices; None for all.

        Raises:
          InputError: the data are too few, or `folder` holds another fit.
          Preempted: after SIGTERM or SIGINT, once saved.
        """
        if folder is None:  # the best weights are those of a checkpoint
            with tempfile.TemporaryDirectory() as temporary:
                return self(prior, train, valid, key, Path(temporary), log, mesh)
        settings, mesh = self.settings, mesh or parallel.mesh_of()
        parallel.check_batch_size(mesh, "batch_size", settings.batch_size)
        valid = valid[: settings.num_valid]
        if len(valid) < 2:
            raise InputError(f"{len(valid)} held-out pictures judge nothing: give more")
        contrast = self._contrast(key, mesh)
        whole = self._of(prior, train)
        said = self._metadata(prior, train, valid, key)
        with opened(folder, said, NOT_SAID) as saved:
            state = jax.jit(contrast.initial)(whole, self._one(train))
            restored = saved.restore_latest(state)
            if restored is not None:
                state = restored.state
            if int(state.step) < settings.num_steps:
                starts = self._starts(whole, key)
                fixed = Fixed(whole, starts, jnp.asarray(valid))
                if restored is None:  # E = 0 is a candidate, too
                    state, metrics = jax.jit(contrast.validate)(state, fixed)
                    saved.save(0, parallel.gather(state), float(metrics["loss"]))
                with contextlib.closing(self._log(log, int(state.step))) as progress:
                    state = loop.fit(
                        contrast.task(self.name, train, fixed),
                        state,
                        saved,
                        progress,
                        num_steps=settings.num_steps,
                        steps_per_dispatch=settings.steps_per_dispatch,
                        steps_per_eval=settings.steps_per_eval,
                    )
                saved.wait()
            return self._trained(whole, saved.restore_best(state).state)

    def restored(
        self,
        prior: NCPPrior,
        train: np.ndarray,
        valid: np.ndarray,
        key: Array,
        folder: Path,
        mesh: Mesh | None = None,
    ) -> PixelEnergyPrior:
        """Returns what a fit that has ended left in its folder; arguments as above.

        Raises:
          InputError: it has not ended, or is of other settings, pictures or weights.
        """
        contrast = self._contrast(key, mesh or parallel.mesh_of())
        whole = self._of(prior, train)
        like = jax.eval_shape(partial(contrast.initial, whole), self._one(train))
        valid = valid[: self.settings.num_valid]
        said = self._metadata(prior, train, valid, key)
        with opened(folder, said, NOT_SAID) as saved:
            if (saved.latest_step() or 0) < self.settings.num_steps:
                raise InputError(
                    f"the energy {self.name!r} has not reached its "
                    f"{self.settings.num_steps} steps in {folder}: run --stage=vaebm "
                    "first"
                )
            return self._trained(whole, saved.restore_best(like).state)

    def _log(self, log: Callable[[int], Progress] | None, step: int) -> Progress:
        return log(step) if log else SilentLog()

    def _contrast(self, key: Array, mesh: Mesh) -> Contrast:
        owned = rng.stream(key, "training")
        return Contrast(self.settings, owned, self.prepare, self.prepare_held_out, mesh)

    def _one(self, train: np.ndarray) -> Array:
        return self.prepare_held_out(jax.random.key(0), jnp.asarray(train[:1]))

    def _of(self, prior: NCPPrior, train: np.ndarray) -> PixelEnergyPrior:
        """The prior with a network that knows how bright pictures are."""
        settings = self.settings
        few = self.prepare_held_out(
            jax.random.key(0), jnp.asarray(train[:NUM_KNOWN_BY])
        )
        mean, std = float(jnp.mean(few)), float(jnp.std(few))
        network = EnergyNet(
            settings.channels, settings.hidden_dims, mean, std if std > 0 else 1.0
        )
        return PixelEnergyPrior(
            prior.vae,
            prior.discriminator,
            prior.params,
            prior.groups,
            network=network,
            dynamics=Dynamics(settings.step_size, settings.num_sampling_steps),
        )

    def _trained(self, prior: PixelEnergyPrior, state: EnergyState) -> PixelEnergyPrior:
        params = jax.tree.map(jnp.asarray, state.eval_variables["params"])
        return dataclasses.replace(prior, energy_params=params)

    def _starts(self, prior: PixelEnergyPrior, key: Array) -> Array | None:
        """The joint noise of the pool's draws: [N, D]."""
        if self.pool is None:
            return None
        draw, key = self.pool.draw, rng.stream(key, "pool")

        @jax.jit
        def some(prior: PixelEnergyPrior, numbers: Array) -> Array:
            keys = jax.vmap(rng.at_step, (None, 0))(key, numbers)
            with jax.default_matmul_precision("float32"):
                latents = ancestral(prior, keys, draw).latents
            return prior.joint_noise(rng.stream(keys, "pixel noise"), latents)

        number = max(self.pool.num_starts, self.settings.num_valid)
        size = min(STARTS_AT_A_TIME, number)
        firsts = range(0, number, size)
        parts = [some(prior, first + jnp.arange(size)) for first in firsts]
        return jnp.concatenate(parts)

    def _metadata(
        self, prior: NCPPrior, train: np.ndarray, valid: np.ndarray, key: Array
    ) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        settings = dataclasses.asdict(self.settings)
        prepared = [
            prepare(jax.random.key(0), jnp.asarray(train[:NUM_PREPARED]))
            for prepare in (self.prepare, self.prepare_held_out)
        ]
        return {
            "energy": self.name,
            "settings": {
                n: repr(v) for n, v in settings.items() if n not in OF_THE_COURSE
            },
            "pool": repr(self.pool),
            "key": jax.random.key_data(key).tolist(),
            "prior": fingerprint((prior.vae, prior.params)),
            "structure": described(jax.tree.structure((prior.vae, prior.params))),
            "groups": repr(prior.groups),
            "pictures": [len(train), fingerprint(train[:NUM_KNOWN_BY])],
            "held_out": [len(valid), fingerprint(valid)],
            "prepare": fingerprint(prepared),
        }
