"""What samplers do with a value per chain, and with a key per chain."""

import jax
import jax.numpy as jnp

Array = jax.Array


def noise(keys: Array, like: Array) -> Array:
    """Standard normals of the shape of `like` [B, ...], row b from keys[b]."""

    def draw(key: Array) -> Array:
        return jax.random.normal(key, like.shape[1:], like.dtype)

    return jax.vmap(draw)(keys)


def per_chain(values: float | Array, like: Array) -> Array:
    """[] or [B] -> what broadcasts with `like` [B, ...]."""
    values = jnp.asarray(values, like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))


def where(condition: Array, new: Array, old: Array) -> Array:
    """Chooses per chain: condition [B], the others [B, ...]."""
    return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)
