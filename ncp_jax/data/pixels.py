"""From stored pictures, uint8, to what a model reads."""

import jax
import jax.numpy as jnp

Array = jax.Array


def quantize(images: Array, num_bits: int) -> Array:
    """Returns pictures in [0, 1] of 2**num_bits levels: floor(x / 2**(8 - bits)).

    Args:
      images: uint8, any shape.
      num_bits: 8 keeps every level.
    """
    levels = images >> jnp.uint8(8 - num_bits)
    return levels.astype(jnp.float32) / (2**num_bits - 1)


def flip_half(key: Array, images: Array) -> Array:
    """Mirrors each picture [H, W, C] of [B, H, W, C] left to right with chance 1/2."""
    is_flipped = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1], images)
