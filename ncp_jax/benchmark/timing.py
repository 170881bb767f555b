"""Seconds and bytes of a compiled function, and what the device could do at best."""

import dataclasses
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

ROUND_SECONDS = 2.0  # of a round of calls in turns: short ones need many rounds
SETTLE_SECONDS = 0.05  # before the calls of a turn count, and of those that do


@dataclasses.dataclass(frozen=True)
class Timing:
    """What calls of one function took.

    Attributes:
      first: seconds of the first call, compilation included.
      repeats: seconds of each later call.
      num_bytes: arguments, results and temporaries of the compiled program.
    """

    first: float
    repeats: tuple[float, ...]
    num_bytes: int

    @property
    def median(self) -> float:
        """Of the repeats, in seconds."""
        return float(np.median(self.repeats))

    def as_json(self) -> dict[str, Any]:
        """Returns the numbers that a reader wants."""
        return {
            "first_seconds": self.first,
            "seconds": self.median,
            "min_seconds": min(self.repeats),
            "max_seconds": max(self.repeats),
            "num_repeats": len(self.repeats),
            "num_bytes": self.num_bytes,
        }


def time_compiled(
    function: Callable[..., Any], *args: Any, num_repeats: int, max_seconds: float
) -> tuple[Timing, Any]:
    """Compiles and calls a function.

    Args:
      function: of arrays.
      *args: its arguments.
      num_repeats: calls after the first.
      max_seconds: repeats end after the one that reaches this; there is one at least.

    Returns:
      The `Timing`, and what the function returned.
    """
    begin = perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    out = jax.block_until_ready(compiled(*args))
    first = perf_counter() - begin
    repeats = time_calls(lambda: compiled(*args), num_repeats, max_seconds)
    return Timing(first, repeats, num_bytes(compiled)), out


def time_calls(
    call: Callable[[], Any], num_repeats: int, max_seconds: float
) -> tuple[float, ...]:
    """Seconds of calls, each waited for; at least one."""
    repeats: list[float] = []
    while not repeats or (len(repeats) < num_repeats and sum(repeats) < max_seconds):
        repeats.append(timed(call)[0])
    return tuple(repeats)


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of one call, which is waited for, and what it returned."""
    begin = perf_counter()
    out = jax.block_until_ready(function(*args))
    return perf_counter() - begin, out


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]], num_rounds: int, max_seconds: float
) -> dict[str, np.ndarray]:
    """Seconds of several calls that are to be compared, one of each in every round.

    A machine that others share slows down and recovers; neighbours in time see the
    same of it, so the ratios within a round say more than those of two series.

    Args:
      calls: by name; each has been called before.
      num_rounds: at least, and more until each could have taken `ROUND_SECONDS`.
      max_seconds: the rounds end after the one that reaches this; there is one.

    Returns:
      By name [rounds].
    """
    taken: list[list[float]] = []
    began = perf_counter()
    while True:
        taken.append([_settled(call) for call in calls.values()])
        so_far = perf_counter() - began
        is_enough = len(taken) >= num_rounds and so_far >= num_rounds * ROUND_SECONDS
        if is_enough or so_far >= max_seconds:
            return dict(zip(calls, np.transpose(taken), strict=True))


def _settled(call: Callable[[], Any]) -> float:
    """Median seconds of calls, after some that are not counted.

    The threads of the version before may spin for a while when its turn is over, and
    take a core from the next one.
    """
    begin = perf_counter()
    while perf_counter() - begin < SETTLE_SECONDS:
        jax.block_until_ready(call())
    taken = time_calls(call, 1, 0.0)
    while sum(taken) < SETTLE_SECONDS:
        taken += time_calls(call, 1, 0.0)
    return float(np.median(taken))


def num_bytes(compiled: Any) -> int:
    """What a compiled program holds at most: arguments, results, temporaries."""
    analysis: Any = compiled.memory_analysis()
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
    )


def matmul_ceiling(dtype: str, size: int = 0, num_repeats: int = 5) -> float:
    """FLOP/s of a large product of square matrices: the most that is to be had.

    Args:
      dtype: of both matrices; float32 is multiplied as such, not as TF32.
      size: of a side; 0 for 2,048 on CPUs and 8,192 elsewhere.
      num_repeats: the fastest counts.
    """
    size = size or (2_048 if jax.default_backend() == "cpu" else 8_192)
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) for key in keys)
    with jax.default_matmul_precision("float32"):
        timing, _ = time_compiled(
            jnp.matmul, a, b, num_repeats=num_repeats, max_seconds=60.0
        )
    return 2 * size**3 / min(timing.repeats)


def copy_bandwidth(num_bytes: int = 2**28, num_repeats: int = 5) -> float:
    """Bytes/s of a <- a + s b over arrays that are in no cache.

    In the manner of STREAM (McCalpin, 1995): two arrays are read and one is written, in
    the place of the first, so that no page is new and none is read to be overwritten.

    Args:
      num_bytes: of each array; far more than the caches hold.
      num_repeats: the fastest counts.
    """
    size = num_bytes // 4
    a, b = jnp.zeros(size), jnp.ones(size)
    add = jax.jit(lambda a, b: a + 3.0 * b, donate_argnums=0)
    a = jax.block_until_ready(add(a, b))
    repeats = []
    for _ in range(num_repeats):
        seconds, a = timed(add, a, b)
        repeats.append(seconds)
    return 3 * 4 * size / min(repeats)
