"""The top-down pass of NVAE through its latent groups, whole or group by group."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models.base import GroupPrior
from ncp_jax.models.nvae.cells import DecoderCell
from ncp_jax.models.nvae.group import GroupInput, GroupOutput, LatentGroup
from ncp_jax.models.nvae.layers import CellOptions
from ncp_jax.models.nvae.layout import Layout
from ncp_jax.models.nvae.towers import stacked

Array = jax.Array
Carry = tuple[Array, ...]  # the tower, one array per scale: see `TopDown.root`


class TopDown(nn.Module):
    """The latent groups, block after block, and what leads from scale to scale.

    Attributes:
      layout: sizes and numbers of groups.
      latent_channels: channels of every z_k.
      encoder_channels: of the taps, as if at full resolution.
      decoder_channels: of the tower, as if at full resolution.
      num_cells: decoder cells per group.
      num_flows: flow cells per group.
      is_residual: posterior parameters are offsets from the prior's.
      is_rematerialized: trades compute for memory in the gradient.
      options: shared by all cells.
    """

    layout: Layout
    latent_channels: int
    encoder_channels: int
    decoder_channels: int
    num_cells: int
    num_flows: int
    is_residual: bool
    is_rematerialized: bool
    options: CellOptions

    def setup(self) -> None:
        """Builds the submodules."""
        top, *finer = (
            self._width(self.decoder_channels, scale)
            for scale in range(len(self.layout.groups_per_scale))
        )
        self.top_feature = self.param(
            "top_feature", nn.initializers.uniform(1.0), (*self.layout.size(0), top)
        )
        self.groups = [
            stacked(LatentGroup, num_groups, self.is_rematerialized)(
                **self._group_attributes(block)
            )
            for block, (_, num_groups) in enumerate(self.layout.runs)
        ]
        self.ups = [  # ups[s] leads from scale s to the finer scale s + 1
            DecoderCell(features, is_upsampling=True, options=self.options)
            for features in finer
        ]

    def _width(self, channels: int, scale: int) -> int:
        return channels * self.layout.shrinkage(scale)

    def _group_attributes(self, block: int) -> dict[str, Any]:
        scale, _ = self.layout.runs[block]
        return {
            "is_first": block == 0,
            "latent_channels": self.latent_channels,
            "encoder_features": self._width(self.encoder_channels, scale),
            "decoder_features": self._width(self.decoder_channels, scale),
            "num_cells": self.num_cells,
            "num_flows": self.num_flows,
            "is_residual": self.is_residual,
            "options": self.options,
        }

    def __call__(
        self,
        batch_size: int,
        key: Array | None,
        taps: Sequence[Array] | None,
        temperature: float | Array = 1.0,
    ) -> tuple[Array, list[GroupOutput]]:
        """One pass down the tower, through every group.

        Args:
          batch_size: number of draws.
          key: of the draws; None takes every mean instead.
          taps: the encoder's, block by block; None draws from the prior.
          temperature: factor on the prior's standard deviations.

        Returns:
          The last feature, and for each block its groups' outputs with a leading
          [num_groups].
        """
        keys = None if key is None else jax.random.split(key, len(self.layout.runs))
        feature, outputs = self._top(batch_size), []
        for block, (scale, num_groups) in enumerate(self.layout.runs):
            if scale > self.layout.runs[max(block - 1, 0)][0]:
                feature = self.ups[scale - 1](feature)
            inputs = GroupInput(
                tap=None if taps is None else taps[block],
                key=None if keys is None else jax.random.split(keys[block], num_groups),
                temperature=jnp.full(num_groups, temperature, jnp.float32),
            )
            feature, output = self.groups[block](feature, inputs)
            outputs.append(output)
        return feature, outputs

    def _top(self, batch_size: int) -> Array:
        feature = self.top_feature.astype(self.options.dtype)[None]
        feature = jnp.broadcast_to(feature, (batch_size, *feature.shape[1:]))
        return self._per_device(feature)

    def _per_device(self, feature: Array) -> Array:
        """Types a feature as differing between devices, as what it is scanned with."""
        axis_name = self.options.axis_name
        if axis_name is None or self.is_initializing():
            return feature
        return jax.lax.pcast(feature, axis_name, to="varying")

    def root(self, batch_size: int) -> Carry:
        """The learned top feature, and zeros for the finer scales.

        The carry holds the tower of every scale, so that its shapes never change and
        `absorb` can cross from one scale to the next inside a scan: before group k of
        a block, the entry of that block's scale is the context of group k.
        """
        carry = [self._top(batch_size)]
        for scale in range(1, len(self.layout.groups_per_scale)):
            width = self._width(self.decoder_channels, scale)
            shape = (batch_size, *self.layout.size(scale), width)
            carry.append(self._per_device(jnp.zeros(shape, self.options.dtype)))
        return tuple(carry)

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """p(z_k | z_<k), and the tower just before its head as context."""
        context = carry[self.layout.runs[block][0]]
        base = self._pure_group(block)(k, "prior", context)
        return GroupPrior(base, context.astype(jnp.float32))

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state after z_k is known: that before the next group."""
        scale, num_groups = self.layout.runs[block]
        group = self._pure_group(block)
        feature = group(k, "absorb", carry[scale], z_k)
        enter_next = self._entrance(block + 1)

        def advance() -> Carry:
            return _replaced(carry, scale, group(k + 1, "advance", feature))

        def leave() -> Carry:
            next_scale, context = enter_next(feature)
            return _replaced(carry, next_scale, context)

        if num_groups == 1:
            return leave()
        if isinstance(k, int):
            return advance() if k < num_groups - 1 else leave()
        # Checkpointed: the gradient of a scan would otherwise store what `leave`
        # computes once for every k.
        return jax.lax.cond(k < num_groups - 1, advance, jax.checkpoint(leave))

    def _pure_group(self, block: int) -> Callable[..., Any]:
        """Returns f(k, method, *args), which runs a method of one group of a block.

        Pure, because neither a traced k nor `lax.cond` can enter a bound module.
        """
        module = LatentGroup(**self._group_attributes(block), parent=None)
        stack = self.groups[block].variables

        def run(k: Array | int, method: str, *args: Array) -> Any:
            variables = jax.tree.map(lambda leaf: leaf[k], stack)
            return module.apply(variables, *args, method=method)

        return run

    def _entrance(self, block: int) -> Callable[[Array], tuple[int, Array]]:
        """Returns f(feature), which takes a finished block's tower into `block`.

        f gives the scale and the context of its first group; past the last block it is
        the identity, for `decode`.
        """
        scale, _ = self.layout.runs[min(block, len(self.layout.runs) - 1)]
        if block == len(self.layout.runs):
            return lambda feature: (scale, feature)
        group = self._pure_group(block)
        if scale == self.layout.runs[block - 1][0]:
            return lambda feature: (scale, group(0, "advance", feature))
        up, variables = self.ups[scale - 1].unbind()

        def rise(feature: Array) -> tuple[int, Array]:
            return scale, group(0, "advance", up.apply(variables, feature))

        return rise


def _replaced(carry: Carry, scale: int, feature: Array) -> Carry:
    return (*carry[:scale], feature, *carry[scale + 1 :])
