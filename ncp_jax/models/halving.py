"""Convolutions of size 4 and stride 2, and their transposes, as products of patches.

XLA's convolutions are slow on CPUs inside of loops: a step of training of
`conv_hvae.py` took eight times as long with them as with these products.  What a
kernel of 4x4 reads at stride 2 is 2x2 whole cells of 2x2 pixels, so no pixel is
gathered one by one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Halve(nn.Module):
    """A convolution 4x4 of stride 2 with a bias."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, ceil(H / 2), ceil(W / 2), features]."""
        return halve(x, *_kernel_and_bias(self, x.shape[-1], self.features))


class Double(nn.Module):
    """A transposed convolution 4x4 of stride 2 with a bias."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, 2 H, 2 W, features]."""
        return double(x, *_kernel_and_bias(self, x.shape[-1], self.features))


def halve(x: Array, kernel: Array, bias: Array) -> Array:
    """Convolves at stride 2, with as many zeros around x as "SAME" has.

    Args:
      x: [B, H, W, in].
      kernel: [4, 4, in, out].
      bias: [out].

    Returns:
      [B, ceil(H / 2), ceil(W / 2), out].
    """
    height, width, (channels, features) = (
        -(-x.shape[1] // 2),
        -(-x.shape[2] // 2),
        kernel.shape[2:],
    )
    x = jnp.pad(
        x,
        (
            (0, 0),
            (1, 2 * height + 1 - x.shape[1]),
            (1, 2 * width + 1 - x.shape[2]),
            (0, 0),
        ),
    )
    cells = cells_of(x)
    patches = jnp.concatenate(
        [cells[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)], -1
    )  # [B, H', W', (2, 2) cells of (2, 2) pixels of in]
    kernel = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return patches @ kernel.reshape(16 * channels, features) + bias[None, None, None]


def cells_of(x: Array) -> Array:
    """Lays the 2x2 pixels of each cell one after another.

    Args:
      x: [B, 2 H, 2 W, C].

    Returns:
      [B, H, W, 4 C].
    """
    _, height, width, channels = x.shape
    cells = x.reshape(-1, height // 2, 2, width // 2, 2, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, height // 2, width // 2, 4 * channels
    )


def double(x: Array, kernel: Array, bias: Array) -> Array:
    """The transpose of `halve` of maps with even sides, and a bias.

    Args:
      x: [B, H, W, in].
      kernel: [4, 4, in, out]; pixel (h, w) adds x[h, w] @ kernel[i, j] to the pixel
        (2 h + 2 - i, 2 w + 2 - j).
      bias: [out].

    Returns:
      [B, 2 H, 2 W, out].
    """
    (_, height, width, channels), features = x.shape, kernel.shape[-1]
    kernel = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, features)
    kernel = kernel.transpose(4, 0, 2, 1, 3, 5).reshape(channels, 16 * features)
    cells = (x @ kernel).reshape(-1, height, width, 2, 2, 4 * features)
    placed = [
        jnp.pad(cells[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))
        for i in (0, 1)
        for j in (0, 1)
    ]
    summed = sum(placed[1:], start=placed[0])  # [B, H + 1, W + 1, 4 out]
    pixels = summed.reshape(-1, height + 1, width + 1, 2, 2, features)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, 2 * height + 2, 2 * width + 2, features
    )
    return pixels[:, 1:-1, 1:-1] + bias[None, None, None]


def _kernel_and_bias(
    module: nn.Module, channels: int, features: int
) -> tuple[Array, Array]:
    kernel = module.param(
        "kernel", nn.initializers.glorot_uniform(), (4, 4, channels, features)
    )
    return kernel, module.param("bias", nn.initializers.zeros, (features,))
