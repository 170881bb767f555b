"""How far draws are from held-out pictures, without a network and without a density."""

import jax
import jax.numpy as jnp

Array = jax.Array


def energy_distance(a: Array, b: Array) -> Array:
    """2 E|a - b| - E|a - a'| - E|b - b'| in units of x (Szekely and Rizzo, 2013): [].

    0 for equal laws and for no others.  Unbiased, so it may be below 0; of few pictures
    it is a rough number, and only equal draws of noise make two of them comparable.

    Args:
      a: [N, ...], N at least 2.
      b: [M, ...], M at least 2.
    """
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return 2 * jnp.mean(_distances(a, b)) - _within(a) - _within(b)


def _within(a: Array) -> Array:
    """The mean over pairs of different rows."""
    is_pair = ~jnp.eye(len(a), dtype=bool)  # a row's own distance is 0 but for rounding
    return jnp.mean(_distances(a, a), where=is_pair)


def _distances(a: Array, b: Array) -> Array:
    """Euclidean, [N, M]."""
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None]
    with jax.default_matmul_precision("float32"):
        return jnp.sqrt(jnp.maximum(norms - 2 * a @ b.T, 0.0))
