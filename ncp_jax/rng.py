"""Named random streams: every random number is a pure function of (seed, stream, step).

A batch, a noise draw or a proposal can therefore be made again at any time: a
checkpoint needs no generator state, and no two purposes share a key.
"""

import zlib

import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError

Array = jax.Array


def typed(key: Array) -> Array:
    """Returns a user's key as a typed one; `jax.random.PRNGKey(0)` makes the old kind.

    Args:
      key: one PRNG key of either kind.

    Raises:
      InputError: it is no single PRNG key.
    """
    if isinstance(key, jax.Array) and not key.shape:
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
    elif isinstance(key, jax.Array) and (key.shape, key.dtype) == ((2,), jnp.uint32):
        return jax.random.wrap_key_data(key)
    raise InputError(f"key must be one PRNG key, such as jax.random.key(0); got {key}")


def stream(key: Array, name: str) -> Array:
    """Returns the key that owns the purpose `name` under `key`.

    `fold_in(key, i)` with a small i equals `split(key, n)[i]`, so streams are folded
    in at a hash of their name, which no counter reaches.

    Args:
      key: PRNG key of the owner, which may go on to `split` it or to count with it;
        or one of each chain [B], and then so is the result.
      name: what the numbers are for, e.g. "vae/posterior".

    Returns:
      A key that no other name and no counter below 2**20 yields.  A key that owns
      names is not counted with beyond that; one that counts steps owns no names.

    Raises:
      ValueError: for the one name in 4,000 whose hash a counter could reach.
    """
    tag = zlib.crc32(name.encode())
    if tag < 2**20:
        raise ValueError(f"stream name {name!r} hashes too low; choose another name")
    return _fold_in(key, tag)


def at_step(key: Array, step: Array | int) -> Array:
    """Returns the key of one step (or chain, proposal, group) of a stream.

    Args:
      key: the stream's, or one of each chain [B]: then so is the result.
      step: a count.
    """
    return _fold_in(key, step)


def _fold_in(key: Array, count: Array | int) -> Array:
    if not key.shape:
        return jax.random.fold_in(key, count)
    return jax.vmap(jax.random.fold_in, (0, None))(key, count)


def numpy_seed(key: Array) -> int:
    """Returns a seed of NumPy's generators, of 32 bits; the key is consumed here."""
    return int(jax.random.bits(key))


def root(seed: int) -> Array:
    """Returns the key from which every stream of an experiment descends."""
    return jax.random.key(seed)
