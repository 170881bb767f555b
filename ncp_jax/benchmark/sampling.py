"""Seconds, bytes and arithmetic of drawing pictures, by every sampler, in rows."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import parallel, rng
from ncp_jax.benchmark import arithmetic, roofline, timing
from ncp_jax.benchmark.plain import Plain
from ncp_jax.evaluation.diagnostics import join_blocks
from ncp_jax.evaluation.importance import chain_ess
from ncp_jax.models.shared import sample_each
from ncp_jax.priors import generation
from ncp_jax.priors.group_samplers import (
    MALA,
    SIR,
    AdaptiveSIR,
    Base,
    IteratedSIR,
    Langevin,
    SIRThenMALA,
)
from ncp_jax.priors.ncp_prior import NCPPrior, ancestral

Array = jax.Array
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
      num_images: sizes of a batch.
      num_proposals: M of SIR.
      num_steps: of Langevin dynamics.
      step_size: of Langevin dynamics; nothing but ESS depends on it.
      num_repeats: calls of each after the first.
      max_seconds: a call that would take longer at the FLOP/s of the row before is
        not made.
      max_bytes: nor is one of the plain versions that needs more.
      memory_bytes: for a chunk of proposals; 0 for what the device has free.
    """

    num_images: Sequence[int] = (1, 10)
    num_proposals: Sequence[int] = (5, 50, 500, 5_000)
    num_steps: Sequence[int] = (5, 50, 500, 1_000)
    step_size: float = 1e-2
    num_repeats: int = 5
    max_seconds: float = 60.0
    max_bytes: float = 8e9
    memory_bytes: int = 0


def rows(
    ncp: NCPPrior, key: Array, settings: Settings, machine: roofline.Machine
) -> Iterator[Row]:
    """Times SIR, Langevin dynamics and the corrected samplers.

    Args:
      ncp: the prior; the weights' values matter to ESS alone.
      key: PRNG key; consumed here.
      settings: what is timed.
      machine: what there is at best, in the discriminators' precision.

    Yields:
      A row per sampler, setting and batch, as JSON values.
    """
    work, plain, traffic = _Work(ncp), Plain(ncp), roofline.Traffic(ncp)
    rate = math.inf  # FLOP/s of the row before
    for num_images in settings.num_images:
        for name, series in _series(ncp, settings, num_images).items():
            for draw, size in series:
                row: Row = {
                    "sampler": name,
                    "size": size,
                    "num_images": num_images,
                    "setting": dataclasses.asdict(draw),
                }
                flops = work.flops(draw, num_images)
                if flops / rate > settings.max_seconds:
                    row["skipped"] = f"some {flops / rate:,.0f} s"
                    yield row
                    continue
                row |= _time(ncp, draw, key, num_images, settings)
                if "num_proposals" in row:  # it has ended by itself
                    row["weighed"] = float(np.mean(row["num_proposals"]))
                    flops = work.flops(draw, num_images, row["weighed"])
                moved = traffic.num_bytes(draw, num_images, row.get("weighed", 0.0))
                row |= roofline.placed(flops, moved, row["seconds"], machine)
                rate = row["flops_per_second"]
                row["plain"] = _time_plain(plain, row, key, settings)
                yield row


