"""What courses of Markov chains are worth, and whether their means are right."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.evaluation.importance import autocovariance
from ncp_jax.priors.ncp_prior import LogRatio

Array = jax.Array

NUM_COORDINATES = 8  # of z, among the functions whose means are measured
NUM_WEIGHTED = 2**18  # proposals whose weighted means are the reference
CHUNK = 2**10  # of them at a time


class Reference(NamedTuple):
    """Means under the target with their standard errors; each [F]."""

    mean: np.ndarray
    stderr: np.ndarray


def functions(log_r: LogRatio, z: Array) -> Array:
    """Log r, |z|^2 and the first coordinates of z [B, ...]: [B, F]."""
    flat = z.reshape(len(z), -1)
    norm = jnp.sum(flat**2, 1)
    return jnp.column_stack([log_r(z), norm, flat[:, :NUM_COORDINATES]])


def function_names(num_functions: int) -> list[str]:
    """Of `functions`, in their order."""
    return ["log r", "|z|^2", *(f"z_{i}" for i in range(num_functions - 2))]


def effective_draws(course: np.ndarray) -> np.ndarray:
    """How many independent draws B chains of a function are worth together.

    B T / (1 + 2 sum of autocorrelations), the sum cut where pairs of them turn negative
    and its pairs made to fall: Geyer, "Practical Markov chain Monte Carlo" (1992).
    The variance is that of the chains put together, so that chains which disagree are
    worth less (Vehtari et al., "Rank-normalization, folding, and localization", 2021).
    Unlike `importance.chain_ess` it may exceed B T: draws of HMC can
    alternate, and their mean is then better than that of independent ones.

    Args:
      course: [..., B, T] a number at every step of stationary chains.

    Returns:
      [...], at most B T log10(B T); 1 where nothing ever moves.
    """
    num_chains, num_steps = course.shape[-2:]
    means = course.mean(-1, keepdims=True)
    covariance = autocovariance(course).mean(-2) / num_steps  # [..., T]
    within = covariance[..., :1] * num_steps / (num_steps - 1)
    between = means[..., 0].var(-1, keepdims=True) * num_chains / max(num_chains - 1, 1)
    total = covariance[..., :1] + between
    is_still = total[..., 0] <= 0
    rho = 1 - (within - covariance) / np.where(total > 0, total, 1.0)
    rho[..., 0] = 1.0
    even = num_steps - num_steps % 2
    pairs = np.maximum(rho[..., 0:even:2] + rho[..., 1:even:2], 0.0)
    num_draws = num_chains * num_steps
    time = 2 * np.minimum.accumulate(pairs, -1).sum(-1) - 1
    ess = num_draws / np.maximum(time, 1 / math.log10(num_draws))
    return np.where(is_still, 1.0, ess)


def reference(log_r: LogRatio, latent_shape: tuple[int, ...], key: Array) -> Reference:
    """Means of `functions` by proposals from N(0, I), weighted by r; no chain."""

    def chunk(i: Array) -> Array:
        z = jax.random.normal(rng.at_step(key, i), (CHUNK, *latent_shape))
        return functions(log_r, z)

    found = jax.jit(lambda: jax.lax.map(chunk, jnp.arange(NUM_WEIGHTED // CHUNK)))()
    values = np.asarray(found, np.float64).reshape(NUM_WEIGHTED, -1)  # [N, F]
    log_w = values[:, 0]
    weights = np.exp(log_w - log_w.max())
    weights /= weights.sum()
    mean = weights @ values
    return Reference(mean, np.sqrt(weights**2 @ (values - mean) ** 2))


def deviations(course: np.ndarray, ess: np.ndarray, expected: Reference) -> np.ndarray:
    """|mean - reference| of courses [F, B, T], in standard errors of both: [F]."""
    variance = course.var((1, 2)) / ess
    error = np.sqrt(variance + expected.stderr**2)
    return np.abs(course.mean((1, 2)) - expected.mean) / error
