"""Sampled with self-normalised importance weights: SNIS (Lawson et al., 2019).

The prior is what its sampler draws: one of K draws of p, chosen with probability
proportional to r.  Its density is bounded, and capped at K times that of p.  On frozen
encodings the bound is the ranking loss (Ma and Collins, 2018).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post.contract import (
    Density,
    Encodings,
    Fit,
    LatentPrior,
    Training,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import minimise
from ncp_jax.priors.ex_post.ncp import resampled
from ncp_jax.samplers.resampling import log_mean_exp
from ncp_jax.training.loop import PyTree
from ncp_jax.training.ncp.nce import ranking_losses

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SNIS:
    """What resampling one of K draws of p follows.

    Attributes:
      base: p, of exact density.
      params: of log r.
      network: of log r.
      num_proposals: K, 2 or more.
      num_sets: of K - 1 draws of p, which `log_prob` averages over.
    """

    density: ClassVar[Density] = "lower bound"

    base: LatentPrior
    params: PyTree
    network: RatioMLP = dataclasses.field(metadata={"static": True})
    num_proposals: int = dataclasses.field(default=1_024, metadata={"static": True})
    num_sets: int = dataclasses.field(default=16, metadata={"static": True})

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log of an unbiased estimate of p(z), of z [B, D]: [B], nats.

        E[p(z) r(z) / ((r(z) + sum_k r(z_k)) / K)] over K - 1 draws z_k of p.

        Args:
          z: [B, D].
          key: PRNG key of z_k, which all z share; consumed here.
        """
        if key is None:
            raise ValueError("the density of SNIS is estimated, which needs a key")
        return self.base.log_prob(z) + self.excess(z, key)

    def excess(self, z: Array, key: Array) -> Array:
        """The same without log p: [B], nats; with one set, minus the ranking losses."""
        num_draws = self.num_sets * (self.num_proposals - 1)
        proposals = self.base.sample(jax.random.split(key, num_draws))
        log_r = self.network.log_r(self.params, jnp.concatenate([z, proposals]))
        losses = jax.lax.map(
            lambda of_set: ranking_losses(log_r[: len(z)], of_set, is_shared=True),
            log_r[len(z) :].reshape(self.num_sets, -1),
        )
        return log_mean_exp(-losses)

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, of just this density."""
        log_r = partial(self.network.log_r, self.params)
        return resampled(keys, self.base, log_r, self.num_proposals)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How SNIS learns.

    Attributes:
      base: the prior that is resampled, fitted first; None for the VAE's own.
      hidden_dims: widths of the ratio's hidden layers.
      activation: name of a function in `jax.nn`.
      num_proposals: K, in every update and of the sampler.
      training: how long and how fast.
    """

    base: Fit | None = None
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    num_proposals: int = 1_024
    training: Training = dataclasses.field(default=Training())

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> SNIS:
        """Returns the prior with the highest held-out bound."""
        encodings = with_base(self.base, key, encodings, folder)
        network = RatioMLP(self.hidden_dims, self.activation)

        def loss(params: PyTree, z: Array, key: Array, base: LatentPrior) -> Array:
            prior = SNIS(base, params, network, self.num_proposals, num_sets=1)
            return -jnp.mean(prior.excess(z, key))

        params = minimise(
            "snis",
            loss,
            network.start(rng.stream(key, "start"), encodings.train.shape[-1]),
            encodings,
            self.training,
            key,
            folder,
            fixed=(encodings.base,),
            settings=dataclasses.replace(self, base=None),
        )
        return SNIS(encodings.base, params, network, self.num_proposals)
