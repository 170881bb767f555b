"""A base prior that is the same for all of a batch, such as one that a network holds.

The arrays of other base priors lead with the batch, so that every example has its own.
A learned prior over one vector would hold its weights once for each example that way;
`Shared` holds them once, and the functions here treat both kinds alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ncp_jax.models.distributions import Distribution

Array = jax.Array
PyTree = Any


class OverVectors(Protocol):
    """A distribution of vectors, as `priors.ex_post` has them."""

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""
        ...

    def log_prob(self, z: Array) -> Array:
        """Log density of z [B, D]: [B], nats."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """One distribution for all of a batch.

    Attributes:
      one: the distribution, a pytree whose arrays do not lead with the batch.
      rows: [B, 0], which says how large the batch is, and nothing else.
    """

    one: Any  # an `OverVectors`
    rows: Array

    @classmethod
    def of(cls, one: OverVectors, batch_size: int) -> "Shared":
        """The same for a batch of this size."""
        return cls(one, jnp.zeros((batch_size, 0)))

    def sample(self, key: Array) -> Array:
        """One independent draw each: [B, D]."""
        return self.one.sample(jax.random.split(key, len(self.rows)))

    def log_prob(self, value: Array) -> Array:
        """Log density of `value` [B, D]: [B], nats."""
        return self.one.log_prob(value)


def of_batch(base: Distribution) -> PyTree:
    """The part of a base prior whose arrays lead with the batch."""
    return base.rows if isinstance(base, Shared) else base


def map_batch(change: Callable[[Array], Array], base: Any) -> Any:
    """The same base prior with another batch.

    Args:
      change: an array that leads with the batch -> the array of the new batch.
      base: of any kind.
    """
    if isinstance(base, Shared):
        return dataclasses.replace(base, rows=change(base.rows))
    return jax.tree.map(change, base)


def sample_each(keys: Array, base: Distribution) -> Array:
    """One draw per chain, chain b from keys[b] alone: [B, *latent_shape]."""
    if isinstance(base, Shared):
        return base.one.sample(keys)

    def draw(chain_key: Array, one: Distribution) -> Array:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], one)
        return batch_of_one.sample(chain_key)[0]

    return jax.vmap(draw)(keys, base)
