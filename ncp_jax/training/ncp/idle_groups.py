"""Groups that have nothing to read: neither trained nor validated, kept as they began.

Their log r is 0, so what they would measure is known.  Checkpoints and metrics hold
all K groups whatever is trained; until `join` a stack is in two parts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel
from ncp_jax.models import stacks
from ncp_jax.models.base import Block
from ncp_jax.training.loop import Metrics, PyTree
from ncp_jax.training.ncp import held_out, nce
from ncp_jax.training.ncp.held_out import Sums
from ncp_jax.training.ncp.nce import GroupState

Array = jax.Array


class Rows(NamedTuple):
    """The rows of one stack, numbers from 0 on, each in one of the two."""

    used: tuple[int, ...]
    idle: tuple[int, ...]


def rows_of(
    blocks: Sequence[Block], groups: Sequence[int] | None = None
) -> tuple[Rows, ...]:
    """Returns which rows of every stack are trained.

    Args:
      blocks: of the model.
      groups: numbers, of 0 .. K-1, of the groups that are; None for all.
    """
    are_used = [
        np.isin(of_stack, of_stack if groups is None else np.array(groups))
        for of_stack in stacks.numbers(blocks)
    ]
    return tuple(
        Rows(*(tuple(np.flatnonzero(which).tolist()) for which in (is_used, ~is_used)))
        for is_used in are_used
    )


def used(tree: PyTree, rows: Rows) -> PyTree:
    """The rows that are trained of arrays [n, ...]; the arrays themselves if all."""
    return pick(tree, rows.used) if rows.idle else tree


def pick(tree: PyTree, rows: tuple[int, ...]) -> PyTree:
    """Some rows of arrays [n, ...]."""
    index = np.array(rows, np.int32)
    return jax.tree.map(lambda leaf: leaf[index], tree)


def join(of_used: PyTree, of_idle: PyTree, rows: Rows) -> PyTree:
    """Puts the rows of both parts where they were: arrays [n, ...].

    Args:
      of_used: arrays [number of used rows, ...]; padding after them is left out.
      of_idle: the same of idle rows; not looked at where there are none.
      rows: of the stack.
    """
    if not rows.idle:
        return jax.tree.map(lambda leaf: leaf[: len(rows.used)], of_used)
    if not rows.used:
        return of_idle
    order = np.argsort([*rows.used, *rows.idle])

    def whole(used: Any, idle: Any) -> Any:
        xp = np if isinstance(used, np.ndarray) else jnp
        return xp.concatenate([used[: len(rows.used)], idle])[order]

    return jax.tree.map(whole, of_used, of_idle)


def learned(rows: Rows, num_negatives: int, **weights: float) -> Metrics:
    """What an update says of idle rows: [n] each, nats.

    Args:
      rows: of the stack.
      num_negatives: prior draws of each example.
      **weights: of the losses, as of `nce.losses_of`.
    """
    logit_q, logit_p = jnp.zeros(1), jnp.zeros(num_negatives)
    _, metrics = nce.losses_of(logit_q, logit_p, is_shared=False, **weights)
    metrics["gradient_norm"] = jnp.zeros(())
    return {name: jnp.full(len(rows.idle), value) for name, value in metrics.items()}


def sums(mask: Array, num_negatives: int, **weights: float) -> Sums:
    """`held_out.sums` of one group with log r = 0 over a batch with this mask [B]."""
    logit_q = jnp.zeros(mask.shape)
    logit_p = jnp.zeros(len(mask) * num_negatives)
    losses, _ = nce.losses_of(logit_q, logit_p, is_shared=False, **weights)
    return held_out.sums(losses, logit_q, logit_p, mask)


def repeated(of_one: Sums, rows: Rows) -> Sums:
    """The same for every idle row: fields [batches, n]."""
    num_idle = len(rows.idle)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], num_idle, 1), of_one)


def over_stacks(
    mesh: Mesh,
    function: Callable[..., Any],
    of_stacks: tuple[Rows, ...],
    groups: tuple[GroupState, ...],
    *per_stack: Any,
) -> list[Any]:
    """Applies a function of one stack's trained rows to every stack; None of no row."""
    return [
        parallel.over_device_groups(
            mesh, function, stack, *(used(tree, rows) for tree in trees)
        )
        if rows.used
        else None
        for rows, stack, *trees in zip(of_stacks, groups, *per_stack, strict=True)
    ]


def per_group(
    mesh: Mesh,
    blocks: tuple[Block, ...],
    metrics: Sequence[Metrics],
    of_idle: Sequence[Metrics],
    of_stacks: tuple[Rows, ...],
) -> dict[str, Array]:
    """Joins metrics of stacks, [padded n] each, to [K] in the model's order."""
    whole = [
        join(parallel.join(mesh, trained), idle, rows)
        for trained, idle, rows in zip(
            metrics, of_idle or metrics, of_stacks, strict=True
        )
    ]
    return jax.tree.map(
        lambda *parts: jnp.concatenate(parts), *stacks.by_block(blocks, whole)
    )
