"""A hierarchical VAE in standardised noise, whose discriminators know its directions.

`signal_space` shows a VAE in the coordinates u of its signal directions, and ratios
then read nothing else.  Here the latents are the whole of e_k, group by group, so that
a ratio may read more: the decoder's feature of p(z_k | z_<k), or the map e_k itself
(`models.direction_discriminator`).  The price is the decoder between the groups.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.base import Block, GroupPrior, LatentVariableModel
from ncp_jax.models.direction_discriminator import ONTO_DIRECTIONS, ONTO_FEATURES
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.standardized import StandardizedCarry, StandardizedVAE

Array = jax.Array
PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DirectedVAE(StandardizedVAE):
    """A VAE in e_k, with the directions of every group for its discriminator.

    Attributes:
      vae: the model; its base priors are `Normal`.
      directions: U_k of its groups; P_k of their features, where these are read.
      num_directions: m that discriminators are made for; as many as U_k has, or more.
      has_context: whether r_k reads the decoder's feature.
    """

    directions: Directions
    num_directions: int = dataclasses.field(metadata={"static": True})
    has_context: bool = dataclasses.field(default=True, metadata={"static": True})

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The VAE's own groups, with its contexts if they are read."""
        blocks = self.vae.blocks
        if self.has_context:
            return blocks
        return tuple(block._replace(context_shape=(0,)) for block in blocks)

    def prior(self, block: int, k: Array | int, carry: StandardizedCarry) -> GroupPrior:
        """N(0, 1), and the VAE's own context if it is read."""
        prior = super().prior(block, k, carry)
        if self.has_context:
            return prior
        return prior._replace(context=jnp.zeros((prior.context.shape[0], 0)))

    @property
    def constants(self) -> tuple[dict[str, PyTree], ...]:
        """What discriminators are given, per block [num_groups, ...]."""
        found = self.directions
        missing = self.num_directions - found.num_directions
        shifts = tuple(
            jnp.zeros((len(basis), self.num_directions)) for basis in found.basis
        )
        bases = tuple(
            jnp.pad(basis, ((0, 0), (0, 0), (0, missing))) for basis in found.basis
        )
        per_block = [
            {ONTO_DIRECTIONS: {"basis": basis, "shift": shift}}
            for basis, shift in zip(bases, shifts, strict=True)
        ]
        for b, block in enumerate(self.blocks):
            if np.prod(block.context_shape):
                per_block[b][ONTO_FEATURES] = {
                    "basis": found.feature_basis[b],
                    "shift": found.feature_shift[b],
                }
        return tuple(per_block)

    def chosen(self, groups: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Those of some groups, None for all, that have a direction; None for all K."""
        return self.directions.chosen(groups)


def constants_of(model: LatentVariableModel) -> tuple[dict[str, PyTree], ...]:
    """Returns the parameters that discriminators of a model are given, not taught.

    Args:
      model: a VAE or a view of one.

    Returns:
      Per block, arrays [num_groups, ...] in the place that they have among the
      discriminator's parameters; nothing for most models.
    """
    found: Any = getattr(model, "constants", None)
    return tuple({} for _ in model.blocks) if found is None else found
