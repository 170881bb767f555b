"""What can be said of a VAE before any method is called."""

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ncp_jax.models.base import Block, FrozenVAE
from ncp_jax.models.contract.abstract_calls import (
    Fault,
    failure,
    is_array,
    is_number_or_array,
)

METHODS = {
    "encode": "encode(x, key)",
    "root": "root(batch_size)",
    "prior": "prior(block, k, carry)",
    "absorb": "absorb(block, k, carry, z_k)",
    "decode": "decode(carry)",
}
A_BLOCK = "Block(num_groups, latent_shape, context_shape)"


def kind_fault(vae: Any) -> Fault | None:
    """A fault that leaves nothing else to ask: a class or a Linen module, or None."""
    where, remedy = "the VAE", "pass FrozenVAE(module, variables)"
    if inspect.isclass(vae):
        found = f"{vae.__name__} is a class"
        return Fault(where, found, "a model with its variables", "pass an instance")
    if isinstance(vae, nn.Module):
        found = f"{type(vae).__name__} is a Linen module, which is no pytree"
        return Fault(where, found, "a model that holds its variables", remedy)
    if isinstance(vae, FrozenVAE) and not isinstance(vae.module, nn.Module):
        found = f"module of the FrozenVAE is a {_kind(vae.module)}"
        remedy += "; other models need no FrozenVAE, only a pytree"
        return Fault(where, found, "an instance of a Linen module", remedy)
    return None


def member_faults(vae: Any) -> Iterator[Fault]:
    """Methods that are missing, and `blocks`."""
    owner = vae.module if isinstance(vae, FrozenVAE) else vae
    for name, call in METHODS.items():
        if callable(getattr(owner, name, None)):
            continue
        found = f"{_kind(owner)} has no method `{name}`"
        yield Fault(name, found, f"the method {call}", "add it, see models.base")


def blocks_of(vae: Any) -> tuple[Any, Exception | None]:
    """`blocks` and None, or None and what reading them raised."""
    try:
        return vae.blocks, None
    except Exception as error:
        return None, error


def blocks_failure(vae: Any, error: Exception) -> Fault:
    """Says that `blocks` could not be read."""
    owner = vae.module if isinstance(vae, FrozenVAE) else vae
    if isinstance(error, AttributeError) and not hasattr(type(owner), "blocks"):
        found, expected = f"{_kind(owner)} has no `blocks`", f"a tuple of {A_BLOCK}"
        remedy = (
            "add it as an attribute or property; or, of one latent vector under "
            "N(0, I), give ncp_jax.EncoderDecoder(encoder, decoder, variables, "
            "latent_shape), which needs nothing else"
        )
        return Fault("blocks", found, expected, remedy)
    return failure("blocks", error)


def block_faults(blocks: Any) -> Iterator[Fault]:
    """What is wrong with the declared groups."""
    expected, where = f"a tuple of {A_BLOCK}", "blocks"
    if isinstance(blocks, Block):
        yield Fault(where, "it is one Block", expected, "write (block,)")
    elif not isinstance(blocks, tuple):
        remedy = "make it a property" if callable(blocks) else "write tuple(blocks)"
        yield Fault(where, f"it is a {_kind(blocks)}", expected, remedy)
    elif not blocks:
        yield Fault(where, "it is empty", expected, "declare at least one group")
    else:
        for b, block in enumerate(blocks):
            yield from _one_block_faults(f"blocks[{b}]", block)


def _one_block_faults(where: str, block: Any) -> Iterator[Fault]:
    if not isinstance(block, Block):
        found = f"it is a {_kind(block)}"
        yield Fault(where, found, A_BLOCK, "build it from models.base.Block")
        return
    if not _is_size(block.num_groups, 1):
        found = f"num_groups is {block.num_groups!r}"
        yield Fault(where, found, "an int of 1 or more", "count the block's groups")
    for name, least in (("latent_shape", 1), ("context_shape", 0)):
        shape = getattr(block, name)
        is_shape = isinstance(shape, tuple) and all(_is_size(n, least) for n in shape)
        if not is_shape:
            remedy = "write (size,) for a vector"
            if isinstance(shape, tuple) and 0 in shape:
                remedy = "leave empty groups out"
            yield Fault(
                where,
                f"{name} is {shape!r}",
                f"a tuple of ints of {least} or more, without the batch",
                remedy,
            )
        elif 0 in shape and shape != (0,):
            yield Fault(
                where,
                f"{name} is {shape}, which is empty",
                "(0,) where there is nothing to condition on",
                "declare (0,) and return a context [B, 0]",
            )


def pytree_faults(vae: Any) -> Iterator[Fault]:
    """Why `jit` cannot take the model as an argument."""
    where, kind = "the VAE", _kind(vae)
    leaves = jax.tree_util.tree_leaves_with_path(vae)
    expected = "a pytree whose leaves are arrays or numbers"
    if leaves and leaves[0][0] == ():
        remedy = "decorate a frozen dataclass with jax.tree_util.register_dataclass"
        yield Fault(
            where, f"{kind} is no pytree, `jit` cannot take it", expected, remedy
        )
        return
    odd = [(path, leaf) for path, leaf in leaves if not is_number_or_array(leaf)]
    for path, leaf in odd:
        found = f"{jax.tree_util.keystr(path)} is a {_kind(leaf)}"
        remedy = 'make it static, dataclasses.field(metadata={"static": True})'
        yield Fault(where, f"{found}, `jit` cannot take it", expected, remedy)
    if odd:
        return
    try:
        jax.eval_shape(lambda _: (), vae)
    except ValueError as error:
        if "metadata" in str(error):
            found = f"a static part of {kind} holds an array, `jit` cannot compare it"
            remedy = "make arrays leaves and keep numbers, strings and tuples static"
            yield Fault(where, found, expected, remedy)


def _is_size(value: Any, least: int) -> bool:
    if isinstance(value, bool | np.bool_) or (is_array(value) and np.ndim(value)):
        return False
    try:
        return operator.index(value) >= least
    except TypeError:
        return False


def _kind(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else type(value).__name__
