"""The parts of NVAE around its latent groups: picture to taps, feature to picture."""

import flax.linen as nn
import jax

from ncp_jax.models.nvae.cells import DecoderCell, EncoderCell
from ncp_jax.models.nvae.layers import CellOptions, Conv

Array = jax.Array

POSTPROCESS_EXPANSION = 3


def stacked(
    body: type[nn.Module], num_groups: int, is_rematerialized: bool
) -> type[nn.Module]:
    """The scan of a module over groups: its variables lead with [num_groups]."""
    if is_rematerialized:
        body = nn.remat(body, prevent_cse=False)
    return nn.scan(
        body,
        variable_axes={"params": 0, "batch_stats": 0, "kernels": 0},
        split_rngs={"params": True},
        length=num_groups,
        check_constancy_invariants=False,  # the check traces the body once more
    )


class EncoderGroup(nn.Module):
    """The encoder's cells of one group; a body for `stacked`."""

    num_cells: int
    options: CellOptions

    @nn.compact
    def __call__(self, h: Array, unused: None) -> tuple[Array, Array]:
        """Maps [B, H, W, C] to the same shape, returned as carry and as tap."""
        del unused
        for _ in range(self.num_cells):
            h = EncoderCell(h.shape[-1], options=self.options)(h)
        return h, h


class Encoder(nn.Module):
    """The bottom-up pass: a tap for every latent group.

    Attributes:
      channels: after the stem; they double wherever the resolution halves.
      num_blocks: halvings before the finest latent scale.
      cells_per_block: of these, the last one halving.
      groups_per_scale: number of taps of each scale, coarse to fine.
      cells_per_group: between taps.
      is_rematerialized: trades compute for memory in the gradient.
      options: shared by all cells.
    """

    channels: int
    num_blocks: int
    cells_per_block: int
    groups_per_scale: tuple[int, ...]
    cells_per_group: int
    is_rematerialized: bool
    options: CellOptions

    def setup(self) -> None:
        """Builds the submodules."""
        scales = range(len(self.groups_per_scale))
        self.stem = Conv(self.channels, 3, dtype=self.options.dtype)
        self.preprocess = [
            self._cell(block, is_down=cell == self.cells_per_block - 1)
            for block in range(self.num_blocks)
            for cell in range(self.cells_per_block)
        ]
        self.groups = [
            stacked(EncoderGroup, self.groups_per_scale[scale], self.is_rematerialized)(
                self.cells_per_group, self.options
            )
            for scale in scales
        ]
        # downs[s] leads from scale s + 1 to the coarser scale s.
        self.downs = [
            self._cell(self.num_blocks + len(scales) - 2 - scale, is_down=True)
            for scale in scales[:-1]
        ]

    def _cell(self, num_halvings: int, is_down: bool) -> EncoderCell:
        """A cell whose input has been halved `num_halvings` times."""
        features = self.channels * 2 ** (num_halvings + is_down)
        return EncoderCell(features, 1 + is_down, self.options)

    def __call__(self, x: Array) -> list[Array]:
        """Maps x [B, H, W, C] in [0, 1] to the taps in the decoder's order.

        Returns:
          [num_groups, B, h, w, c] of each scale, coarse to fine.
        """
        h = self.stem(2.0 * x - 1.0)
        for cell in self.preprocess:
            h = cell(h)
        taps: list[Array] = []
        for scale in reversed(range(len(self.groups))):
            if taps:
                h = self.downs[scale](h)
            h, of_scale = self.groups[scale](h, None)
            taps.insert(0, of_scale[::-1])
        return taps


class PixelDecoder(nn.Module):
    """The way from the finest latent scale to the parameters of p(x | z).

    Attributes:
      num_outputs: parameters per pixel.
      channels: before the head; twice as many before every doubling.
      num_blocks: doublings of the resolution.
      cells_per_block: of these, the first one doubling.
      options: shared by all cells.
    """

    num_outputs: int
    channels: int
    num_blocks: int
    cells_per_block: int
    options: CellOptions

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, h, w, c] to [B, H, W, num_outputs]."""
        index = 0
        for block in reversed(range(self.num_blocks)):
            for cell in range(self.cells_per_block):
                h = DecoderCell(
                    self.channels * 2**block,
                    POSTPROCESS_EXPANSION,
                    cell == 0,
                    self.options,
                    name=f"postprocess_{index}",
                )(h)
                index += 1
        head = Conv(self.num_outputs, 3, dtype=self.options.dtype, name="head")
        return head(nn.elu(h))
