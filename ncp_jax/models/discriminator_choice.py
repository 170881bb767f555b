"""Which discriminator suits the groups of a VAE, where nobody says."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from ncp_jax.models.base import Block
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import ResidualDiscriminator

Array = jax.Array

HIDDEN_DIMS, ACTIVATION = (200, 200), "swish"
CHANNELS, MAX_REDUCTIONS = 32, 3


class MixedDiscriminator(nn.Module):
    """A network for groups that are maps and another for all others.

    Attributes:
      of_maps: reads z [B, H, W, C] whose context is a map of that height and width, or
        empty.
      of_vectors: reads the others, flattened.
      map_contexts: shapes of the contexts that `of_maps` reads.
    """

    of_maps: nn.Module
    of_vectors: nn.Module
    map_contexts: tuple[tuple[int, ...], ...] = ()

    def __call__(self, z: Array, context: Array) -> Array:
        """Maps z [B, *latent_shape] and context [B, *context_shape] to log r_k [B]."""
        return self.log_ratio(z, self.embed(context))

    def embed(self, context: Array) -> Array:
        """What its network makes of a context; an empty one stays as it is, [B, 0]."""
        if not context.size:
            return context  # nothing to read, and z alone says who reads it
        is_map = context.shape[1:] in self.map_contexts
        network: Any = self.of_maps if is_map else self.of_vectors
        return network.embed(context)

    def log_ratio(self, z: Array, feature: Array) -> Array:
        """Maps z [B, *latent_shape] and its context's feature to log r_k [B]."""
        is_map = z.ndim == 4 and (not feature.size or feature.ndim == 4)
        network: Any = self.of_maps if is_map else self.of_vectors
        return network.log_ratio(z, feature if feature.size else network.embed(feature))


def discriminator_for(blocks: Sequence[Block]) -> nn.Module:
    """Returns a network that reads the groups of all blocks.

    Maps get a `ResidualDiscriminator` that halves them one to three times: the largest
    one to about 4x4.  Everything else gets an `MLPDiscriminator`.

    Args:
      blocks: of a `LatentVariableModel`.
    """
    are_maps = [_is_map(block) for block in blocks]
    sides = [
        max(block.latent_shape[:2])
        for block, is_map in zip(blocks, are_maps, strict=True)
        if is_map
    ]
    vectors = MLPDiscriminator(HIDDEN_DIMS, ACTIVATION)
    if not sides:
        return vectors
    num_reductions = min(max((max(sides) - 1).bit_length() - 2, 1), MAX_REDUCTIONS)
    maps = ResidualDiscriminator(CHANNELS, num_reductions * "AB")
    if all(are_maps):
        return maps
    of_maps, of_vectors = (
        {
            tuple(block.context_shape)
            for block, is_map in zip(blocks, are_maps, strict=True)
            if is_map == kind
        }
        for kind in (True, False)
    )
    return MixedDiscriminator(maps, vectors, tuple(sorted(of_maps - of_vectors)))


def _is_map(block: Block) -> bool:
    """Whether z is a map, and its context one of the same size, or empty."""
    _, latent, context = block
    has_fit = len(context) == 3 and tuple(context[:2]) == tuple(latent[:2])
    return len(latent) == 3 and (has_fit or 0 in context)
