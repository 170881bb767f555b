"""The one place that chooses how a convolution is computed.

Measured on 2 CPU cores.  XLA hands a convolution to its fast CPU kernel if the axes are
in one particular order, and brings others into that order only outside of loops.  JAX
writes the gradients of a convolution in other orders: in a scan over groups they ran
forty times slower than here, where transposes are explicit.  A depthwise convolution
has no fast kernel at all: forward and gradients ran forty times slower than as a sum of
shifted copies.  Maps of 2x2 and less are slow in the kernel, too: twenty times slower
than one product of patches and kernel, while from 4x4 on that is the slower one.

A convolution is a matrix from all of a map to all of the result.  Most of it is zeros,
yet one product with it is faster where maps are small and many: 1.5 to 1.9 times on 500
maps of 4x4x24, forward and both gradients, and 4 to 8 times on maps of 1x1; on maps of
5x5 it never is.  The upper half of a map is convolved as the lower half is, so that a
quarter of the matrix does for both, and the two rows that meet get what the other half
adds to them.  That takes 0.87 of the time, gradients aside.  But x is read three times,
and XLA would make it three times from whatever it is made of: `reads_once` is for an x
that is dear, such as normal draws.

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
import numpy as np

Array = jax.Array
Pads = Sequence[tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")
TINY = 9  # pixels of a map up to which patches win on CPUs
SMALL = 16  # and up to which the whole map may


def convolve(
    x: Array,
    kernel: Array,
    stride: int = 1,
    groups: int = 1,
    *,
    reads_once: bool = False,
) -> Array:
    """Convolves maps, with zeros around them so that stride 1 keeps their size.

    Args:
      x: [B, H, W, in].
      kernel: [size, size, in / groups, out], of odd size.
      stride: of both axes.
      groups: feature groups; `in` for a depthwise convolution.
      reads_once: x is dear to compute, and no faster form may have it twice.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), out].
    """
    if groups == 1:
        return _dense(x, kernel, stride, reads_once)
    if _is_cpu() and groups == kernel.shape[-1] and stride == 1:
        return _depthwise(x, kernel)
    return _any(x, kernel, stride, groups)


def _on_cpu(
    x: Array, kernel: Array, stride: int, reads_once: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What computes a convolution on CPUs, and what its gradients."""
    (num_maps, height, width, _), size = x.shape, kernel.shape[0]
    pixels = height * width
    is_few = pixels <= SMALL and num_maps >= 32 * (pixels - 4)
    if is_few and size > 1:
        # The matrix of two rows has no zeros; size 3 reaches one row beyond a half.
        has_halves = height > 2 and height % 2 == 0 and size == 3 and stride == 1
        form = _halves if has_halves and not reads_once else _whole
        return form, _gradients_of_whole
    if pixels <= TINY:
        return _product, _gradients_of_product
    return _any, _gradients_on_cpu


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: Array, kernel: Array, stride: int, reads_once: bool) -> Array:
    on_cpu = _once_on_cpu if reads_once else _forward_on_cpu
    return _stackable(on_cpu if _is_cpu() else _any, _product, stride)(x, kernel)


def _dense_forward(
    x: Array, kernel: Array, stride: int, reads_once: bool
) -> tuple[Array, tuple]:
    return _dense(x, kernel, stride, reads_once), (x, kernel)


def _dense_backward(
    stride: int, reads_once: bool, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    del reads_once  # gradients are another function's: x is there
    alone = _backward_on_cpu if _is_cpu() else _gradients_of_any
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
        if not is_stack and len(args) == 2:  # more maps for the same kernel
            x, kernel = args
            out = call(x.reshape(-1, *x.shape[2:]), kernel)
            return out.reshape(*x.shape[:2], *out.shape[1:]), True
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


def _forward_on_cpu(
    x: Array, kernel: Array, stride: int, reads_once: bool = False
) -> Array:
    forward, _ = _on_cpu(x, kernel, stride, reads_once)
    return forward(x, kernel, stride)


_once_on_cpu = partial(_forward_on_cpu, reads_once=True)


def _backward_on_cpu(
    x: Array, kernel: Array, slope: Array, stride: int
) -> tuple[Array, Array]:
    _, backward = _on_cpu(x, kernel, stride)
    return backward(x, kernel, slope, stride)


def _halves(x: Array, kernel: Array, stride: int) -> Array:
    """Both halves of maps as one product, and what each adds to the other."""
    del stride  # 1
    num_maps, height, width = x.shape[:3]
    half = height // 2
    within = x.reshape(2 * num_maps, -1) @ _matrix(kernel, _taps(half, width, 3, 1))
    rows = x.reshape(num_maps, height, -1)
    meeting = _taps(2, width, 3, 1)  # [2, W, 2, W]
    up = rows[:, half] @ _matrix(kernel, meeting[1:, :, :1])
    down = rows[:, half - 1] @ _matrix(kernel, meeting[:1, :, 1:])
    away = half - 1  # rows that do not meet the other half
    across = jnp.pad(jnp.stack([up, down], 1), ((0, 0), (away, away), (0, 0)))
    return (within.reshape(across.shape) + across).reshape(*x.shape[:3], -1)


def _whole(x: Array, kernel: Array, stride: int) -> Array:
    """One product of whole maps and the matrix of the convolution."""
    taps = _taps(*x.shape[1:3], kernel.shape[0], stride)
    out = x.reshape(len(x), -1) @ _matrix(kernel, taps)
    return out.reshape(len(x), *taps.shape[2:], -1)


def _matrix(kernel: Array, taps: np.ndarray) -> Array:
    """The convolution of some pixels: [H W in, H' W' out], of taps [H, W, H', W']."""
    _, _, channels, features = kernel.shape
    pixels = taps.shape[0] * taps.shape[1]
    zeros = jnp.zeros_like(kernel[0, :1])
    with_zeros = jnp.concatenate([kernel.reshape(-1, channels, features), zeros])
    matrix = with_zeros[taps.reshape(pixels, -1)]  # [H W, H' W', in, out]
    return matrix.transpose(0, 2, 1, 3).reshape(pixels * channels, -1)


@cache
def _taps(height: int, width: int, size: int, stride: int) -> np.ndarray:
    """Which tap of the kernel leads from each pixel to each of the result.

    Returns:
      [H, W, H', W'] in 0 .. size^2, the last of which means none.
    """

    def along(length: int) -> np.ndarray:
        """[length, length'] in 0 .. size - 1; others mean none."""
        centres = stride * np.arange(-(-length // stride))
        return np.arange(length)[:, None] - centres + size // 2

    rows, columns = along(height)[:, None, :, None], along(width)[None, :, None, :]
    is_there = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return np.where(is_there, rows * size + columns, size**2)


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


def _gradients_of(
    form: Callable[..., Array], x: Array, kernel: Array, slope: Array, stride: int
) -> tuple[Array, Array]:
    """Of one of the forms above, by its own derivative."""
    _, pull = jax.vjp(partial(form, stride=stride), x, kernel)
    return pull(slope)


_gradients_of_any = partial(_gradients_of, _any)
_gradients_of_product = partial(_gradients_of, _product)
_gradients_of_whole = partial(_gradients_of, _whole)


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
