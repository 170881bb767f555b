"""The paper's residual classifier, for latents that are maps."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.convolution import convolve
from ncp_jax.models.halving import cells_of
from ncp_jax.models.squeeze_excite import SqueezeExcite

Array = jax.Array

NORMS = ("group", "none")
GROUP_SIZE = 16  # channels that group norm normalises together, if there are as many


class ResidualDiscriminator(nn.Module):
    """Tells posterior maps of one latent group from prior maps, given its context.

    The first layer adds a 3x3 convolution of z and one of the context.  Then come
    residual blocks, the mean over the map and a linear layer; see
    `models.discriminator` for what all discriminators share.

    The paper has batch norm.  Here log r of a z does not depend on its company.  On
    4x4x4 maps of known ratio (KL 1.67 nats; lowest loss 0.844) batch norm with running
    statistics did as well as group norm, held-out loss 0.91 and 0.90; but with the
    statistics of the proposals log Z was 2.6 nats off, and trained on q and p as two
    batches it told the batches apart: loss 0.02 in training and 1.70 held out, worse
    than r = 1.

    Attributes:
      channels: C, width of the first layer; even, for blocks B.
      blocks: a letter per block: "A" keeps the map's shape, "B" halves its height and
        width (rounded up, so that 1x1 stays 1x1) and doubles its channels.
      norm: "group"; or "none", which fitted a little better without a context and a
        little worse with one, and costs a third less.
      dtype: of activations; parameters and the logit are float32.
    """

    channels: int = 32
    blocks: str = "AAABAAAB"
    norm: str = "group"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the settings, before anything is built."""
        if not self.blocks or set(self.blocks) - {"A", "B"}:
            raise InputError(
                f"blocks must be a word of the letters A and B, got {self.blocks!r}"
            )
        if self.norm not in NORMS:
            raise InputError(f"norm must be one of {NORMS}, got {self.norm!r}")
        if self.channels < 2 or self.channels % 2:
            raise InputError(f"channels must be even and positive, got {self.channels}")
        super().__post_init__()

    def setup(self) -> None:
        """Makes the layers; they take their shapes from what they first see."""
        self.from_z = Conv3x3(self.channels, dtype=self.dtype, reads_once=True)
        self.from_context = Conv3x3(self.channels, use_bias=False, dtype=self.dtype)
        self.trunk = [self._block(letter == "B") for letter in self.blocks]
        self.last = nn.Dense(1, kernel_init=nn.initializers.zeros)

    def __call__(self, z: Array, context: Array) -> Array:
        """Maps z [B, H, W, C_z] and context [B, H, W, C_c] or [B, 0] to log r_k [B]."""
        return self.log_ratio(z, self.embed(context))

    def embed(self, context: Array) -> Array:
        """The context's part of the first layer: [B, H, W, C], or zeros [B, 1, 1, 1].

        Args:
          context: [B, H, W, C_c] of the same height and width as z; or of shape [B, 0]
            where there is none, which gives the zeros.
        """
        if not context.size:
            return jnp.zeros((context.shape[0], 1, 1, 1), self.dtype)
        _require_maps("context", context)
        context = context.astype(jnp.float32)
        mean_square = jnp.mean(context**2, axis=(1, 2, 3), keepdims=True)
        # A decoder's feature may be large; it would drown z and stop the training.
        return self.from_context(context * jax.lax.rsqrt(mean_square + 1e-6))

    def log_ratio(self, z: Array, feature: Array) -> Array:
        """Maps z [B, H, W, C_z] and its context's feature to log r_k [B], float32."""
        _require_maps("z", z)
        size = feature.shape[1:3]
        if size not in ((1, 1), z.shape[1:3]):
            raise InputError(
                f"z of shape {z.shape} needs a context of the same height and width; "
                f"this one is {size[0]}x{size[1]}"
            )
        h = _swish(self.from_z(z) + feature)
        for block in self.trunk:
            h = block(h)
        pooled = jnp.mean(h.astype(jnp.float32), axis=(1, 2))  # [B, C']
        return self.last(pooled)[:, 0]

    def _block(self, is_reduction: bool) -> nn.Module:
        return ResidualBlock(is_reduction, self.norm, self.dtype)


