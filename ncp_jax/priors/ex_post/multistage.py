"""Noise contrastive estimation in stages: p r_1 .. r_s is the next stage's noise.

Xiao and Han, "Adaptive multi-stage density ratio estimation for learning latent space
energy-based model" (2022).  Each r_s has less to tell apart than one r in one go.  On
frozen encodings draws of p r_1 .. r_s are chosen among many draws of p.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.priors.ex_post import fitting, ncp
from ncp_jax.priors.ex_post.contract import (
    BASE_BATCH_SIZE,
    Density,
    Encodings,
    Fit,
    over_base,
    with_base,
)
from ncp_jax.priors.ex_post.ncp import Reweighted, Sampling
from ncp_jax.training.checkpoints import identity_of

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
    """Draws z [N, D] of some prior, to draw from again."""

    density: ClassVar[Density] = "none"

    draws: Array

    def sample(self, keys: Array) -> Array:
        """One row per key: [B, D]."""
        rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.draws)))
        return self.draws[rows(keys)]

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """Nobody knows."""
        raise NotImplementedError("a pool of draws has no density")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the stages learn.

    Attributes:
      base: the prior that is reweighted, fitted first; None for the VAE's own.
      num_stages: S.
      stage: the loss, the network and the training of every stage; its base and
        sampling do not count.
      num_proposals: base draws that a stage's pool is chosen from, with probability
        proportional to r_1 .. r_(s-1).
      num_draws: of the pool that updates draw their negatives from, and of another one
        that scores the gain.
      num_mala_steps: that move a pool on, so that it does not hold a draw twice; 0 for
        none.
      sampling: how draws are made in the end.
    """

    base: Fit | None = None
    num_stages: int = 3
    stage: ncp.Settings = dataclasses.field(default=ncp.Settings())
    num_proposals: int = 1_000_000
    num_draws: int = 100_000
    num_mala_steps: int = 20
    sampling: Sampling = dataclasses.field(default=Sampling())

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Reweighted:
        """Returns the prior with the product of all r_s."""
        encodings = with_base(self.base, key, encodings, folder)
        moves = Sampling("mala", num_steps=self.num_mala_steps)
        prior = Reweighted(encodings.base, (), self.stage.network, moves)
        for s in range(self.num_stages):
            stage_key = rng.at_step(rng.stream(key, "stages"), s)
            place = folder / f"stage-{s + 1}" if folder else None
            noise = held_out = encodings.base
            if s:
                noise, held_out = (
                    self.pool(
                        rng.stream(stage_key, name),
                        prior,
                        place.with_name(f"{place.name}-{name}") if place else None,
                    )
                    for name in ("pool", "held out")
                )
            params = ncp.contrast(
                self.stage,
                rng.stream(stage_key, "contrast"),
                encodings._replace(base=noise),
                held_out,
                place,
            )
            prior = dataclasses.replace(prior, params=(*prior.params, params))
        return dataclasses.replace(prior, sampling=self.sampling)

    def pool(self, key: Array, prior: Reweighted, folder: Path | None = None) -> Pool:
        """Draws of `prior`, chosen among `num_proposals` of its base.

        They are taken at equal steps along the sum of the weights: a proposal is there
        as often as its weight says, but for rounding.  With fewer threads the weights
        may round otherwise, so that a stage which was stopped needs the pool of then.

        Args:
          key: PRNG key; consumed here.
          prior: of the stages so far.
          folder: that keeps the draws; None keeps none.
        """
        metadata = {
            "pool": [self.num_proposals, self.num_draws, self.num_mala_steps],
            "key": jax.random.key_data(key).tolist(),
            "prior": identity_of(prior),
        }

        def make() -> dict[str, Array]:
            return {"draws": self._draws(key, prior)}

        one = jax.eval_shape(prior.base.sample, key[None])
        like = {
            "draws": jax.ShapeDtypeStruct((self.num_draws, *one.shape[1:]), one.dtype)
        }
        return Pool(**fitting.kept(make, like, metadata, folder))

    def _draws(self, key: Array, prior: Reweighted) -> Array:
        """The draws of a pool: [N, D]."""
        proposal_key = rng.stream(key, "proposals")
        log_w = over_base(prior.base, prior.log_r, proposal_key, self.num_proposals)
        # A float32 sum of 10^6 weights would lose some of them.
        sums = np.cumsum(np.asarray(jax.nn.softmax(log_w), np.float64))
        offset = float(jax.random.uniform(rng.stream(key, "places")))
        places = (np.arange(self.num_draws) + offset) / self.num_draws
        chosen = jnp.asarray(np.searchsorted(sums / sums[-1], places), jnp.int32)
        draws = jax.lax.map(
            lambda i: prior.base.sample(rng.at_step(proposal_key, i)[None])[0],
            chosen,
            batch_size=min(BASE_BATCH_SIZE, self.num_draws),
        )
        if self.num_mala_steps:
            keys = jax.random.split(rng.stream(key, "moves"), self.num_draws)
            draws = prior.mala(keys, draws)
        return draws
