"""The blocks of TensorFlow's InceptionV3 of December 2015, pooling quirks included.

Average pools leave what lies outside of the map out of the average, and one block takes
a maximum where its twin takes an average.  Parts are named as in pytorch-fid.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Layer = tuple[str, int, tuple[int, int]]  # name, channels, kernel


class BasicConv(nn.Module):
    """Convolution, batch normalisation by the stored moments, ReLU."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"  # or "VALID"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, any] to [B, H', W', channels]."""
        x = nn.Conv(
            self.channels,
            self.kernel,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x)
        return nn.relu(x)


def chain(x: Array, *layers: Layer) -> Array:
    """Applies convolutions that keep the size, one after the other."""
    for name, channels, kernel in layers:
        x = BasicConv(channels, kernel, name=name)(x)
    return x


def shrink(x: Array, name: str, channels: int) -> Array:
    """Applies a 3x3 convolution of stride 2 without padding."""
    return BasicConv(channels, (3, 3), 2, "VALID", name=name)(x)


def average_pool(x: Array) -> Array:
    """Means over 3x3 without what lies outside of the map."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: Array) -> Array:
    """Maxima over 3x3, stride 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


class InceptionA(nn.Module):
    """1x1, 5x5, double 3x3 and pooled branches."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, any] to [B, H, W, 224 + pool_channels]."""
        one, three, five = (1, 1), (3, 3), (5, 5)
        branches = [
            chain(x, ("branch1x1", 64, one)),
            chain(x, ("branch5x5_1", 48, one), ("branch5x5_2", 64, five)),
            chain(
                x,
                ("branch3x3dbl_1", 64, one),
                ("branch3x3dbl_2", 96, three),
                ("branch3x3dbl_3", 96, three),
            ),
            chain(average_pool(x), ("branch_pool", self.pool_channels, one)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionB(nn.Module):
    """Halves the size: 288 to 768 channels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, 288] to [B, (H - 1) // 2, (W - 1) // 2, 768]."""
        double = chain(
            x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))
        )
        branches = [
            shrink(x, "branch3x3", 384),
            shrink(double, "branch3x3dbl_3", 96),
            max_pool(x),
        ]
        return jnp.concatenate(branches, -1)


class InceptionC(nn.Module):
    """1x1, 7x7 and double 7x7 branches, each 7x7 as 1x7 and 7x1, and a pooled one."""

    channels: int  # inside the 7x7 branches

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, any] to [B, H, W, 768]."""
        one, wide, high, c = (1, 1), (1, 7), (7, 1), self.channels
        branches = [
            chain(x, ("branch1x1", 192, one)),
            chain(
                x,
                ("branch7x7_1", c, one),
                ("branch7x7_2", c, wide),
                ("branch7x7_3", 192, high),
            ),
            chain(
                x,
                ("branch7x7dbl_1", c, one),
                ("branch7x7dbl_2", c, high),
                ("branch7x7dbl_3", c, wide),
                ("branch7x7dbl_4", c, high),
                ("branch7x7dbl_5", 192, wide),
            ),
            chain(average_pool(x), ("branch_pool", 192, one)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionD(nn.Module):
    """Halves the size: 768 to 1280 channels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, 768] to [B, (H - 1) // 2, (W - 1) // 2, 1280]."""
        double = chain(
            x,
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
        )
        branches = [
            shrink(chain(x, ("branch3x3_1", 192, (1, 1))), "branch3x3_2", 320),
            shrink(double, "branch7x7x3_4", 192),
            max_pool(x),
        ]
        return jnp.concatenate(branches, -1)


class InceptionE(nn.Module):
    """3x3 branches that end in 1x3 beside 3x1: 2048 channels."""

    is_max_pooled: bool  # else its pooled branch takes averages

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, any] to [B, H, W, 2048]."""
        one, wide, high = (1, 1), (1, 3), (3, 1)
        triple = chain(x, ("branch3x3_1", 384, one))
        double = chain(x, ("branch3x3dbl_1", 448, one), ("branch3x3dbl_2", 384, (3, 3)))
        if self.is_max_pooled:
            pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        else:
            pooled = average_pool(x)
        branches = [
            chain(x, ("branch1x1", 320, one)),
            chain(triple, ("branch3x3_2a", 384, wide)),
            chain(triple, ("branch3x3_2b", 384, high)),
            chain(double, ("branch3x3dbl_3a", 384, wide)),
            chain(double, ("branch3x3dbl_3b", 384, high)),
            chain(pooled, ("branch_pool", 192, one)),
        ]
        return jnp.concatenate(branches, -1)
