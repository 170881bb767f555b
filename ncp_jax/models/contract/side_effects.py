"""Whether a method changes its model, its arguments or what lies outside of it."""

import dataclasses
import functools
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ncp_jax.models.contract.abstract_calls import Fault, Outcome, leak_fault

MAX_DEPTH = 6  # of attributes and containers inside each other


def call(where: str, model: Any, method: str, *args: Any) -> tuple[list[Fault], Any]:
    """Calls a method and says what it changed.

    Args:
      where: the method and the block, for the sentence.
      model: the VAE.
      method: its name.
      *args: its arguments.

    Returns:
      The faults, and what the method returned.
    """
    before, given = list(held(model)), list(held(args))
    out = getattr(model, method)(*args)
    expected, remedy = "a pure method", "return new state in the carry"
    faults = []
    if path := changed(before, list(held(model))):
        found = f"it changes the model's {path.lstrip('.')} (a side effect)"
        faults.append(Fault(where, found, expected, remedy))
    if changed(given, list(held(args))):
        found = "it changes its argument in place (a side effect)"
        faults.append(Fault(where, found, expected, remedy))
    return faults, out


def leaks(outcomes: Sequence[Outcome]) -> Iterator[Fault]:
    """Names the calls whose traced arrays somebody still holds."""

    def is_alive(outcome: Outcome) -> bool:
        return any(array() is not None for array in outcome.inputs)

    if any(map(is_alive, outcomes)):
        gc.collect()  # modules and their scopes hold each other
    yield from (leak_fault(o.where) for o in outcomes if is_alive(o))


def held(value: Any, depth: int = MAX_DEPTH) -> Iterator[tuple[str, Any]]:
    """Everything that an object's attributes and containers hold, by path."""
    if isinstance(value, dict):
        parts = {f"[{key!r}]": part for key, part in value.items()}
    elif isinstance(value, list | tuple | set):
        parts = {f"[{i}]": part for i, part in enumerate(value)}
    elif depth == MAX_DEPTH or _has_state(value):
        parts = {f".{key}": part for key, part in _attributes(value).items()}
        if not parts:  # its state is in slots, as of NNX variables
            leaves = jax.tree_util.tree_leaves_with_path(value)
            parts = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    else:
        parts = {}
    if not parts or not depth:
        yield "", value
        return
    yield "", len(parts)
    for name, part in parts.items():
        yield from ((name + path, leaf) for path, leaf in held(part, depth - 1))


def changed(before: list[tuple[str, Any]], after: list[tuple[str, Any]]) -> str:
    """The path of the first thing that differs between two lists of `held`, or ''."""
    old, new = dict(before), dict(after)
    differing = (p for p in {**new, **old} if p and not _same(old, new, p))
    return next(differing, "")


def _same(old: dict[str, Any], new: dict[str, Any], path: str) -> bool:
    if path not in old or path not in new:
        return False
    a, b = old[path], new[path]
    plain = (int, float, str, bool, type(None))
    return a is b or (isinstance(a, plain) and type(a) is type(b) and a == b)


def _attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes, and the containers that its class shares."""
    shared = {
        name: part
        for owner in reversed(type(value).__mro__)
        for name, part in vars(owner).items()
        if not name.startswith("__") and isinstance(part, list | dict | set)
    }
    own = {
        name: part
        for name, part in getattr(value, "__dict__", {}).items()
        if not isinstance(getattr(type(value), name, None), functools.cached_property)
    }
    return shared | own


def _has_state(value: Any) -> bool:
    """Whether to look inside: a registered pytree or a dataclass, but no array."""
    if isinstance(value, type | jax.Array | np.ndarray | nn.Module):
        return False
    return dataclasses.is_dataclass(value) or not jax.tree_util.all_leaves([value])
