"""Whether a VAE and a discriminator can make an NCP prior, in plain sentences.

Every method is called on shapes alone, so a check compiles nothing and takes about as
long as tracing the model twice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.base import EncoderDecoder
from ncp_jax.models.contract import declarations, methods, networks, side_effects
from ncp_jax.models.contract.abstract_calls import (
    Fault,
    Outcome,
    free_batch_size,
    is_array,
)
from ncp_jax.models.stacks import stack_blocks


def check(vae: Any, x: Any = None) -> None:
    """Raises `InputError` that lists what stands between a VAE and an NCP prior.

    `blocks` and the five methods of `models.base.LatentVariableModel` are asked, on
    shapes alone, with a batch size that occurs nowhere else.  What shows in numbers
    only is not seen, such as draws that depend on the other examples of their batch.

    Args:
      vae: the frozen model; a Linen module goes into `FrozenVAE` first.
      x: [B, *data_shape] floats as `prepare` makes them, or their shape and dtype; any
        B.  Numbers are read in one case: Bernoulli pixels must lie in [0, 1].  None
        where the VAE is only drawn from: then `encode` is not asked.

    Raises:
      InputError: with a sentence per fault: where, what was found, what was expected
        and what to do.
    """
    if fault := declarations.kind_fault(vae):
        _refuse(vae, [Outcome([fault], None, None)])
        return
    blocks, error = declarations.blocks_of(vae)
    of_blocks = list(declarations.block_faults(blocks))
    if error is not None:
        of_blocks = [declarations.blocks_failure(vae, error)]
    of_pytree = list(declarations.pytree_faults(vae))
    told = [*declarations.member_faults(vae), *of_blocks, *of_pytree, *_x_faults(x)]
    outcomes, batch_size = [Outcome(told, None, error)], 0
    if (x is None or (is_array(x) and x.ndim)) and not of_blocks:
        num_groups = sum(block.num_groups for block in blocks)
        batch_size = free_batch_size(() if of_pytree else vae, x, blocks, num_groups)
        subject = methods.Subject(vae, not of_pytree, blocks, batch_size, x)
        top_down, mean = methods.top_down(subject)
        if x is not None:
            is_single = mean is not None and mean.shape[1:] == x.shape
            of_example = x.shape if is_single else x.shape[1:]
            outcomes.append(methods.encode(subject, of_example))
        outcomes += top_down
        kept = list(side_effects.leaks(outcomes))
        outcomes.append(Outcome(kept, None, None))
    _refuse(vae, outcomes, batch_size)


def check_discriminator(vae: Any, discriminator: Any) -> None:
    """Raises `InputError` that lists the groups a discriminator cannot tell apart.

    Args:
      vae: a model that passes `check`; only its `blocks` are asked.
      discriminator: (z_k, context) -> log r_k, a Linen module with `embed` and
        `log_ratio` as `models.discriminator` describes them.

    Raises:
      InputError: with a sentence per fault.
    """
    blocks, error = declarations.blocks_of(vae)
    faults = list(declarations.block_faults(blocks))
    if error is not None:
        faults = [declarations.blocks_failure(vae, error)]
    faults += networks.network_faults(discriminator)
    outcomes, batch_size = [Outcome(faults, None, error)], 0
    if not faults:
        batch_size = free_batch_size(blocks)
        outcomes += [
            networks.discriminate(discriminator, stack, batch_size)
            for stack in stack_blocks(blocks)
        ]
    _refuse(discriminator, outcomes, batch_size)


def _x_faults(x: Any) -> Iterator[Fault]:
    if x is None:
        return
    expected = "floats [B, *data_shape], as `prepare` makes them"
    if not is_array(x):
        yield Fault("x", f"it is a {type(x).__name__}", expected, "pass an array")
    elif not x.ndim:
        yield Fault("x", "it has no batch axis", expected, "pass x[None]")
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        remedy = "pass what `prepare` returns, not what is stored"
        yield Fault("x", f"it is {x.dtype}", expected, remedy)


def _refuse(subject: Any, outcomes: Sequence[Outcome], batch_size: int = 0) -> None:
    """Raises with the faults, each once, and the first error as their cause."""
    faults = list(dict.fromkeys(f for outcome in outcomes for f in outcome.faults))
    if not faults:
        return
    name = getattr(subject, "__name__", type(subject).__name__)
    if module := getattr(subject, "module", None):
        name += f"({type(module).__name__})"
    number = "one thing" if len(faults) == 1 else f"{len(faults)} things"
    asked = f" (asked with B = {batch_size})" if batch_size else ""
    lines = [f"{name} cannot be used, {number} to mend{asked}:", *map(str, faults)]
    cause = next((o.error for o in outcomes if o.error is not None), None)
    if cause is not None and isinstance(subject, EncoderDecoder):
        lines.append("the calls are encoder(variables, x) and decoder(variables, z).")
    raise InputError("\n- ".join(lines)) from cause
