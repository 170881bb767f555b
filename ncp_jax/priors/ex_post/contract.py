"""What a prior over one latent vector offers, and what it is fitted to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax

from ncp_jax.models.distributions import Normal

Array = jax.Array

# What `log_prob` is: the density itself; the density times an unknown Z; the log of an
# unbiased estimate of the density, so a lower bound in expectation; nothing.
Density = Literal["exact", "up to log Z", "lower bound", "none"]


@runtime_checkable
class LatentPrior(Protocol):
    """A prior over z [D]: a pytree of its parameters with pure methods."""

    density: ClassVar[Density]

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D]; draw b depends on keys[b] alone."""
        ...

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """What is known of log p(z) for z [B, D]: [B], nats.

        Args:
          z: [B, D].
          key: PRNG key of a prior whose density is estimated; others ignore it.
        """
        ...


@runtime_checkable
class Unnormalised(LatentPrior, Protocol):
    """A prior whose `log_prob` lacks - log Z, of density "up to log Z"."""

    def log_z_weights(self, keys: Array) -> Array:
        """log of [B] independent unbiased estimates of Z, one per key; nats."""
        ...


class Encodings(NamedTuple):
    """Draws of q(z | x) of a frozen VAE, and its own prior.

    Attributes:
      train: [N, P, D] float32, P draws for each of N training examples.
      valid: [M, P', D] of examples that only choose settings and the best weights.
      base: the VAE's own prior: `sample` and an exact `log_prob`.
      posterior: q(z | x) of the training examples, mean and std [N, D]; None where the
        VAE does not say it.
    """

    train: Array
    valid: Array
    base: LatentPrior
    posterior: Normal | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how fast a prior learns; Adam(W), a cosine to zero.

    Attributes:
      num_steps: updates.
      batch_size: encodings of an update.
      learning_rate: the peak.
      weight_decay: decoupled; 0 for none.
      steps_per_eval: updates between validations, of which the best weights are kept.
    """

    num_steps: int = 10_000
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    steps_per_eval: int = 500


# (key, encodings, folder of checkpoints or None) -> prior.  Each module has one, made
# by its `Settings`, a frozen dataclass that is called so.
Fit = Callable[[Array, Encodings, Path | None], LatentPrior]