def _series(
    ncp: NCPPrior, settings: Settings, num_images: int
) -> dict[str, list[tuple[Any, int]]]:
    """Per sampler its settings, each with the number of its proposals or steps."""

    def chunk(num_proposals: int) -> int:
        return generation.fitting_chunk(
            ncp, num_images, num_proposals, settings.memory_bytes
        )

    *_, most = sorted(settings.num_proposals)
    some = sorted(settings.num_proposals)[-2:][0]  # the last but one, if there are two
    steps = sorted(settings.num_steps)[-2:][0]
    iterations = max(some // 50, 2)
    half = max(some // 2, 2)
    return {
        "sir": [(SIR(m, chunk(m)), m) for m in settings.num_proposals],
        "langevin": [
            (Langevin(settings.step_size, t, in_noise=True), t)
            for t in settings.num_steps
        ],
        "asir": [(AdaptiveSIR(max_proposals=most), most)],
        "isir": [(IteratedSIR(some // iterations, iterations, chunk(50)), some)],
        "mala": [(MALA(0.1, steps, steps // 4), steps)],
        "sirmala": [(SIRThenMALA(half, chunk(half), 0.1, steps // 10 or 1, 0), half)],
    }


def _time(
    ncp: NCPPrior, draw: Any, key: Array, num_images: int, settings: Settings
) -> Row:
    mesh = parallel.one_device()
    keys = jax.random.split(key, num_images)
    took, out = timing.time_compiled(
        partial(generation.draw_batch, mesh, draw),
        ncp,
        keys,
        num_repeats=settings.num_repeats,
        max_seconds=settings.max_seconds,
    )
    diagnostics = _diagnostics(_of_reweighted(ncp, join_blocks(out.infos)))
    row = took.as_json() | diagnostics
    row["draws_per_second"] = num_images / took.median
    if "ess" in diagnostics:
        ess = np.mean(diagnostics["ess"])  # of a chain, the mean over groups
        row["ess_per_second"] = float(num_images * ess / took.median)
    return row | {"groups": list(ncp.reweighted_groups)}


def _of_reweighted(ncp: NCPPrior, info: Any) -> Any:
    """Leaves [K', ...] of all groups of the reweighted blocks -> of those that count.

    The others are drawn from p, and what stands for their info is zeros.
    """
    numbers = _numbers(ncp)
    kept = [i for i, k in enumerate(numbers) if k in ncp.reweighted_groups]
    return jax.tree.map(lambda leaf: leaf[np.array(kept)], info)


def _numbers(ncp: NCPPrior) -> list[int]:
    """Of all groups of the blocks that have discriminators, in the order of infos."""
    whole = dataclasses.replace(ncp, groups=None)
    return list(whole.reweighted_groups)


def _diagnostics(info: Any) -> Row:
    """Per group, means over chains: leaves [K, N, ...] -> {name: [K]}."""
    parts = [info] if hasattr(info, "_fields") else []
    if parts and "mala" in info._fields:
        parts = list(info)
    found: Row = {}
    for part in parts:
        for name in ("ess", "log_z", "acceptance", "step_size", "num_proposals"):
            if name in part._fields:
                found[name] = np.mean(getattr(part, name), 1).tolist()
        course = getattr(part, "log_density", None)
        if course is not None and course.shape[-1] >= 20 and "ess" not in found:
            second_half = np.asarray(course)[..., course.shape[-1] // 2 :]
            found["ess"] = chain_ess(second_half).mean(1).tolist()
    return found


def _time_plain(plain: Plain, row: Row, key: Array, settings: Settings) -> Row | None:
    size, num_images = row["size"], row["num_images"]
    if row["sampler"] == "sir":
        needed = plain.weighing_bytes(num_images, size)
        if needed > settings.max_bytes:
            return {"skipped": f"needs {needed / 1e9:.1f} GB", "num_bytes": needed}
        call = partial(plain.sir, key, num_images, size)
        extra = {"num_bytes": needed}
    elif row["sampler"] == "langevin":
        call = partial(plain.langevin, key, num_images, size, settings.step_size)
        extra = {}
    else:
        return None
    jax.block_until_ready(call())  # compiles
    seconds = timing.time_calls(call, settings.num_repeats, settings.max_seconds)
    median = float(np.median(seconds))
    return {"seconds": median, "ratio": median / row["seconds"], **extra}


class _Work:
    """Counts the arithmetic of a sampler: what its method asks for, no more.

    A gradient in z counts as two evaluations.
    """

    def __init__(self, ncp: NCPPrior):
        keys = jax.random.split(jax.random.key(0), 1)
        mesh = parallel.one_device()
        self._of_base = arithmetic.count_flops(
            partial(generation.draw_batch, mesh, Base()), ncp, keys
        )
        self._of_ratio = 0  # of one z of every reweighted group
        for b in ncp.reweighted_blocks:
            block = ncp.vae.blocks[b]
            context = jnp.zeros((1, *block.context_shape))
            z = jnp.zeros((1, *block.latent_shape))

            two, one = (
                arithmetic.count_flops(partial(_weigh, b, context, [z] * n), ncp)
                for n in (2, 1)
            )
            self._of_ratio += len(ncp.reweighted_in(b)) * (two - one)

    def flops(self, draw: Any, num_images: int, weighed: float = 0.0) -> int:
        """Those of one call; `weighed` proposals of a draw, if it chose itself."""
        evaluated = weighed or evaluations(draw)
        return int(num_images * (self._of_base + evaluated * self._of_ratio))


def _weigh(b: int, context: Array, several: list[Array], ncp: NCPPrior) -> list[Array]:
    log_r = ncp.log_ratio(b, 0, context)
    return [log_r(z) for z in several]


_EVALUATIONS: dict[type, Callable[[Any], int]] = {
    SIR: lambda d: d.num_proposals,
    AdaptiveSIR: lambda d: d.max_proposals,
    IteratedSIR: lambda d: 1 + d.num_steps * (d.num_proposals - 1),
    Langevin: lambda d: 2 * d.num_steps,
    MALA: lambda d: 2 * (d.num_steps + 1),
    SIRThenMALA: lambda d: d.num_proposals + 2 * (d.num_steps + 1),
}


def evaluations(draw: Any) -> int:
    """How often a sampler computes log r for one draw; a gradient in z counts twice."""
    return _EVALUATIONS[type(draw)](draw)


def recommendations(ncp_rows: Sequence[Row], min_ess: float = 10.0) -> list[Row]:
    """What to draw each group with, from the rows of SIR and MALA.

    SIR's bias is about 1 / ESS: where M proposals are worth `min_ess` or more, SIR with
    as many as are worth that; else SIR to begin with and MALA to go on.

    Args:
      ncp_rows: of `rows`.
      min_ess: effective proposals that will do.
    """
    sir = [r for r in ncp_rows if r["sampler"] == "sir" and "ess" in r]
    if not sir:
        return []
    most = max(sir, key=lambda r: (r["size"], r["num_images"]))
    mala = next((r for r in ncp_rows if r["sampler"] == "mala" and "ess" in r), None)
    found = []
    for i, ess in enumerate(most["ess"]):
        needed = int(np.ceil(min_ess * most["size"] / ess))
        is_enough = ess >= min_ess
        found.append(
            {
                "group": most.get("groups", range(len(most["ess"])))[i],
                "ess": ess,
                "num_proposals": most["size"],
                "mala_acceptance": mala["acceptance"][i] if mala else None,
                "sampler": f"SIR, M = {needed}" if is_enough else "SIR, then MALA",
            }
        )
    return found


def bfloat16_effect(
    ncp: NCPPrior,
    key: Array,
    ncp_rows: Sequence[Row],
    max_seconds: float,
    num_images: int = 4,
    max_proposals: int = 250,
) -> list[Row]:
    """What activations in bfloat16 do to log r and to ESS, on the same proposals.

    Args:
      ncp: the prior, in any precision.
      key: PRNG key; consumed here.
      ncp_rows: of `rows`; SIR's seconds predict what proposals cost here.
      max_seconds: fewer proposals are weighed where all would take longer.
      num_images: chains.
      max_proposals: of each chain, where there is time for them.

    Returns:
      Per group: the largest and the mean |difference| of log r (nats), the deviation of
      log r itself, and ESS of `num_proposals` in both.
    """
    cost = min(
        row["seconds"] / (row["size"] * row["num_images"])
        for row in ncp_rows
        if row["sampler"] == "sir" and "seconds" in row
    )
    affordable = int(max_seconds / (2 * num_images * cost))  # weighed twice
    num_proposals = min(max(affordable, 2), max_proposals)

    def weigh(keys: Array, target: Any) -> tuple[Array, Array]:
        def log_w(m: Array) -> Array:
            return target.log_r(sample_each(rng.at_step(keys, m), target.base))

        z = sample_each(rng.stream(keys, "z"), target.base)
        return z, jax.lax.map(log_w, jnp.arange(num_proposals))  # [M, B]

    def log_ratios(dtype: str) -> np.ndarray:
        network = ncp.discriminator.clone(dtype=jnp.dtype(dtype))
        prior = dataclasses.replace(ncp, discriminator=network)
        keys = jax.random.split(key, num_images)
        infos = jax.jit(lambda prior: ancestral(prior, keys, weigh).infos)
        return _of_reweighted(ncp, np.concatenate(jax.device_get(infos(prior)), 0))

    full, half = log_ratios("float32"), log_ratios("bfloat16")  # [K, M, B]
    return [
        {
            "group": k,
            "num_proposals": num_proposals,
            "max_difference": float(np.abs(a - b).max()),
            "mean_difference": float(np.abs(a - b).mean()),
            "deviation_of_log_r": float(a.std()),
            "ess_float32": _mean_ess(a),
            "ess_bfloat16": _mean_ess(b),
        }
        for k, a, b in zip(ncp.reweighted_groups, full, half, strict=True)
    ]


def _mean_ess(log_w: np.ndarray) -> float:
    w = np.exp(log_w - log_w.max(0, keepdims=True))
    return float(np.mean(w.sum(0) ** 2 / (w**2).sum(0)))
