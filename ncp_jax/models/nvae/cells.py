"""Residual cells of NVAE (Vahdat & Kautz, 2020, Sec. 3.1), NHWC."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.nvae.layers import BatchNorm, CellOptions, Conv
from ncp_jax.models.squeeze_excite import SqueezeExcite

Array = jax.Array

RESIDUAL_SCALE = 0.1


class DownSkip(nn.Module):
    """Swish, then four strided 1x1 convolutions, each on its own pixel of 2x2."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H/2, W/2, features]."""
        x = nn.swish(x)
        parts = [
            Conv(self.features // 4, dtype=self.dtype)(x[:, row::2, column::2])
            for row, column in ((0, 0), (1, 1), (0, 1), (1, 0))
        ]
        return jnp.concatenate(parts, axis=-1)


def upsample_nearest(x: Array) -> Array:
    """Repeats every pixel of [B, H, W, C] twice along both axes."""
    batch_size, height, width, channels = x.shape
    # Not `jnp.repeat`, whose gradient is a scatter: slow on CPUs.
    twice = (batch_size, height, 2, width, 2, channels)
    spread = jnp.broadcast_to(x[:, :, None, :, None], twice)
    return spread.reshape(batch_size, 2 * height, 2 * width, channels)


def upsample_bilinear(x: Array) -> Array:
    """Doubles height and width of [B, H, W, C]; corner pixels keep their places."""
    rows, columns = (_interpolation(n).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _interpolation(size: int) -> Array:
    """Weights [2 size, size] of linear interpolation with aligned corners."""
    position = np.linspace(0.0, size - 1.0, 2 * size)
    weights = 1.0 - np.abs(position[:, None] - np.arange(size)[None])
    return jnp.asarray(np.maximum(weights, 0.0), jnp.float32)


class EncoderCell(nn.Module):
    """skip(x) + 0.1 SE(two times [BN, Swish, 3x3 convolution]).

    Attributes:
      features: output channels.
      stride: 2 halves height and width.
      options: shared by all cells.
    """

    features: int
    stride: int = 1
    options: CellOptions = CellOptions()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H/stride, W/stride, features]."""
        dtype = self.options.dtype
        h = x
        for stride in (self.stride, 1):
            h = nn.swish(BatchNorm(self.options)(h))
            h = Conv(self.features, 3, stride, dtype=dtype)(h)
        if self.options.use_se:
            h = SqueezeExcite(dtype)(h)
        skip = x if self.stride == 1 else DownSkip(self.features, dtype)(x)
        return skip + RESIDUAL_SCALE * h


class DecoderCell(nn.Module):
    """skip(x) + 0.1 SE(an inverted bottleneck with a depthwise 5x5 convolution).

    Attributes:
      features: output channels.
      expansion: of the channels inside the bottleneck.
      is_upsampling: doubles height and width.
      options: shared by all cells.
    """

    features: int
    expansion: int = 6
    is_upsampling: bool = False
    options: CellOptions = CellOptions()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features], or to twice the size."""
        dtype = self.options.dtype
        plain = {"use_bias": False, "is_normalized": False, "dtype": dtype}
        width = x.shape[-1] * self.expansion
        h = BatchNorm(self.options)(upsample_nearest(x) if self.is_upsampling else x)
        h = Conv(width, **plain)(h)
        h = nn.swish(BatchNorm(self.options)(h))
        h = Conv(width, 5, groups=width, **plain)(h)
        h = nn.swish(BatchNorm(self.options)(h))
        h = BatchNorm(self.options)(Conv(self.features, **plain)(h))
        if self.options.use_se:
            h = SqueezeExcite(dtype)(h)
        skip = x
        if self.is_upsampling:
            up = Conv(self.features, use_bias=False, dtype=dtype, name="skip")
            skip = up(upsample_bilinear(x))
        return skip + RESIDUAL_SCALE * h
