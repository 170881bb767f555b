"""The VAE's own prior, N(mean, std^2): what every other one is compared with."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post.contract import Density, Encodings, LatentPrior

Array = jax.Array

MIN_STD = 1e-5  # of dimensions that say nothing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A diagonal normal.

    Attributes:
      mean: [D].
      std: [D].
    """

    density: ClassVar[Density] = "exact"

    mean: Array
    std: Array

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""
        noise = jax.vmap(lambda key: jax.random.normal(key, self.mean.shape))(keys)
        return self.colour(noise)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        return Normal(self.mean[None], self.std[None]).log_prob(z)

    def whiten(self, z: Array) -> Array:
        """The noise e [B, D] that z [B, D] was made of."""
        return (z - self.mean[None]) / self.std[None]

    def colour(self, e: Array) -> Array:
        """Undoes `whiten`: [B, D]."""
        return self.mean[None] + self.std[None] * e

    def log_volume(self) -> Array:
        """[] nats: log p(z) = log p(e) - this."""
        return jnp.sum(jnp.log(self.std))


def standard(dim: int) -> Gaussian:
    """N(0, I) over z [B, dim]."""
    return Gaussian(jnp.zeros(dim), jnp.ones(dim))


def matched(encodings: Encodings) -> Gaussian:
    """The diagonal normal with the moments of the training encodings.

    `flow`, `autoregressive`, `two_stage` and `diffusion` are densities of e =
    `whiten(z)`, so that what they start from is this one whatever the scale of the
    encodings.  Ratios and mixtures see z as it is, since p = N(0, I) has scale 1.
    """
    return _moments(encodings.train.reshape(-1, encodings.train.shape[-1]))


@jax.jit
def _moments(z: Array) -> Gaussian:
    return Gaussian(jnp.mean(z, axis=0), jnp.maximum(jnp.std(z, axis=0), MIN_STD))


@dataclasses.dataclass(frozen=True)
class Settings:
    """There is nothing to choose."""

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> LatentPrior:
        """Returns the base prior as it is."""
        del key, folder
        return encodings.base
