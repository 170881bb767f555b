"""Nearest training pictures of samples, and whether samples are copies of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate

Array = jax.Array

SIDE, CROP = 64, 40  # of the paper's Figures 4 to 7
QUERIES_AT_A_TIME, POINTS_AT_A_TIME = 1024, 4096  # a block of distances: 34 MB


def centres(images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """What of a picture is compared: at most 64 pixels wide, its centre of 40.

    An axis longer than 64 is resized to 64 (linearly, with antialiasing), a shorter one
    is kept; of an axis of s pixels the middle round(40 s / 64) are taken: 20 of
    CIFAR-10's 32, 18 of MNIST's 28.

    Args:
      images: [N, H, W, C], uint8 or floats in [0, 1].
      batch_size: pictures resized at a time.

    Returns:
      float32 [N, h w C], in [0, 1].
    """
    sides = [min(n, SIDE) for n in images.shape[1:3]]
    kept = [slice((s - (c := _crop(s))) // 2, (s - c) // 2 + c) for s in sides]
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if images.dtype == np.uint8:
            batch = batch.astype(np.float32) / np.float32(255)
        if sides != list(images.shape[1:3]):
            shape = (len(batch), *sides, images.shape[3])
            batch = np.asarray(_resize(jnp.asarray(batch), shape))
        batch = np.asarray(batch[:, kept[0], kept[1]], np.float32)
        parts.append(batch.reshape(len(batch), -1))
    return np.concatenate(parts)


def _crop(side: int) -> int:
    return int(side * CROP / SIDE + 0.5)  # halves upwards


_resize = jax.jit(
    lambda images, shape: jax.image.resize(images, shape, "linear", antialias=True),
    static_argnums=1,
)


class Neighbours(NamedTuple):
    """The nearest points of each query, nearest first; equals in any order."""

    indices: np.ndarray  # [n, k] into the points
    distances: np.ndarray  # float64 [n, k], Euclidean


def nearest(
    queries: np.ndarray, points: np.ndarray, num_neighbours: int = 1
) -> Neighbours:
    """Finds the nearest of `points` for each query, exactly (to float64's rounding).

    All pairs, as matrix products: with the 324 dimensions of MNIST's centres a KD-tree
    gives the same answer and takes thirty times as long.

    Args:
      queries: [n, D].
      points: [N, D], N no less than `num_neighbours`.
      num_neighbours: k.

    Raises:
      InputError: other shapes, too few points or values that are not finite.
    """
    _check_shapes(queries, points, num_neighbours)
    offset = points.mean(0, dtype=np.float64)  # short vectors: little cancels
    if not (np.isfinite(queries).all() and np.isfinite(offset).all()):
        raise InputError("pictures are not finite: look for NaN in what drew them")
    parts = []
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        block = queries[start : start + QUERIES_AT_A_TIME]
        indices = _shortlist(block - offset, points, offset, num_neighbours)
        # A difference itself, where the products cancel: a copy is at 0.
        differences = points[indices].astype(np.float64) - block[:, None]
        distances = np.linalg.norm(differences, axis=-1)  # [b, k]
        order = np.argsort(distances, axis=1, kind="stable")
        ordered = (np.take_along_axis(a, order, 1) for a in (indices, distances))
        parts.append(Neighbours(*ordered))
    return Neighbours(*map(np.concatenate, zip(*parts, strict=True)))


def _shortlist(
    queries: np.ndarray, points: np.ndarray, offset: np.ndarray, k: int
) -> np.ndarray:
    """Indices [b, k] of the points that are nearest to queries [b, D], unordered."""
    rows = np.arange(len(queries))[:, None]
    best = np.full((len(queries), k), np.inf)  # |p|^2 - 2 p . q
    indices = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(points), POINTS_AT_A_TIME):
        block = points[start : start + POINTS_AT_A_TIME] - offset
        scores = np.sum(block**2, 1) - 2 * queries @ block.T  # [b, block]
        scores = np.concatenate([best, scores], 1)
        kept = np.argpartition(scores, k - 1, axis=1)[:, :k]
        old = np.take_along_axis(indices, np.minimum(kept, k - 1), 1)
        indices = np.where(kept < k, old, start + kept - k)
        best = scores[rows, kept]
    return indices


def nearer_than_held_out(samples: np.ndarray, held_out: np.ndarray) -> Estimate:
    """P(a sample is nearer to the training set than a held-out picture is).

    1/2 where samples lie as near as new pictures of the same source do; towards 1 the
    more of them are copies.  Samples that are smoother than pictures are nearer as
    well, so compare with reconstructions before calling it memory.  An equal distance
    counts one half: it is the Mann-Whitney statistic over n m, its error that of
    DeLong et al. 1988.

    Args:
      samples: [n] distances of samples from their nearest training picture.
      held_out: [m] those of held-out pictures.

    Raises:
      InputError: fewer than two of either, or values that are not finite.
    """
    n, m = len(samples), len(held_out)
    if min(n, m) < 2 or not (
        np.isfinite(samples).all() and np.isfinite(held_out).all()
    ):
        raise InputError(
            f"two finite distances of each kind are needed: got {n} of samples and {m} "
            "of held-out pictures"
        )
    ranks = scipy.stats.rankdata(np.concatenate([samples, held_out]))
    # Share of the other kind that is farther than each sample, nearer than each real.
    wins = 1 - (ranks[:n] - scipy.stats.rankdata(samples)) / m
    losses = (ranks[n:] - scipy.stats.rankdata(held_out)) / n
    variance = wins.var(ddof=1) / n + losses.var(ddof=1) / m
    return Estimate(float(wins.mean()), float(np.sqrt(variance)), n, "probability")


def _check_shapes(queries: np.ndarray, points: np.ndarray, num_neighbours: int) -> None:
    if queries.ndim != 2 or points.ndim != 2 or queries.shape[1] != points.shape[1]:
        raise InputError(
            f"queries of shape {queries.shape} have no neighbours among points of "
            f"shape {points.shape}: both must be [n, D] with the same D"
        )
    if not 0 < num_neighbours <= len(points):
        raise InputError(
            f"{num_neighbours} neighbours are asked for, there are {len(points)} points"
        )
