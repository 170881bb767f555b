"""What the kinds of autoencoder add to the error of reconstruction."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel, times 2 D


def mmd(z: Array, draws: Array, mask: Array) -> Array:
    """The squared MMD between encodings and draws of N(0, I), summed over kernels.

    Kernels are inverse multiquadratics C / (C + |a - b|^2) with C = 2 D times each of
    `SCALES` (Tolstikhin et al., 2018).  Unbiased, so it may be negative.

    Args:
      z: [B, D] encodings.
      draws: [B, D].
      mask: [B], False for rows to be left out, of both.
    """
    weights = mask.astype(z.dtype)
    n = jnp.sum(weights)
    pairs = weights[:, None] * weights[None]  # [B, B]
    others = pairs * (1.0 - jnp.eye(len(z)))
    within = jnp.maximum(n * (n - 1.0), 1.0)
    of_z, of_draws, across = (
        _squared_distances(*both) for both in ((z, z), (draws, draws), (z, draws))
    )
    total = jnp.zeros(())
    for scale in SCALES:
        c = 2.0 * z.shape[1] * scale
        inside = jnp.sum(others * (c / (c + of_z) + c / (c + of_draws))) / within
        total += inside - 2.0 * jnp.sum(pairs * c / (c + across)) / n**2
    return total


def with_slope(decoder: nn.Module, z: Array) -> tuple[Array, Array]:
    """The decoder's output [B, ...], and d sum(output^2) / dz [B, D].

    Args:
      decoder: bound, within the module that it is a part of.
      z: [B, D].
    """
    out, pull = nn.vjp(lambda decoder, z: decoder(z), decoder, z)
    _, slope = pull(2.0 * out)
    return out, slope


def squared_norm(params: Any, has_dense: bool) -> Array:
    """The sum of squares of kernels; biases and batch norms do not count.

    Args:
      params: of a decoder.
      has_dense: whether the dense layer counts, too, beside the convolutions.
    """
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel" and (leaf.ndim == 4 or has_dense)
    ]
    return sum((jnp.sum(kernel**2) for kernel in kernels), start=jnp.zeros(()))


def _squared_distances(a: Array, b: Array) -> Array:
    """Between all rows of a [N, D] and of b [M, D]: [N, M]."""
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2.0 * products
    return jnp.maximum(squares, 0.0)
