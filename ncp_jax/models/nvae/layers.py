"""Layers that NVAE's cells are made of (Vahdat & Kautz, 2020), NHWC.

Written from the paper's description.  Parameters and batch statistics are float32;
`dtype` is what convolutions compute and return.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.convolution import convolve

Array = jax.Array

BN_MOMENTUM = 0.95  # what a running statistic keeps per step
BN_EPSILON = 1e-5
NORM_EPSILON = 1e-5  # of weight normalisation

# U(-1, 1) / sqrt(fan_in), for kernels laid out [height, width, in, out].
KERNEL_INIT = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class CellOptions(NamedTuple):
    """What all cells of a model share.

    Attributes:
      use_se: squeeze and excite the residual branch.
      dtype: of activations; parameters and statistics stay float32.
      axis_name: axis of `shard_map` that the batch is split over, for batch norm to
        average over; needed in there, an error outside.  Under plain `jit` with a
        sharded batch leave it None: means are then those of the global batch.
    """

    use_se: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None


class Conv(nn.Module):
    """Convolution with PyTorch's symmetric padding and optional weight normalisation.

    With weight normalisation the kernel of each output channel is
    `exp(log_norm) * w / (||w|| + 1e-5)`.  The kernel in effect is sown into the
    collection "kernels" (where mutable) for the spectral regulariser.

    Attributes:
      features: output channels.
      size: height and width of the kernel.
      stride: of both axes.
      groups: feature groups; `features` for a depthwise convolution.
      use_bias: adds a bias per output channel.
      is_normalized: weight normalisation.
      mask: 0/1 array of the kernel's shape, applied before the norm is taken.
      norm_init_scale: of the initial norms under weight normalisation.
      dtype: of the result.
    """

    features: int
    size: int = 1
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    is_normalized: bool = True
    mask: np.ndarray | None = None
    norm_init_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, H/stride, W/stride, features]."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", KERNEL_INIT, shape)
        if self.mask is not None:
            kernel = kernel * self.mask
        if self.is_normalized:
            kernel = self._normalize(kernel)
        if not self.is_initializing():
            self.sow("kernels", "kernel", kernel, lambda _, new: new, lambda: None)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = convolve(x, kernel, self.stride, self.groups)
        if not self.use_bias:
            return y
        bias = self.param("bias", _bias_init(shape), (self.features,))
        return y + bias.astype(self.dtype)[None, None, None]

    def _normalize(self, kernel: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)) + 1e-30)  # finite gradient
        log_norm = self.param(
            "log_norm", lambda _: jnp.log(self.norm_init_scale * norm + 1e-2)
        )
        gain = jnp.exp(log_norm) / (norm + NORM_EPSILON)
        return kernel * gain[None, None, None]


def _bias_init(kernel_shape: tuple[int, ...]) -> nn.initializers.Initializer:
    bound = 1.0 / np.sqrt(np.prod(kernel_shape[:-1]))
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class BatchNorm(nn.Module):
    """Batch normalisation, in float32 whatever the input.

    Statistics of the batch are used, and the running ones updated, exactly where the
    collection "batch_stats" is mutable; a frozen model therefore needs no flag.

    Attributes:
      options: `axis_name` and `dtype` are read.
    """

    options: CellOptions

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises [B, H, W, C] per channel."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        x = x.astype(jnp.float32)
        if not self.is_mutable_collection("batch_stats"):
            return self._standardize(x, mean.value, var.value, scale, bias)
        batch_mean, batch_var, count = self._moments(x)
        if not self.is_initializing():
            unbiased = batch_var * (count / max(count - 1, 1))
            mean.value = _moving_average(mean.value, batch_mean)
            var.value = _moving_average(var.value, unbiased)
        return self._standardize(x, batch_mean, batch_var, scale, bias)

    def _moments(self, x: Array) -> tuple[Array, Array, int]:
        """Mean [C], biased variance [C] and number of values per channel."""
        axis_name = None if self.is_initializing() else self.options.axis_name
        count = x.size // x.shape[-1]
        mean = jnp.mean(x, axis=(0, 1, 2))
        if axis_name is not None:
            count *= jax.lax.axis_size(axis_name)
            mean = jax.lax.pmean(mean, axis_name)
        var = jnp.mean((x - mean[None, None, None]) ** 2, axis=(0, 1, 2))
        if axis_name is not None:
            var = jax.lax.pmean(var, axis_name)
        return mean, var, count

    def _standardize(
        self, x: Array, mean: Array, var: Array, scale: Array, bias: Array
    ) -> Array:
        gain = scale * jax.lax.rsqrt(var + BN_EPSILON)
        y = (x - mean[None, None, None]) * gain[None, None, None]
        return (y + bias[None, None, None]).astype(self.options.dtype)


def _moving_average(old: Array, new: Array) -> Array:
    return BN_MOMENTUM * old + (1.0 - BN_MOMENTUM) * new
