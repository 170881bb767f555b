"""Effective draws per second on one group: our samplers, BlackJAX's and NumPyro's.

The target is r(z) N(z; 0, I) with random weights.  Every sampler has as many chains,
the same starting points, float32, one device and a compiled loop; its effective draws
are counted by one estimator, and its means compared with those of weighted proposals.
"""

import importlib.util
import math
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.benchmark import alone, our_chains
from ncp_jax.benchmark.our_chains import Chain
from ncp_jax.priors.ncp_prior import LogRatio, Target

Array = jax.Array
Row = dict[str, Any]

NUM_COORDINATES = 8  # of z, among the functions whose means are measured
NUM_WEIGHTED = 2**18  # proposals whose weighted means are the reference
CHUNK = 2**10  # of them at a time


class Reference(NamedTuple):
    """Means under the target with their standard errors; each [F]."""

    mean: np.ndarray
    stderr: np.ndarray


def rows(
    network: nn.Module,
    latent_shape: tuple[int, ...],
    key: Array,
    *,
    num_chains: int,
    num_steps: int,
    num_calls: int,
    step_size: float,
    max_seconds: float,
) -> Iterator[Row]:
    """Runs every sampler that is installed, call by call in turn.

    Args:
      network: the discriminator; its weights are random.
      latent_shape: of z.
      key: PRNG key; consumed here.
      num_chains: B.
      num_steps: of a warm-up, and of one call.
      num_calls: of each sampler, two or more; its chains go on from call to call.
      step_size: lambda at which MALA begins to adapt.
      max_seconds: a sampler is not called again once its calls took that long.

    Yields:
      A row per sampler; see `_Running.row`.
    """
    weights_key = rng.stream(key, "weights")
    variables = alone.random_variables(network, latent_shape, weights_key)

    def log_r(z: Array) -> Array:
        feature = network.apply(variables, jnp.zeros((1, 0)), method="embed")
        return network.apply(variables, z, feature, method="log_ratio")

    target = our_chains.target_of(log_r, latent_shape, num_chains)
    chains = our_chains.all_of(target, step_size, num_steps)
    chains += _others(target, step_size, num_steps)
    z_key, run_key = rng.stream(key, "initial"), rng.stream(key, "run")
    z = jax.random.normal(z_key, (num_chains, *latent_shape))
    expected = reference(log_r, latent_shape, rng.stream(key, "reference"))
    running = [_Running(chain, log_r, run_key, z) for chain in chains]
    for i in range(num_calls):
        for each in running:
            if i < 2 or sum(each.seconds) < max_seconds:
                each.call()
    found = [each.row(expected) for each in running]
    for row in found:
        speed = row["effective_per_second"] / found[0]["effective_per_second"]
        yield {**row, "of_our_mala": speed}


def _others(target: Target, step_size: float, num_steps: int) -> list[Chain]:
    """Of the packages that are installed."""
    found = []
    if importlib.util.find_spec("blackjax") is not None:
        from ncp_jax.benchmark import in_blackjax

        found.append(in_blackjax.mala(target, step_size, num_steps))
    if importlib.util.find_spec("numpyro") is not None:
        from ncp_jax.benchmark import in_numpyro

        found.append(in_numpyro.hmc(target, num_steps))
        found.append(in_numpyro.nuts(target, num_steps))
    return found


class _Running:
    """A sampler, compiled and warmed up, whose calls are timed one by one."""

    def __init__(self, chain: Chain, log_r: LogRatio, key: Array, z: Array):
        self._chain, self._num_calls = chain, 0
        # Others have the keys that `jax.random.key` makes, as their users do.
        self._key = key
        if chain.by != "ours":
            self._key = jax.random.key(rng.numpy_seed(rng.stream(key, "others")))
        self.seconds: list[float] = []
        self._courses: list[np.ndarray] = []  # [F, B, T] of each call
        self._acceptance: list[float] = []
        self._evaluations: list[float] = []
        self._functions = jax.jit(
            lambda z: jax.lax.map(lambda z: functions(log_r, z), z)
        )
        state = chain.start(rng.stream(self._key, "start"), z)
        self.warmup_seconds = 0.0
        if chain.warm_up is not None:
            warm_key = rng.stream(self._key, "warm-up")
            warm_up = jax.jit(chain.warm_up).lower(warm_key, state).compile()
            self.warmup_seconds, state = _timed(warm_up, warm_key, state)
        sample_key = rng.stream(self._key, "first")
        self._sample = jax.jit(chain.sample).lower(sample_key, state).compile()
        # The first is thrown away: what is counted begins where the chain has settled.
        self._state = jax.block_until_ready(self._sample(sample_key, state)[0])

    def call(self) -> None:
        """Goes on for one course, times it and keeps its functions."""
        key = rng.at_step(rng.stream(self._key, "calls"), self._num_calls)
        took, (self._state, course) = _timed(self._sample, key, self._state)
        self._num_calls += 1
        self.seconds.append(took)
        values = self._functions(course.z)  # [T, B, F]
        self._courses.append(np.asarray(values, np.float64).transpose(2, 1, 0))
        if course.acceptance is not None:
            self._acceptance.append(float(course.acceptance))
        self._evaluations.append(float(course.evaluations))

    def row(self, expected: Reference) -> Row:
        """What the calls so far say, of the function with the fewest effective draws.

        Returns:
          `effective_per_second` of all chains with the standard error over calls; the
          largest deviation of a mean from the reference, in its standard errors.
        """
        course = np.concatenate(self._courses, -1)  # [F, B, T of all calls]
        ess = effective_draws(course)  # [F]
        slowest = int(np.argmin(ess))
        of_calls = [
            float(effective_draws(c[slowest])) / seconds
            for c, seconds in zip(self._courses, self.seconds, strict=True)
        ]
        stderr = np.std(of_calls, ddof=1) / math.sqrt(len(of_calls))
        return {
            "sampler": self._chain.sampler,
            "by": self._chain.by,
            "num_chains": course.shape[1],
            "num_steps": course.shape[2],
            "warmup_seconds": self.warmup_seconds,
            "seconds": sum(self.seconds),
            "evaluations": float(np.mean(self._evaluations)),
            "acceptance": float(np.mean(self._acceptance))
            if self._acceptance
            else None,
            "ess": float(ess[slowest]),
            "slowest": function_names(len(ess))[slowest],
            "effective_per_second": float(ess[slowest]) / sum(self.seconds),
            "stderr": float(stderr),
            "num_calls": len(of_calls),
            "means_off": float(np.max(deviations(course, ess, expected))),
        }


def _timed(compiled: Any, *args: Any) -> tuple[float, Any]:
    begin = perf_counter()
    out = jax.block_until_ready(compiled(*args))
    return perf_counter() - begin, out


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
    spectrum = np.abs(np.fft.rfft(course - means, 2 * num_steps)) ** 2
    covariance = np.fft.irfft(spectrum)[..., :num_steps].mean(-2) / num_steps  # [.., T]
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
