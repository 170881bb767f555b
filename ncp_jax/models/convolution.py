"""Convolutions whose gradients are fast inside `lax.scan` on CPUs, too.

XLA hands a convolution to its fast CPU kernel if the axes are in one particular order,
and brings others into that order only outside of loops.  JAX writes the gradients of a
convolution in other orders: in a scan over groups they ran forty times slower than
here, where transposes are explicit.  A depthwise convolution has no fast kernel at all:
forward and gradients ran forty times slower than as a sum of shifted copies.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array
Pads = Sequence[tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """Convolves maps, with zeros around them so that stride 1 keeps their size.

    Args:
      x: [B, H, W, in].
      kernel: [size, size, in / groups, out], of odd size.
      stride: of both axes.
      groups: feature groups; `in` for a depthwise convolution.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), out].
    """
    if jax.default_backend() == "cpu" and groups == 1:
        return _dense(x, kernel, stride)
    if jax.default_backend() == "cpu" and groups == kernel.shape[-1] and stride == 1:
        return _depthwise(x, kernel)
    return _any(x, kernel, stride, groups)


def _any(x: Array, kernel: Array, stride: int, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=_pads(kernel.shape[0]),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: Array, stride: int) -> Array:
    return _any(x, kernel, stride)


def _dense_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple]:
    return _any(x, kernel, stride), (x, kernel)


def _dense_backward(
    stride: int, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    sides = list(zip(x.shape[1:3], slope.shape[1:3], strict=True))
    # The slope spread out by the stride is (n - 1) * stride + 1 wide; the rest follows
    # from the sizes that the results must have.
    of_x = jax.lax.conv_general_dilated(
        slope,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        window_strides=(1, 1),
        padding=[
            (size - 1 - pad, side - (n - 1) * stride - 1 + pad) for side, n in sides
        ],
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    of_kernel = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),  # [in, H, W, B]
        slope.transpose(1, 2, 0, 3),  # [H', W', B, out]
        window_strides=(1, 1),
        padding=[(pad, size + (n - 1) * stride - side - pad) for side, n in sides],
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def _depthwise(x: Array, kernel: Array) -> Array:
    (height, width), size = x.shape[1:3], kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *_pads(size), (0, 0)))
    taps = [(i, j) for i in range(size) for j in range(size)]
    terms = [
        padded[:, i : i + height, j : j + width] * kernel[i, j][None, None]
        for i, j in taps
    ]
    return sum(terms[1:], start=terms[0])


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(
    saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *_pads(size), (0, 0)))

    def tap(index: Array) -> Array:  # a loop: fused, the sums are ten times slower
        start = (0, index // size, index % size, 0)
        shifted = jax.lax.dynamic_slice(padded, start, x.shape)
        return jnp.sum(jnp.sum(shifted * slope, axis=0), axis=(0, 1))

    of_kernel = jax.lax.map(tap, jnp.arange(size**2)).reshape(kernel.shape)
    return _depthwise(slope, kernel[::-1, ::-1]), of_kernel


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _pads(size: int) -> Pads:
    return [(size // 2, size // 2)] * 2
