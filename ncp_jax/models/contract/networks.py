"""What is asked of a discriminator, for one stack of groups of equal shape."""

import inspect
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.contract.abstract_calls import Fault, Outcome, failure, shown, trace
from ncp_jax.models.contract.returned_values import log_density_faults
from ncp_jax.models.stacks import Stack

Array = jax.Array
METHODS = {
    "__call__": "__call__(z, context)",
    "embed": "embed(context)",
    "log_ratio": "log_ratio(z, feature)",
}


def network_faults(discriminator: Any) -> Iterator[Fault]:
    """What can be said of a discriminator before it is called."""
    where, remedy = "the discriminator", "see models.discriminator"
    if inspect.isclass(discriminator) or not isinstance(discriminator, nn.Module):
        is_class = inspect.isclass(discriminator)
        kind = "class" if is_class else type(discriminator).__name__
        remedy = "pass an instance" if is_class else remedy
        yield Fault(where, f"it is a {kind}", "an instance of a Linen module", remedy)
        return
    name = type(discriminator).__name__
    for method, call in METHODS.items():
        if not callable(getattr(discriminator, method, None)):
            found = f"{name} has no method `{method}`"
            yield Fault(method, found, f"the method {call}", remedy)
    try:
        hash(discriminator)
    except TypeError as error:
        found = f"{name} cannot be hashed, {error}"
        yield Fault(where, found, "a static argument of `jit`", "make lists tuples")


def discriminate(discriminator: nn.Module, stack: Stack, batch_size: int) -> Outcome:
    """Initialises the network for a stack's shapes and weighs proposals with it.

    Args:
      discriminator: one that has no `network_faults`.
      stack: the groups.
      batch_size: B.
    """
    named = ", ".join(map(str, stack.blocks))
    where = f"{type(discriminator).__name__} for block{'s'[: len(stack.blocks) > 1]} "
    where += f"{named} (latent_shape {stack.latent_shape}, "
    where += f"context_shape {stack.context_shape})"

    def body(_: Any, key: Array, z: Array, context: Array) -> tuple[Any, None]:
        variables = discriminator.init(key, z[:1], context[:1])
        if set(variables) != {"params"}:
            found = f"its collections of variables are {sorted(variables)}"
            expected = "params alone, which stage 2 trains"
            remedy = "keep no running statistics, and have weights"
            return [Fault(where, found, expected, remedy)], None
        return list(_answer_faults(discriminator, where, variables, z, context)), None

    shapes = (
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
        for shape in (stack.latent_shape, stack.context_shape)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    outcome = trace(where, None, False, body, key, *shapes)
    if outcome.error is None:
        return outcome
    fault = failure(where, outcome.error)
    if isinstance(outcome.error, InputError):
        fault = fault._replace(found=str(outcome.error))
    if len(stack.latent_shape) != 3:
        fault = fault._replace(
            expected="a network that reads such groups",
            remedy="for vectors take models.discriminator.MLPDiscriminator",
        )
    return outcome._replace(faults=[*outcome.faults, fault])


def _answer_faults(
    discriminator: nn.Module, where: str, variables: Any, z: Array, context: Array
) -> Iterator[Fault]:
    """Compares log r [B] of the whole network, and of its two steps."""
    batch_size = z.shape[0]
    feature = discriminator.apply(variables, context, method="embed")
    for leaf in jax.tree.leaves(feature):
        if jnp.shape(leaf)[:1] != (batch_size,):
            found = f"`embed` returns {shown(leaf, batch_size)}"
            remedy = "broadcast it to the batch, also for an empty context"
            yield Fault(where, found, "features that lead with [B]", remedy)
            return
    answers = {
        "`log_ratio`": discriminator.apply(variables, z, feature, method="log_ratio"),
        "`__call__`": discriminator.apply(variables, z, context),
    }
    remedies: dict[tuple[int, ...], str] = {
        (batch_size, 1): "drop the last axis, [:, 0]"
    }
    for name, value in answers.items():
        yield from log_density_faults(
            where, f"{name} returns", value, (batch_size,), batch_size, remedies
        )
