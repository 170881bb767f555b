"""Effective draws per second on one group: our samplers, BlackJAX's and NumPyro's.

The target is r(z) N(z; 0, I) with random weights.  Every sampler has as many chains,
the same starting points, float32, one device and a compiled loop; its effective draws
are counted by one estimator, and its means compared with those of weighted proposals.
"""

import importlib.util
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.benchmark import alone, timing
from ncp_jax.benchmark.chains import measures, ours
from ncp_jax.benchmark.chains.measures import Reference, effective_draws
from ncp_jax.benchmark.chains.ours import Chain
from ncp_jax.evaluation.importance import mean_estimate
from ncp_jax.priors.ncp_prior import LogRatio, Target

Array = jax.Array
Row = dict[str, Any]


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
      num_calls: of each sampler; its chains go on from call to call.
      step_size: lambda at which MALA begins to adapt.
      max_seconds: a sampler is not called again once its calls took that long.

    Yields:
      A row per sampler; see `_Running.row`.
    """
    weights_key = rng.stream(key, "weights")
    variables = alone.random_variables(network, latent_shape, weights_key)

    log_r = partial(alone.log_ratio, network, variables)
    target = ours.target_of(log_r, latent_shape, num_chains)
    chains = ours.all_of(target, step_size, num_steps)
    chains += _others(target, step_size, num_steps)
    z_key, run_key = rng.stream(key, "initial"), rng.stream(key, "run")
    z = jax.random.normal(z_key, (num_chains, *latent_shape))
    expected = measures.reference(log_r, latent_shape, rng.stream(key, "reference"))
    running = [_Running(chain, log_r, run_key, z) for chain in chains]
    take_turns(running, num_calls, max_seconds)
    found = [each.row(expected) for each in running]
    for row in found:
        yield {**row, "of_our_mala": _ratio(row, found[0])}


def _ratio(row: Row, to: Row) -> dict[str, float | None]:
    """Effective draws per second over those of another row, with its error."""
    value = row["effective_per_second"] / to["effective_per_second"]
    if row is to or row["stderr"] is None or to["stderr"] is None:
        return {"value": value, "stderr": None}
    errors = [each["stderr"] / each["effective_per_second"] for each in (row, to)]
    return {"value": value, "stderr": value * math.hypot(*errors)}


def take_turns(running: list["_Running"], num_calls: int, max_seconds: float) -> None:
    """Calls each in turn, so that a slow minute of the machine is everybody's."""
    for i in range(num_calls):
        for each in running:
            if i < 2 or sum(each.seconds) < max_seconds:
                each.call()


def _others(target: Target, step_size: float, num_steps: int) -> list[Chain]:
    """Of the packages that are installed."""
    found = []
    if importlib.util.find_spec("blackjax") is not None:
        from ncp_jax.benchmark.chains import in_blackjax

        found.append(in_blackjax.mala(target, step_size, num_steps))
    if importlib.util.find_spec("numpyro") is not None:
        from ncp_jax.benchmark.chains import in_numpyro

        found.append(in_numpyro.hmc(target, num_steps))
        found.append(in_numpyro.nuts(target, num_steps))
    return found


class _Running:
    """A sampler, compiled and warmed up, whose calls are timed one by one."""

    def __init__(self, chain: Chain, log_r: LogRatio, key: Array, z: Array):
        self._chain = chain
        self._key = rng.stream(key, f"{chain.by} {chain.sampler}")
        self.seconds: list[float] = []
        self.courses: list[np.ndarray] = []  # [F, B, T] of each call
        self._acceptance: list[float] = []
        self._evaluations: list[float] = []
        self._functions = jax.jit(
            lambda z: jax.lax.map(lambda z: measures.functions(log_r, z), z)
        )
        state = chain.start(self._named("start"), z)
        self.warmup_seconds = 0.0
        if chain.warm_up is not None:
            warm_key = self._named("warm-up")
            warm_up = jax.jit(chain.warm_up).lower(warm_key, state).compile()
            self.warmup_seconds, state = timing.timed(warm_up, warm_key, state)
        first_key = self._named("first")
        self._sample = jax.jit(chain.sample).lower(first_key, state).compile()
        # The first is thrown away: what is counted begins where the chain has settled.
        self._state = jax.block_until_ready(self._sample(first_key, state)[0])

    def _named(self, name: str, call: int = 0) -> Array:
        """A key; the others' are of the kind that `jax.random.key` makes for anyone."""
        key = rng.at_step(rng.stream(self._key, name), call)
        is_ours = self._chain.by == "ours"
        return key if is_ours else jax.random.key(rng.numpy_seed(key))

    def call(self) -> None:
        """Goes on for one course, times it and keeps its functions."""
        key = self._named("calls", len(self.seconds))
        took, (self._state, course) = timing.timed(self._sample, key, self._state)
        self.seconds.append(took)
        values = self._functions(course.z)  # [T, B, F]
        self.courses.append(np.asarray(values, np.float64).transpose(2, 1, 0))
        if course.acceptance is not None:
            self._acceptance.append(float(course.acceptance))
        self._evaluations.append(float(course.evaluations))

    def row(self, expected: Reference) -> Row:
        """What the calls so far say, of the function with the fewest effective draws.

        Returns:
          `effective_per_second` of all chains with the standard error over calls; the
          largest deviation of a mean from the reference, in its standard errors.
        """
        course = np.concatenate(self.courses, -1)  # [F, B, T of all calls]
        ess = effective_draws(course)  # [F]
        slowest = int(np.argmin(ess))
        of_calls = [
            float(effective_draws(c[slowest])) / seconds
            for c, seconds in zip(self.courses, self.seconds, strict=True)
        ]
        rates = self._acceptance
        off = measures.deviations(course, ess, expected)  # [F]
        return {
            "sampler": self._chain.sampler,
            "by": self._chain.by,
            "num_chains": course.shape[1],
            "num_steps": course.shape[2],
            "warmup_seconds": self.warmup_seconds,
            "seconds": sum(self.seconds),
            "evaluations": float(np.mean(self._evaluations)),
            "acceptance": float(np.mean(rates)) if rates else None,
            "ess": float(ess[slowest]),
            "slowest": measures.function_names(len(ess))[slowest],
            "effective_per_second": float(ess[slowest]) / sum(self.seconds),
            "stderr": mean_estimate(np.array(of_calls), "draws/s").stderr,
            "num_calls": len(of_calls),
            "means_off": float(off.max()),
        }
