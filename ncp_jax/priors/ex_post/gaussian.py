"""The VAE's own prior, N(mean, std^2): what every other one is compared with."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post.contract import Density, Encodings, LatentPrior

Array = jax.Array


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
        return self.mean[None] + self.std[None] * noise

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        return Normal(self.mean[None], self.std[None]).log_prob(z)


@dataclasses.dataclass(frozen=True)
class Settings:
    """There is nothing to choose."""

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> LatentPrior:
        """Returns the base prior as it is."""
        del key, folder
        return encodings.base