class ResidualBlock(nn.Module):
    """Twice [norm, Swish, 3x3 convolution], squeeze and excite, plus a skip.

    Attributes:
      is_reduction: halves height and width and doubles the channels (block B).
      norm: before each Swish: "group" or "none".
      dtype: of activations.
    """

    is_reduction: bool
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the same, or to [B, ceil(H/2), ceil(W/2), 2C]."""
        stride, channels = 1, x.shape[-1]
        skip = x
        if self.is_reduction:
            stride, channels = 2, 2 * channels
            skip = FactorizedReduction(self.dtype, name="skip")(_swish(x))
        h = x
        for i, step in enumerate((stride, 1)):
            h = _swish(self._normalize(h, f"norm_{i}"))
            h = Conv3x3(channels, step, dtype=self.dtype, name=f"conv_{i}")(h)
        return skip + SqueezeExcite(self.dtype, name="squeeze_excite")(h)

    def _normalize(self, x: Array, name: str) -> Array:
        if self.norm == "none":
            return x
        normalized = MapNorm(num_norm_groups(x.shape[-1]), name=name)
        return normalized(x.astype(jnp.float32)).astype(self.dtype)


class MapNorm(nn.Module):
    """Group norm (Wu and He, 2018) as Flax has it, its sum of squares as a product.

    With `_swish` it takes 12 % off log r of 500 maps of 4x4 on two CPU cores.

    Attributes:
      num_groups: of channels that are normalised together; divides their number.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the same, float32."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.reshape(len(x), -1, self.num_groups, channels // self.num_groups)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        # Of x itself: what is centred would be written to memory and read again. The
        # difference below leaves no room for the few bits that some devices multiply.
        squares = jnp.einsum(
            "bpgc,bpgc->bg", grouped, grouped, precision=jax.lax.Precision.HIGHEST
        )[:, None, :, None]
        count = grouped.shape[1] * grouped.shape[3]
        variance = jnp.maximum(squares / count - mean**2, 0.0)  # but for rounding
        y = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
        return y * scale[None, None, None] + bias[None, None, None]


class Conv3x3(nn.Module):
    """3x3 convolution, zero-padded by one; see `models.convolution` for its forms.

    Attributes:
      features: output channels.
      stride: of both axes.
      use_bias: adds a bias per output channel.
      dtype: of the result; parameters are float32.
      reads_once: of `convolve`: for draws, which XLA makes on the way.
    """

    features: int
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    reads_once: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, ceil(H/stride), ceil(W/stride), features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = convolve(x, kernel, self.stride, reads_once=self.reads_once)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.astype(self.dtype)[None, None, None]


class FactorizedReduction(nn.Module):
    """Halves a map by a 1x1 convolution of stride 2 per offset, concatenated.

    All four are one product of the cells of 2x2 pixels: on CPUs it takes two thirds of
    the time of four.  The last row and column of a map of odd size are repeated, so
    that on a 1x1 map all four offsets see the one pixel.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H/2), ceil(W/2), 2C]; C is even."""
        _, height, width, channels = x.shape
        pad = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
        x = jnp.pad(x, pad, mode="edge").astype(self.dtype)
        kernels, biases = zip(
            *(
                _Layer(channels // 2, name=f"offset_{i}{j}")(channels)
                for i in (0, 1)
                for j in (0, 1)
            ),
            strict=True,
        )
        kernel = jax.scipy.linalg.block_diag(*kernels).astype(self.dtype)  # [4C, 2C]
        bias = jnp.concatenate(biases).astype(self.dtype)
        return cells_of(x) @ kernel + bias[None, None, None]


class _Layer(nn.Module):
    """The parameters of a dense layer."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """Returns kernel [channels, features] and bias [features]."""
        shape = (channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def _swish(x: Array) -> Array:
    """x sigmoid(x), the sigmoid by tanh, which is faster on CPUs than by exp."""
    return x * (0.5 * jnp.tanh(0.5 * x) + 0.5)


def num_norm_groups(channels: int) -> int:
    """The most equal groups of at least `GROUP_SIZE` channels, or one group.

    On a 1x1 map a group's statistics are taken over its channels alone, which small
    groups would not survive.
    """
    most = max(channels // GROUP_SIZE, 1)
    return next(n for n in range(most, 0, -1) if channels % n == 0)


def _require_maps(name: str, x: Array) -> None:
    if x.ndim != 4:
        raise InputError(
            "ResidualDiscriminator reads maps: "
            f"{name} must be [B, H, W, C], got {x.shape}"
        )
