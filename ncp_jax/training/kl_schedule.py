"""Warm-up and balancing of NVAE's KL terms (its Sec. 3.3 and appendix)."""

from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

MIN_COEFFICIENT = 1e-4
KL_OFFSET = 0.01  # nats; keeps the weight of a collapsed group above zero


def kl_coefficient(
    step: Array | int,
    num_steps: int,
    warmup_fraction: float = 0.3,
    constant_fraction: float = 1e-4,
) -> Array:
    """Returns the weight of the KL: linear from 1e-4 to 1, constant at first.

    Args:
      step: [] of training, from 0.
      num_steps: of the whole run.
      warmup_fraction: share of `num_steps` that the rise takes; 0 switches it off.
      constant_fraction: share of `num_steps` before it starts.
    """
    if warmup_fraction == 0.0:
        return jnp.ones(())
    risen = jnp.asarray(step, jnp.float32) - constant_fraction * num_steps
    return jnp.clip(risen / (warmup_fraction * num_steps), MIN_COEFFICIENT, 1.0)


def group_alphas(sizes: Sequence[int]) -> np.ndarray:
    """Returns how much KL balancing expects of each group, relative to the least: [K].

    A scale is the groups of one size, and they share what it holds: alpha = size /
    groups of that size.  Of NVAE, where a scale twice as fine has four times the latent
    variables, that is its 4**scale / groups of the scale.

    Args:
      sizes: latent variables of each of the K groups.
    """
    counts = Counter(sizes)
    alphas = np.array([size / counts[size] for size in sizes])
    return np.asarray(alphas / alphas.min(), np.float32)


def balance_kl(kl: Array, coefficient: Array, alphas: Array | np.ndarray) -> Array:
    """Returns the weighted sum of the groups' KL terms.

    While the coefficient is below 1, a group's KL is weighed by
    gamma_k ~ (mean_B |KL_k| + 0.01) / alpha_k, without gradient and with mean 1 over
    the groups, so that groups which use few nats are penalised less.  From 1 on it is
    the plain sum.

    Args:
      kl: [B, K] nats.
      coefficient: [] from `kl_coefficient`.
      alphas: [K] from `group_alphas`.

    Returns:
      [B] nats.
    """
    size = jnp.mean(jnp.abs(kl), axis=0) + KL_OFFSET
    gamma = size / alphas
    gamma = jax.lax.stop_gradient(gamma / jnp.mean(gamma))
    gamma = jnp.where(coefficient < 1.0, gamma, 1.0)
    return coefficient * jnp.sum(gamma[None] * kl, axis=1)
