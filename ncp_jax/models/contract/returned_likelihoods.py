"""What `decode` may return, and what is wrong if not."""

from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax.models.contract.abstract_calls import (
    Fault,
    failure,
    is_array,
    shown,
    shown_shape,
)
from ncp_jax.models.contract.returned_values import log_prob_faults

Array = jax.Array


def likelihood_faults(
    out: Any, x_shape: tuple[int, ...] | None, batch_size: int, key: Array
) -> tuple[list[Fault], Array | None]:
    """Compares what `decode` returned with x.

    Args:
      out: what was returned, inside the trace.
      x_shape: of the x that `check` was given; None where it was given none.
      batch_size: B.
      key: PRNG key; nothing is drawn.

    Returns:
      The faults, and the mean if there is one.
    """
    where = "decode"
    if fault := _likelihood_member_fault(out, batch_size):
        return [fault], None
    x_shape = out.mean.shape if x_shape is None else x_shape
    if out.mean.shape == (batch_size, *x_shape):  # then x is one example
        found, remedy = f"its shape is {x_shape}, without a batch axis", "pass x[None]"
        expected = f"{shown_shape(out.mean.shape, batch_size)}, as `decode` makes it"
        return [Fault("x", found, expected, remedy)], out.mean
    shape = (batch_size, *x_shape[1:])
    expected = f"float32{shown_shape(shape, batch_size)}, the shape of x"
    if out.mean.shape != shape:
        found = f"mean of the likelihood is {shown(out.mean, batch_size)}"
        remedy = "reshape the decoder's output, or pass the x that the VAE was made for"
        return [Fault(where, found, expected, remedy)], out.mean
    value = jnp.zeros(shape, out.mean.dtype)
    faults = list(log_prob_faults(where, "the likelihood", out, value, batch_size))
    where_called = f"{where}, sample of the likelihood"
    try:
        draw = out.sample(key)
    except Exception as error:
        return [*faults, failure(where_called, error)], out.mean
    if not is_array(draw) or draw.shape != shape:
        found = f"it gives {shown(draw, batch_size)}"
        remedy = "draw one x for each example"
        faults.append(Fault(where_called, found, expected, remedy))
    return faults, out.mean


def _likelihood_member_fault(out: Any, batch_size: int) -> Fault | None:
    """Whether it is a distribution, with all that a likelihood has."""
    members = ("mean", "log_prob", "sample")
    expected = "a distribution of x with mean, log_prob and sample"
    if is_array(out) or not any(hasattr(out, name) for name in members[1:]):
        found = f"it returns {shown(out, batch_size)}" + (
            ", bare parameters" if is_array(out) else ""
        )
        remedy = "wrap it, as with models.distributions.Bernoulli(logits)"
        return Fault("decode", found, expected, remedy)
    missing = [name for name in members if not hasattr(out, name)]
    if missing:
        kind = type(out).__name__
        found = f"the likelihood, a {kind}, has no {' and no '.join(missing)}"
        return Fault("decode", found, expected, "add it")
    if not is_array(out.mean):
        found = f"mean of the likelihood is {shown(out.mean, batch_size)}"
        remedy = "make it a property that returns E[x | z]"
        return Fault("decode", found, "an array [B, *data_shape]", remedy)
    return None
