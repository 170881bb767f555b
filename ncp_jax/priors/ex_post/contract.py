"""What a prior over one latent vector offers, and what it is fitted to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.distributions import Normal

Array = jax.Array

PARTS = ("base", "first", "second")  # fields of a `Fit` that hold another `Fit`
BASE_BATCH_SIZE = 10_000  # draws of a base that are weighed at a time

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


def with_base(
    base: Fit | None, key: Array, encodings: Encodings, folder: Path | None
) -> Encodings:
    """The encodings with the base prior that another one is to reweight.

    Args:
      base: fits it first; None for the VAE's own.
      key: PRNG key of the whole fit; a stream of it is used here.
      encodings: what it is fitted to.
      folder: of the whole fit; None keeps no checkpoints.

    Raises:
      InputError: its density is not exact.
    """
    if base is not None:
        at = folder / "base" if folder else None
        encodings = encodings._replace(
            base=base(rng.stream(key, "base"), encodings, at)
        )
    check_exact(encodings.base, "be reweighted")
    return encodings


def check_exact(prior: LatentPrior, purpose: str) -> None:
    """Refuses a prior whose density is not known exactly.

    Args:
      prior: to be used.
      purpose: what only a known one can, as the end of a sentence.

    Raises:
      InputError: it is another one.
    """
    if prior.density != "exact":
        raise InputError(
            f"the density of {type(prior).__name__} is {prior.density!r}; only an "
            f"exact one can {purpose}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a setting that is none of its choices.

    Raises:
      InputError: it is another one.
    """
    if value not in choices:
        raise InputError(f"{name} is one of {choices}, got {value!r}")


@jax.default_matmul_precision("float32")  # TF32 would move log Z
def over_base(
    base: LatentPrior, log_r: Callable[[Array], Array], key: Array, num_draws: int
) -> Array:
    """log r of draws from the base prior, which are made in batches and forgotten.

    Args:
      base: the prior.
      log_r: z [B, D] -> [B], nats.
      key: PRNG key; consumed here.
      num_draws: rounded up to whole batches.

    Returns:
      [num_draws] nats; exp of the log of their mean is unbiased for Z.
    """
    size = min(BASE_BATCH_SIZE, num_draws)

    def weigh(first: Array) -> Array:
        keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(size))
        return log_r(base.sample(keys))

    starts = jnp.arange(0, num_draws, size)
    return jax.lax.map(weigh, starts).reshape(-1)
