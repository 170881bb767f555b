"""How q(z_k | z_<k, x) moves about the prior's mean, and along which eigenvectors."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, LatentVariableModel
from ncp_jax.priors import signal_sums
from ncp_jax.priors.signal_sums import Batch, Prepare, Sums

Array = jax.Array

OVERSAMPLING = 16  # columns of the range finder beyond those that are asked for
# How far the largest eigenvalue of noise may lie above the edge of its law: in units of
# n^(-2/3), for n the smaller of D and N.  A millionth of all cases (Tracy-Widom) lies
# 3.2 to 4 units above it.
EDGE_MARGIN = 4.0


class Spectrum(NamedTuple):
    """The leading eigenpairs of the signal covariance of the n groups of a block."""

    values: np.ndarray  # [n, S] descending
    vectors: np.ndarray  # [n, D, S] orthonormal columns
    total: np.ndarray  # [n] the trace
    total_stderr: np.ndarray  # [n] of it, for so many examples; NaN where centred
    num_examples: int
    noise_edge: np.ndarray  # [n] the largest eigenvalue that draws leave without signal
    mean: np.ndarray  # [n, D] that the covariance is about


def leading(
    vae: LatentVariableModel,
    batches: Iterable[Batch],
    prepare: Prepare,
    key: Array,
    *,
    num_leading: int,
    max_exact_dim: int,
    num_passes: int,
    num_draws: int,
    use_means: bool | None = None,
    is_centred: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Spectrum, ...]:
    """Leading eigenpairs of every group's signal covariance, one element per block.

    What is wanted is S_k = E[m_k m_k^T], with m_k(x, z_<k) the posterior mean of the
    standardised e_k: about 0, the prior's mean, since a shift that all x share tells q
    from p as well.  (`is_centred` leaves that out: Cov(m_k).)

    From means (NVAE's `encode(x, None)`) the estimate is that of m_k on the path z_<k
    of means; its only error is that of N examples.  With flows m_k is the flow of the
    mean.  From R draws z ~ q(z | x) of each x it is the mean of e_k e'_k^T over pairs
    of different draws, whose noise cancels on average; see `noise_edge` for the rest.

    In a hierarchy two draws of one x have different z_<k, since a model gives one e_k
    per path.  With e = E[e_k | x], the pairs' expectation is then E[e e^T], and
    S_k = E[e e^T] + E_x[Cov(m_k(x, z_<k) | x)]: what m_k owes to z_<k at a given x is
    left out, as it is on the path of means.  Both estimates agree where m_k is linear
    in z_<k; a direction that moves with z_<k alone escapes both.

    Args:
      vae: a frozen model.
      batches: gone through several times, so kept.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      num_leading: S, or D where that is less.
      max_exact_dim: D up to which the covariance is formed; see `fit_directions`.
      num_passes: over the examples where a group is larger.
      num_draws: R; 1, with `is_centred` and without means, for the covariance of the
        draws themselves.
      use_means: None for means where the model gives them.
      is_centred: about the mean of all examples instead of the prior's.
      mesh: the devices that share a batch; None for one.

    Raises:
      InputError: see `directions.fit_directions`.
    """
    mesh, batches = mesh or parallel.one_device(), list(batches)
    is_exact = [signal_sums.group_size(b) <= max_exact_dim for b in vae.blocks]
    count = sum(int(np.sum(mask)) for _, mask in batches)
    _check(mesh, batches, count, num_passes)
    if num_draws != 1 or not is_centred or use_means is not False:
        num_draws = _draws_of_each(vae, batches, prepare, use_means, num_draws)

    def moments(probes: Sequence[np.ndarray | None]) -> list[Sums]:
        draws_key = rng.stream(key, "examples")  # the same draws in every pass
        sums = signal_sums.over_batches(
            mesh, vae, batches, prepare, draws_key, probes, num_draws
        )
        each = zip(sums, probes, strict=True)
        return [_averaged(s, count, probe, is_centred) for s, probe in each]

    probes = _first_probes(vae, rng.stream(key, "probes"), is_exact, num_leading)
    found = moments(probes)
    for _ in range(0 if all(is_exact) else num_passes - 1):
        probes = [
            np.zeros((*average.image.shape[:2], 0)) if exact else _orthonormal(average)
            for average, exact in zip(found, is_exact, strict=True)
        ]
        each = zip(found, moments(probes), is_exact, strict=True)
        found = [first if exact else latest for first, latest, exact in each]
    return tuple(
        _spectrum(average, None if exact else probe, count, num_leading, num_draws)
        for average, exact, probe in zip(found, is_exact, probes, strict=True)
    )


def noise_edge(num_dims: int, num_examples: int, num_draws: int) -> float:
    """The upper edge of the spectrum that R draws leave where there is no signal.

    The noise of an example is ((R - 1) g_0 g_0^T - sum_{r>0} g_r g_r^T) / (R (R - 1)),
    with the g_r ~ N(0, I) its draws, rotated; so the mean over N examples is a free
    difference of two Marchenko-Pastur laws.  With c = D / N and a = 1 / R the inverse
    of its Cauchy transform is K(y) = 1/y + a / (1 - a c y) - a / (1 + a c y / (R - 1)),
    and the edge is the minimum of K in 0 < a c y < 1.  Where c is small this is a
    semicircle's, 2 sqrt(c / (R (R - 1))).

    Args:
      num_dims: D.
      num_examples: N.
      num_draws: R, at least 2.

    Returns:
      The edge for noise of unit variance; `EDGE_MARGIN` is not in it.
    """
    c, a = num_dims / num_examples, 1.0 / num_draws
    t = np.concatenate(
        [np.geomspace(1e-6, 0.5, 4_000), np.linspace(0.5, 1, 4_000)[:-1]]
    )
    return float(np.min(a * (c / t + 1 / (1 - t) - 1 / (1 + t / (num_draws - 1)))))


def _draws_of_each(
    vae: LatentVariableModel,
    batches: Sequence[Batch],
    prepare: Prepare,
    use_means: bool | None,
    num_draws: int,
) -> int:
    """How many draws of each x are taken; 0 for its means."""
    if use_means is None:
        shape = jax.eval_shape(prepare, jax.random.key(0), batches[0][0])
        use_means = signal_sums.gives_means(vae, shape)
    if not use_means and num_draws < 2:
        raise InputError(f"num_draws = {num_draws}: a covariance needs 2 or more")
    return 0 if use_means else num_draws


def choose_width(values: np.ndarray, floor: float, share: float, cap: int) -> int:
    """How many directions hold `share` of the eigenvalues above the floor.

    Args:
      values: [S] leading eigenvalues, descending.
      floor: those below it count for nothing.
      share: in (0, 1].
      cap: the most.
    """
    above = values[values > floor]
    held = np.cumsum(above)
    # Rounding must not ask for a direction more than there are.
    return min(
        int(np.sum(held < share * above.sum() * (1 - 1e-9))) + 1, len(above), cap
    )


def _check(mesh: Mesh, batches: Sequence[Batch], count: int, num_passes: int) -> None:
    if num_passes < 2:
        raise InputError(f"num_passes = {num_passes}: the range finder needs 2 or more")
    if count < 2:
        raise InputError(f"{count} examples: signal directions need 2 or more")
    shapes = sorted({np.shape(stored) for stored, _ in batches})
    if len(shapes) > 1:
        found = f"batches of shapes {shapes}: expected one"
        raise InputError(f"{found}; pad the last, as datasets.padded_batches does")
    parallel.check_batch_size(mesh, "the batch", len(batches[0][1]))


def _first_probes(
    vae: LatentVariableModel, key: Array, is_exact: Sequence[bool], num_leading: int
) -> list[np.ndarray | None]:
    """Normal noise [n, D, l] for blocks that are too large for the identity."""

    def noise(b: int, block: Block) -> np.ndarray:
        size = signal_sums.group_size(block)
        shape = (block.num_groups, size, min(num_leading + OVERSAMPLING, size))
        return np.asarray(jax.random.normal(rng.at_step(key, b), shape))

    each = enumerate(zip(vae.blocks, is_exact, strict=True))
    return [None if exact else noise(b, block) for b, (block, exact) in each]


def _averaged(
    sums: Sums, count: int, probe: np.ndarray | None, is_centred: bool
) -> Sums:
    """Averages over the examples, about 0 or about their own mean; float64."""
    mean = sums.mean / count * is_centred  # [n, D]
    scale = count / (count - is_centred)
    seen = mean[:, None] if probe is None else mean[:, None] @ probe
    return Sums(
        image=(sums.image / count - mean[:, :, None] * seen) * scale,
        diagonal=(sums.diagonal / count - mean**2) * scale,
        mean=mean,
        square=(sums.square / count - mean**2) * scale,
        trace_square=sums.trace_square / count * (np.nan if is_centred else 1.0),
    )


def _orthonormal(average: Sums) -> np.ndarray:
    """Columns [n, D, l] that span those of the image, rounded to what devices read."""
    return np.linalg.qr(average.image)[0].astype(np.float32)


def _spectrum(
    average: Sums,
    probe: np.ndarray | None,
    count: int,
    num_leading: int,
    num_draws: int,
) -> Spectrum:
    """Solves the eigenproblem, inside the span of the probe where there is one."""
    inner = average.image
    if probe is not None:
        inner = probe.swapaxes(1, 2).astype(np.float64) @ inner
    values, vectors = np.linalg.eigh((inner + inner.swapaxes(1, 2)) / 2)
    vectors = vectors[:, :, ::-1][:, :, :num_leading]
    vectors = vectors if probe is None else probe.astype(np.float64) @ vectors
    total = average.diagonal.sum(1)
    variance = np.maximum(average.trace_square - total**2, 0.0) / (count - 1)
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return Spectrum(
        values=values[:, ::-1][:, :num_leading],
        vectors=vectors * np.sign(largest),  # else rounding chooses the sign
        total=total,
        total_stderr=np.sqrt(variance),
        num_examples=count,
        noise_edge=_edges(average, count, num_draws),
        mean=average.mean,
    )


def _edges(average: Sums, count: int, num_draws: int) -> np.ndarray:
    """The largest eigenvalues [n] of each group's noise; 0 where none is left out.

    Noise of unequal variances v_i has its edge no higher than one of variance
    sqrt(max v mean v) in every direction.
    """
    if num_draws < 2:
        return np.zeros(len(average.mean))
    variance = np.maximum(average.square - average.diagonal, 0.0)  # [n, D]
    size = variance.shape[1]
    margin = 1 + EDGE_MARGIN * min(size, count) ** (-2 / 3)
    scale = np.sqrt(variance.max(1) * variance.mean(1))
    return scale * noise_edge(size, count, num_draws) * margin
