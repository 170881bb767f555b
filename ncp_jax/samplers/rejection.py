"""Rejection sampling that ends: the last of T attempts is taken as it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.samplers import chains
from ncp_jax.samplers.resampling import LogRatio, Sample

Array = jax.Array


class RejectionInfo(NamedTuple):
    """What the draws cost."""

    num_attempts: Array  # [B] int32, in 1 .. T


def truncated_rejection(
    keys: Array, sample: Sample, log_a: LogRatio, *, num_attempts: int
) -> tuple[Array, RejectionInfo]:
    """Draws from p until one is accepted, and takes the T-th as it is.

    Bauer & Mnih, "Resampled priors for variational autoencoders" (2019): the draws
    follow p(z) [a(z) (1 - alpha) / Z + alpha], with Z = E_p[a] and
    alpha = (1 - Z)^(T-1), the share of those that nobody accepted.

    Args:
      keys: [B] PRNG keys, one per chain; consumed here.
      sample: keys [B] -> [B, ...] draws from p; draw b depends on key b alone.
      log_a: z [B, ...] -> [B] log of the probability of being accepted; NaN counts as
        -inf.
      num_attempts: T.

    Returns:
      [B, ...] draws and their `RejectionInfo`.
    """
    proposal_keys, accept_keys = (
        rng.stream(keys, name) for name in ("proposals", "accept")
    )

    def is_open(state: tuple[Array, Array, Array]) -> Array:
        _, attempts, t = state
        return jnp.any(attempts == t) & (t < num_attempts)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        z, attempts, t = state
        new = sample(rng.at_step(proposal_keys, t))
        draw = jax.vmap(jax.random.uniform)(rng.at_step(accept_keys, t))
        is_waiting = attempts == t  # nobody was accepted so far
        z = chains.where(is_waiting, new, z)
        is_refused = is_waiting & ~(jnp.log(draw) < log_a(new))
        return z, attempts + is_refused.astype(attempts.dtype), t + 1

    like = jax.eval_shape(sample, keys)
    refused = jnp.zeros(keys.shape, jnp.int32)
    start = jnp.zeros(like.shape, like.dtype), refused, jnp.zeros((), jnp.int32)
    z, refused, _ = jax.lax.while_loop(is_open, attempt, start)
    return z, RejectionInfo(jnp.minimum(refused + 1, num_attempts))
