"""How many latent groups NVAE has at which resolution; scales count coarse to fine."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.base import Block

Array = jax.Array


def groups_per_scale(
    num_scales: int, num_groups: int, is_adaptive: bool, min_groups: int = 1
) -> tuple[int, ...]:
    """Returns the number of groups of each scale, coarse to fine.

    Args:
      num_scales: number of resolutions with latent groups.
      num_groups: groups of the finest scale.
      is_adaptive: every coarser scale has half as many, rather than as many.
      min_groups: which no scale goes below when adaptive.
    """
    groups = [num_groups]
    for _ in range(num_scales - 1):
        halved = max(min_groups, groups[-1] // 2)
        groups.append(halved if is_adaptive else num_groups)
    return tuple(reversed(groups))


class Layout(NamedTuple):
    """The sizes that follow from a picture's and from the number of halvings.

    Attributes:
      data_shape: (height, width, channels) of x.
      padding: zero pixels added on every side of x.
      num_halvings: from x to the finest scale of latents.
      groups_per_scale: coarse to fine.
    """

    data_shape: tuple[int, int, int]
    padding: int
    num_halvings: int
    groups_per_scale: tuple[int, ...]

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(scale, number of groups) of each block; the first group is its own."""
        top, *finer = self.groups_per_scale
        runs = [(0, 1), (0, top - 1), *enumerate(finer, start=1)]
        return tuple(run for run in runs if run[1])

    def check(self) -> None:
        """Raises `InputError` for a picture that cannot be halved so often."""
        sides = [n + 2 * self.padding for n in self.data_shape[:2]]
        if any(n % self.shrinkage(0) for n in sides):
            raise InputError(
                f"the padded sides {sides} of a picture are not multiples of "
                f"{self.shrinkage(0)}, which the numbers of scales "
                f"({len(self.groups_per_scale)}) and of preprocessing blocks "
                f"({self.num_halvings}) ask for"
            )

    def shrinkage(self, scale: int) -> int:
        """How many times smaller than x the latents of a scale are."""
        return 2 ** (self.num_halvings + len(self.groups_per_scale) - 1 - scale)

    def size(self, scale: int) -> tuple[int, int]:
        """Height and width of the latents of a scale."""
        height, width = (n + 2 * self.padding for n in self.data_shape[:2])
        return height // self.shrinkage(scale), width // self.shrinkage(scale)

    def blocks(self, latent_channels: int, decoder_channels: int) -> tuple[Block, ...]:
        """The blocks whose tower has so many channels at the resolution of x."""
        blocks = []
        for scale, num_groups in self.runs:
            size, width = self.size(scale), decoder_channels * self.shrinkage(scale)
            block = Block(num_groups, (*size, latent_channels), (*size, width))
            blocks.append(block)
        return tuple(blocks)

    def by_block(self, of_scales: Sequence[Array]) -> list[Array]:
        """Splits [num_groups, ...] of each scale into that of each block."""
        top, *finer = of_scales
        blocks = (top[:1], top[1:], *finer)
        return [block for block in blocks if block.shape[0]]

    def padded(self, x: Array) -> Array:
        """Pads [B, *data_shape]; a padded x passes as it is."""
        if self.padding == 0 or x.shape[1:] != self.data_shape:
            return x
        pad = (self.padding, self.padding)
        return jnp.pad(x, ((0, 0), pad, pad, (0, 0)))

    def cropped(self, x: Array) -> Array:
        """Undoes `padded`; an unpadded x passes as it is."""
        if self.padding == 0 or x.shape[1:3] == self.data_shape[:2]:
            return x
        inner = slice(self.padding, -self.padding)
        return x[:, inner, inner]
