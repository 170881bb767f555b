"""Batch-norm statistics for pictures at a low temperature (NVAE, Sec. 4)."""

from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax.models.nvae.model import NVAE

Array = jax.Array


def readjust_batch_norm(
    module: NVAE,
    variables: Any,
    key: Array,
    temperature: float,
    num_iterations: int = 500,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Re-estimates the decoder's running statistics from draws at a temperature.

    Low temperatures move the decoder's features away from what its running statistics
    were taken of.  Runs in float32 whatever the model's dtype: statistics taken in half
    precision overflow.  For pictures only: draws are no longer those of the model whose
    likelihood was measured.

    Args:
      module: the model.
      variables: its "params" and "batch_stats".
      key: PRNG key of the draws.
      temperature: factor on the prior's standard deviations.
      num_iterations: batches; the running average forgets 5 % at each.
      batch_size: draws per batch.

    Returns:
      The variables with new statistics in the decoder; the encoder's stay.
    """
    exact = module.clone(dtype=jnp.float32, axis_name=None)

    def step(stats: Any, key: Array) -> tuple[Any, None]:
        current = {**variables, "batch_stats": stats}
        _, updated = exact.apply(
            current,
            batch_size,
            key,
            temperature,
            method="generate",
            mutable=["batch_stats"],
        )
        return updated["batch_stats"], None

    with jax.default_matmul_precision("float32"):
        keys = jax.random.split(key, num_iterations)
        stats, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))(
            variables["batch_stats"]
        )
    return {**variables, "batch_stats": stats}
