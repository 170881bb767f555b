"""The one place that chooses how a convolution is computed.

Measured on 2 CPU cores.  XLA hands a convolution to its fast CPU kernel if the axes are
in one particular order, and brings others into that order only outside of loops.  JAX
writes the gradients of a convolution in other orders: in a scan over groups they ran
forty times slower than here, where transposes are explicit.  A depthwise convolution
has no fast kernel at all: forward and gradients ran forty times slower than as a sum of
shifted copies.  Maps of 2x2 and less are slow in the kernel, too: twenty times slower
than one product of patches and kernel, while from 4x4 on that is the slower one.

Stacked kernels (`vmap` over groups of discriminators) would become XLA's grouped
convolution, thirty times slower than one after another on CPUs.  There a stack is gone
through one by one; accelerators get one batched product of patches and kernels, which
costs memory: `size ** 2` times that of x.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Pads = Sequence[tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")
TINY = 9  # pixels of a map for which patches win on CPUs


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
    if groups == 1:
        return _dense(x, kernel, stride)
    if _is_cpu() and groups == kernel.shape[-1] and stride == 1:
        return _depthwise(x, kernel)
    return _any(x, kernel, stride, groups)


def _is_tiny(x: Array) -> bool:
    return _is_cpu() and x.shape[1] * x.shape[2] <= TINY


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


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
    alone = _product if _is_tiny(x) else _any
    return _stackable(alone, _product, stride)(x, kernel)


def _dense_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple]:
    return _dense(x, kernel, stride), (x, kernel)


def _dense_backward(
    stride: int, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    alone = _gradients_on_cpu if _is_cpu() else _gradients_of_any
    if _is_tiny(saved[0]):
        alone = _gradients_of_product
    return _stackable(alone, _gradients_of_product, stride)(*saved, slope)


_dense.defvjp(_dense_forward, _dense_backward)


@cache
def _stackable(
    alone: Callable[..., Any], stacked: Callable[..., Any], stride: int
) -> Callable[..., Any]:
    """Computes `alone`, but under `vmap` over kernels what suits a stack.

    Args:
      alone: (x, kernel, ..., stride=) -> arrays.
      stacked: the same, fast under `vmap` over kernels on accelerators.
      stride: of both axes.
    """
    alone, stacked = partial(alone, stride=stride), partial(stacked, stride=stride)
    call = jax.custom_batching.custom_vmap(alone)

    @call.def_vmap
    def in_batches(axis_size: int, is_batched: list[bool], *args: Array) -> Any:
        in_axes = [0 if batched else None for batched in is_batched]
        _, is_stack, *_ = is_batched
        if is_stack and _is_cpu():
            args = tuple(
                arg if batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
                for arg, batched in zip(args, is_batched, strict=True)
            )
            out = jax.lax.map(lambda each: alone(*each), args)
        else:
            out = jax.vmap(stacked if is_stack else alone, in_axes)(*args)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _product(x: Array, kernel: Array, stride: int) -> Array:
    """One matrix product of all patches and the kernel."""
    height, width = x.shape[1:3]
    size, _, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *_pads(size), (0, 0)))
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(shifted, axis=-1)  # [B, H', W', size^2 in]
    return patches @ kernel.reshape(size**2 * channels, features)


def _gradients_of_any(
    x: Array, kernel: Array, slope: Array, stride: int
) -> tuple[Array, Array]:
    _, pull = jax.vjp(partial(_any, stride=stride), x, kernel)
    return pull(slope)


def _gradients_of_product(
    x: Array, kernel: Array, slope: Array, stride: int
) -> tuple[Array, Array]:
    _, pull = jax.vjp(partial(_product, stride=stride), x, kernel)
    return pull(slope)


def _gradients_on_cpu(
    x: Array, kernel: Array, slope: Array, stride: int
) -> tuple[Array, Array]:
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
