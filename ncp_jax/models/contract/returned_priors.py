"""What `prior` may return, and what is wrong if not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax.models import shared
from ncp_jax.models.base import Block, GroupPrior
from ncp_jax.models.contract.abstract_calls import (
    Fault,
    failure,
    is_array,
    is_floating,
    is_number_or_array,
    shown,
    shown_shape,
)
from ncp_jax.models.contract.returned_values import log_prob_faults

Array = jax.Array
PyTree = Any


def group_prior_faults(
    where: str, out: Any, block: Block, batch_size: int, key: Array
) -> tuple[list[Fault], Array | None]:
    """Compares what `prior` returned with its block.

    Args:
      where: the method and the block.
      out: what was returned, inside the trace.
      block: that it belongs to.
      batch_size: B.
      key: PRNG key; nothing is drawn.

    Returns:
      The faults, and a draw from the base prior if it has one.
    """
    expected = "GroupPrior(base, context)"
    if not isinstance(out, GroupPrior):
        is_bare = callable(getattr(out, "sample", None))
        found = f"it returns {shown(out, batch_size)}" + (
            ", a distribution without its context" if is_bare else ""
        )
        remedy = "return GroupPrior(base, context), with context [B, 0] if it has none"
        return [Fault(where, found, expected, remedy)], None
    faults = list(_context_faults(where, out.context, block, batch_size))
    of_leaves = list(_base_leaf_faults(where, out.base, block, batch_size))
    if of_leaves:
        return faults + of_leaves, None
    of_draws, z = _base_call_faults(where, out.base, block, batch_size, key)
    return faults + of_draws, z


def _context_faults(
    where: str, context: Any, block: Block, batch_size: int
) -> Iterator[Fault]:
    declared = tuple(block.context_shape)
    shape = (batch_size, *declared)
    expected = f"an array {shown_shape(shape, batch_size)}, as the block declares"
    if context is None:
        yield Fault(
            where,
            "the context is None",
            expected,
            "return jnp.zeros((B, 0)) and declare context_shape=(0,) if it has none",
        )
        return
    found = f"the context is {shown(context, batch_size)}"
    if not is_array(context):
        yield Fault(where, found, expected, "return one array")
    elif context.shape != shape:
        if context.shape == declared:
            found += ", without a batch axis"
            remedy = "broadcast it to the batch"
        elif context.shape[:1] == (batch_size,):
            remedy = f"return it so or declare context_shape={context.shape[1:]}"
        else:
            remedy = "lead with the batch axis"
        yield Fault(where, found, expected, remedy)


def _base_leaf_faults(
    where: str, base: Any, block: Block, batch_size: int
) -> Iterator[Fault]:
    """The base prior's methods, and arrays whose leading axis is not the batch."""
    kind = type(base).__name__
    missing = [
        name
        for name in ("sample", "log_prob")
        if not callable(getattr(base, name, None))
    ]
    if missing:
        yield Fault(
            where,
            f"the base prior, a {kind}, has no {' and no '.join(missing)}",
            "a distribution with sample(key) and log_prob(z)",
            "return one of models.distributions or your own",
        )
        return
    leaves = jax.tree_util.tree_leaves_with_path(shared.of_batch(base))
    is_bare = not isinstance(base, shared.Shared) and leaves and leaves[0][0] == ()
    if not leaves or is_bare:
        yield Fault(
            where,
            f"the base prior, a {kind}, is no pytree of arrays",
            "a registered pytree whose arrays lead with [B]",
            "make it a NamedTuple or a dataclass registered with JAX",
        )
        return
    for path, leaf in leaves:
        name = f"{jax.tree_util.keystr(path)} of the base prior"
        yield from _leading_axis_faults(where, name, leaf, block, batch_size)


def _leading_axis_faults(
    where: str, name: str, leaf: Any, block: Block, batch_size: int
) -> Iterator[Fault]:
    """Whether one array of a base prior leads with the batch."""
    expected = "arrays that lead with [B]"
    found = f"{name} is {shown(leaf, batch_size)}"
    if not is_number_or_array(leaf):
        remedy = "keep what is no array out of the pytree's leaves"
        yield Fault(where, found, expected, remedy)
        return
    shape = jnp.shape(leaf)
    if shape[:1] == (batch_size,):
        return
    if shape == ():
        found = f"{name} is a scalar"
    elif shape == tuple(block.latent_shape):
        found += ", without a batch axis"
    elif shape[0] == 1:
        found += ", of batch 1"
    remedy = "broadcast it, as with jnp.broadcast_to(value, (B, *latent_shape))"
    yield Fault(where, found, expected, remedy)


def _base_call_faults(
    where: str, base: Any, block: Block, batch_size: int, key: Array
) -> tuple[list[Fault], Array | None]:
    """Calls of `sample`, at once, chain by chain and repeated, and of `log_prob`."""
    latent_shape = tuple(block.latent_shape)

    def repeated(times: int) -> Array:
        return shared.map_batch(lambda leaf: jnp.repeat(leaf, times, 0), base).sample(
            key
        )

    keys = jax.random.split(key, batch_size)
    calls = {
        "sample": (lambda: base.sample(key), 1),
        "sample of each example alone": (lambda: shared.sample_each(keys, base), 1),
        "sample of each example twice": (lambda: repeated(2), 2),
    }
    z = None
    for name, (call, times) in calls.items():
        where_called = f"{where}, {name} of the base prior"
        try:
            z = call()
        except Exception as error:
            return [failure(where_called, error)], None
        shape = (times * batch_size, *latent_shape)
        if not is_floating(z) or z.shape != shape:
            found = f"it gives {shown(z, batch_size)}"
            expected = f"float32{shown_shape(shape, batch_size)}"
            remedy = "take the shape from the distribution's arrays"
            return [Fault(where_called, found, expected, remedy)], None
    z = base.sample(key)
    return list(log_prob_faults(where, "the base prior", base, z, batch_size)), z
