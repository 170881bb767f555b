"""Volume-preserving normalising-flow cells for NVAE's posterior (its Sec. 3.4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.nvae.layers import Conv

Array = jax.Array

HIDDEN_PER_CHANNEL = 6
SHIFT_INIT_SCALE = 0.1  # so that the initial flow is near the identity


class ShiftCell(nn.Module):
    """z - mu(z), where mu at a pixel and channel reads only those before it.

    Pixels are ordered by rows and channels inside a pixel, so the Jacobian is
    triangular with a unit diagonal: log |det| = 0.

    Attributes:
      is_reversed: reads those after it instead.
      dtype: of the convolutions; z itself keeps its own.
    """

    is_reversed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, H, W, C] to the same shape."""
        channels = z.shape[-1]
        hidden = HIDDEN_PER_CHANNEL * channels
        mask = causal_mask(3, channels, hidden, channels, True, self.is_reversed)
        h = Conv(hidden, 3, use_bias=False, mask=mask, dtype=self.dtype)(z)
        mask = causal_mask(5, 1, hidden, 1, False, self.is_reversed)
        h = Conv(hidden, 5, groups=hidden, use_bias=False, mask=mask, dtype=self.dtype)(
            nn.elu(h)
        )
        mask = causal_mask(1, hidden, channels, channels, False, self.is_reversed)
        shift = Conv(
            channels, mask=mask, norm_init_scale=SHIFT_INIT_SCALE, dtype=self.dtype
        )(nn.elu(nn.elu(h)))
        return z - shift.astype(z.dtype)


class FlowCell(nn.Module):
    """Two `ShiftCell`s in opposite orders, so every value may depend on every other."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, H, W, C] to the same shape, with log |det| = 0."""
        z = ShiftCell(is_reversed=False, dtype=self.dtype)(z)
        return ShiftCell(is_reversed=True, dtype=self.dtype)(z)


def causal_mask(
    size: int,
    num_in: int,
    num_out: int,
    num_channels: int,
    is_strict: bool,
    is_reversed: bool,
) -> np.ndarray:
    """Mask of a kernel that keeps the raster and channel order of z.

    Args:
      size: height and width of the kernel.
      num_in: input channels of the kernel, in `num_channels` equal runs.
      num_out: output channels, in as many runs.
      num_channels: channels of z; 1 for a depthwise kernel, whose channels do not mix.
      is_strict: whether an output may not see its own channel at its own pixel.
      is_reversed: whether outputs see later values rather than earlier ones.

    Returns:
      [size, size, num_in, num_out] float32 of zeros and ones.
    """
    of_input = np.arange(num_in) * num_channels // num_in
    of_output = np.arange(num_out) * num_channels // num_out
    channels = of_input[:, None] - of_output[None]  # [num_in, num_out]
    position = np.arange(size * size) - size * size // 2  # 0 at the centre
    before = (position > 0) if is_reversed else (position < 0)
    mask = np.zeros((size * size, num_in, num_out), np.float32)
    mask[before] = 1.0
    mask[size * size // 2] = (channels < 0) if is_strict else (channels <= 0)
    return mask.reshape(size, size, num_in, num_out)
