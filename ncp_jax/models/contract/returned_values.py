"""What `encode` and `absorb` may return, and log densities; what is wrong if not."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax.models.base import Block, Encoding
from ncp_jax.models.contract.abstract_calls import (
    Fault,
    failure,
    is_array,
    is_floating,
    shown,
    shown_shape,
)

Array = jax.Array
PyTree = Any
PRECISE = (jnp.float32, jnp.float64)  # dtypes of log densities


def encoding_faults(
    out: Any, blocks: Sequence[Block], batch_size: int
) -> Iterator[Fault]:
    """Compares what `encode` returned with the blocks."""
    remedy = "return Encoding(latents, log_q)"
    if not (hasattr(out, "latents") and hasattr(out, "log_q")):
        found = f"it returns {shown(out, batch_size)}"
        if is_array(out) or (isinstance(out, tuple | list) and all(map(is_array, out))):
            found += ", z without log_q"
        yield Fault("encode", found, "an Encoding of latents and log_q", remedy)
        return
    yield from _latents_faults(out, blocks, batch_size)
    num_groups = sum(block.num_groups for block in blocks)
    shape = (batch_size, num_groups)
    yield from log_density_faults(
        "encode",
        "log_q",
        out.log_q,
        shape,
        batch_size,
        {
            (batch_size,): "give it a group axis, one column per group",
            (num_groups, batch_size): "transpose it",
        },
    )


def posterior_fault(out: Any, batch_size: int) -> Fault | None:
    """Says what an encoder returned that is no distribution."""
    if hasattr(out, "sample") and hasattr(out, "log_prob"):
        return None
    found = f"the encoder returns {shown(out, batch_size)}"
    if isinstance(out, tuple | list) and all(map(is_array, out)):
        found += " of arrays"
    remedy = "return ncp_jax.Normal(mean, std); for a log variance v std = exp(0.5 * v)"
    return Fault("encode", found, "q(z | x), a Normal", remedy)


def _latents_faults(
    out: Encoding, blocks: Sequence[Block], batch_size: int
) -> Iterator[Fault]:
    latents, n = out.latents, len(blocks)
    expected = "a tuple of one array [num_groups, B, *latent_shape] per block"
    if not isinstance(latents, tuple | list):
        found = f"latents is {shown(latents, batch_size)}"
        yield Fault("encode", found, expected, "put it into a tuple, (z,)")
        return
    if len(latents) != n:
        found = f"latents has {len(latents)} arrays where `blocks` has {n}"
        yield Fault("encode", found, expected, "return one array for each block")
        return
    for b, (z, block) in enumerate(zip(latents, blocks, strict=True)):
        fault = _group_latents_fault(b, z, block, batch_size)
        if fault:
            yield fault


def _group_latents_fault(b: int, z: Any, block: Block, batch_size: int) -> Fault | None:
    n, inner = block.num_groups, tuple(block.latent_shape)
    shape = (n, batch_size, *inner)
    where, found = "encode", f"latents[{b}] is {shown(z, batch_size)}"
    expected = f"float32{shown_shape(shape, batch_size)}, as block {b} declares"
    if not is_array(z):
        return Fault(where, found, expected, "return an array")
    if z.shape == shape:
        if is_floating(z):
            return None
        return Fault(where, found, expected, "draw real z; discrete ones are unknown")
    if z.shape == (batch_size, *inner):
        found += ", without a group axis"
        remedy = "put it in front, z[None], or stack the groups on axis 0"
    elif z.shape == (batch_size, n, *inner):
        found += ", the batch before the groups"
        remedy = "swap its first two axes"
    elif z.shape[1:] == (batch_size, *inner):
        found += f", {z.shape[0]} groups"
        remedy = "mend num_groups of the block, or return all of its groups"
    elif z.shape[:2] == (n, batch_size):
        found += ", of another latent_shape"
        remedy = "mend latent_shape of the block, or reshape z"
    else:
        remedy = "stack the groups of the block on axis 0, the batch on axis 1"
    return Fault(where, found, expected, remedy)


def log_density_faults(
    where: str,
    name: str,
    value: Any,
    shape: tuple[int, ...],
    batch_size: int,
    remedies: dict[tuple[int, ...], str],
) -> Iterator[Fault]:
    """Compares a log density with its shape and with float32.

    Args:
      where: the method.
      name: of the density.
      value: that was returned.
      shape: that it should have.
      batch_size: B.
      remedies: for some wrong shapes, what to do.
    """
    expected = f"float32{shown_shape(shape, batch_size)}, in nats"
    found = f"{name} is {shown(value, batch_size)}"
    if not is_array(value):
        yield Fault(where, found, expected, "return an array")
    elif value.shape != shape:
        remedy = remedies.get(value.shape, "sum over the latent axes and no other")
        yield Fault(where, found, expected, remedy)
    elif value.dtype not in PRECISE:
        yield Fault(where, found, expected, "cast before the sum to float32")


def log_prob_faults(
    where: str, whose: str, distribution: Any, value: Array, batch_size: int
) -> Iterator[Fault]:
    """Compares what `log_prob` of a distribution gives for draws with [B].

    Args:
      where: the method that returned it.
      whose: the distribution, in words.
      distribution: inside the trace.
      value: [B, ...] draws.
      batch_size: B.
    """
    where_called = f"{where}, log_prob of {whose}"
    try:
        log_prob = distribution.log_prob(value)
    except Exception as error:
        yield failure(where_called, error)
        return
    yield from log_density_faults(
        where_called,
        "it",
        log_prob,
        (batch_size,),
        batch_size,
        {(): "keep the batch axis"},
    )


def carry_faults(
    where: str, before: PyTree, after: PyTree, batch_size: int
) -> Iterator[Fault]:
    """Compares the carry that `absorb` was given with the one that it returned.

    Args:
      where: the method and the block.
      before: the carry as `ShapeDtypeStruct`.
      after: what was returned.
      batch_size: B.
    """
    expected = "the structure, shapes and dtypes that it was given"
    remedy = "let `root` give every part its last shape, since a block is one scan"
    old: Any = jax.tree.structure(before)
    new: Any = jax.tree.structure(after)
    if old != new:
        found = f"the carry changes its structure from {old} to {new}"
        yield Fault(where, found.replace("PyTreeDef", ""), expected, remedy)
        return
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    )
    for (path, a), b in pairs:
        b = b if is_array(b) else jax.eval_shape(lambda b=b: jnp.asarray(b))
        if a.shape != b.shape or not (a.dtype == b.dtype or _widens(a, b)):
            name = (
                f"leaf {jax.tree_util.keystr(path)} of the carry" if path else "carry"
            )
            found = f"{name} is {shown(a, batch_size)} before and "
            found += f"{shown(b, batch_size)} after"
            yield Fault(where, found, expected, remedy)


def _widens(before: Any, after: Any) -> bool:
    """Whether a scan turns a Python number's dtype into that of what follows it."""
    try:
        widest = jnp.promote_types(before.dtype, after.dtype)
    except ValueError:  # strict promotion
        return False
    return before.weak_type and widest == after.dtype
