"""Dense and convolutional layers whose kernels may be spectrally normalised, NHWC.

Convolutions of size 4 are products of patches, which are fast in loops on CPUs; those
of other sizes are XLA's own, for accelerators.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models import halving

Array = jax.Array

BN_MOMENTUM, BN_EPSILON = 0.99, 1e-3
LAYOUT = ("NHWC", "HWIO", "NHWC")
FIRST_ITERATIONS = 50  # of the power iteration, on fresh kernels
NORM_FLOOR = 1e-12

KERNEL_INIT = nn.initializers.glorot_uniform()


class Dense(nn.Module):
    """A product with a matrix, and a bias.

    Attributes:
      features: of the result.
      is_spectral: divides the matrix by its largest singular value.
    """

    features: int
    is_spectral: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, in] to [B, features]."""
        kernel = _kernel(self, (x.shape[-1], self.features), as_matrix)
        return x @ kernel + _bias(self)[None]


class Convolution(nn.Module):
    """What the layers of maps have in common.

    Attributes:
      features: channels of the result.
      size: height and width of the kernel.
      is_spectral: divides the kernel by the largest singular value of its matrix.
    """

    features: int
    size: int
    is_spectral: bool = False

    def weights(
        self, x: Array, matrix_of: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """The kernel [size, size, in, features] for x [B, H, W, in], and the bias."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        return _kernel(self, shape, matrix_of), _bias(self)


class Down(Convolution):
    """A convolution of stride 2 with as many zeros around x as "SAME" has."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, ceil(H / 2), ceil(W / 2), features]."""
        kernel, bias = self.weights(x, as_matrix)
        if self.size == 4:
            return halving.halve(x, kernel, bias)
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT
        )
        return y + bias[None, None, None]


class Up(Convolution):
    """A transposed convolution of stride 2."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, 2 H, 2 W, features]."""
        kernel, bias = self.weights(x, as_transposed_matrix)
        if self.size == 4:
            return halving.double(x, kernel, bias)
        y = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
        return y + bias[None, None, None]


class Last(Convolution):
    """A transposed convolution of stride 1.

    Its result has few channels, so every pixel first makes all that it adds anywhere;
    with the sides as the last axes these are long rows.  Unlike the convolutions of
    `models.convolution` it can be differentiated twice, which "rae_gp" needs.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, in] to [B, H, W, features]."""
        (height, width), size = x.shape[1:3], self.size
        kernel, bias = self.weights(x, as_transposed_matrix)
        parts = jnp.einsum("ijco,bhwc->ijobhw", kernel, x)
        before = (size - 1) // 2

        def placed(i: int, j: int) -> Array:
            pads = ((0, 0), (0, 0), (i, size - 1 - i), (j, size - 1 - j))
            moved = jnp.pad(parts[i, j], pads)
            return moved[:, :, before : before + height, before : before + width]

        first, *others = (placed(i, j) for i in range(size) for j in range(size))
        return jnp.moveaxis(sum(others, start=first), 0, -1) + bias[None, None, None]


class NormRelu(nn.Module):
    """Batch norm, then ReLU.

    Statistics of the batch are used, and the running ones updated, exactly where the
    collection "batch_stats" is mutable.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the same shape."""
        norm = nn.BatchNorm(
            use_running_average=not self.is_mutable_collection("batch_stats"),
            momentum=BN_MOMENTUM,
            epsilon=BN_EPSILON,
            use_fast_variance=False,
        )
        return jax.nn.relu(norm(x))


def as_matrix(kernel: Array) -> Array:
    """A kernel [..., in, out] as the matrix [..., out] whose norm is bounded."""
    return kernel.reshape(-1, kernel.shape[-1])


def as_transposed_matrix(kernel: Array) -> Array:
    """A kernel [height, width, in, out] of a transposed convolution: [..., in]."""
    return as_matrix(kernel.swapaxes(-1, -2))


def largest_singular_value(
    matrix: Array, right: Array, num_iterations: int = 1
) -> tuple[Array, Array]:
    """Power iteration (Miyato et al., 2018); the gradient holds its vectors fixed.

    Args:
      matrix: [n, m].
      right: [m], of the last call; kernels move little from step to step.
      num_iterations: of the iteration, which approaches the value from below.

    Returns:
      [] the value, and [m] the vector for the next call.
    """
    fixed = jax.lax.stop_gradient(matrix)

    def iterate(_: int, right: Array) -> Array:
        return _unit(fixed.T @ _unit(fixed @ right))

    right = jax.lax.fori_loop(0, num_iterations, iterate, right)
    return _unit(fixed @ right) @ matrix @ right, right


def _kernel(
    layer: nn.Module, shape: tuple[int, ...], matrix_of: Callable[[Array], Array]
) -> Array:
    """The layer's kernel; divided by its largest singular value where it is spectral.

    The vector of the power iteration is kept in "batch_stats", and moves where that is
    mutable, as running means do.
    """
    kernel = layer.param("kernel", KERNEL_INIT, shape)
    if not layer.is_spectral:
        return kernel
    matrix = matrix_of(kernel)

    def first() -> Array:
        noise = jax.random.normal(layer.make_rng("params"), matrix.shape[1:])
        return largest_singular_value(matrix, _unit(noise), FIRST_ITERATIONS)[1]

    right = layer.variable("batch_stats", "right", first)
    value, moved = largest_singular_value(matrix, _unit(right.value))
    if layer.is_mutable_collection("batch_stats") and not layer.is_initializing():
        right.value = moved
    return kernel / value


def _bias(layer: nn.Module) -> Array:
    return layer.param("bias", nn.initializers.zeros, (layer.features,))


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), NORM_FLOOR)
