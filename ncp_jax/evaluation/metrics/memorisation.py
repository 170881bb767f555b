"""Whether samples are copies of training pictures (Figs. 4 to 7): picture and number.

Pictures are uint8 [N, H, W, C] and compared as `neighbours.centres`.
"""

from collections.abc import Mapping

import numpy as np

from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import neighbours
from ncp_jax.evaluation.metrics.neighbours import Neighbours
from ncp_jax.pages.parts import pictures

TRAINING_AT_A_TIME = 16_384  # pictures; CelebA's centres: 315 MB
GAP = 3  # white pixels between samples and neighbours


def nearest_pictures(
    queries: np.ndarray, train: np.ndarray, num_neighbours: int
) -> Neighbours:
    """The nearest training pictures of each query, nearest first.

    The training set, which may be mapped from a file, is read once and never held
    whole; see `neighbours.nearest`.

    Args:
      queries: pictures.
      train: pictures, no fewer than `num_neighbours`.
      num_neighbours: k.

    Raises:
      InputError: pictures of other shapes, or too few.
    """
    centres = neighbours.centres(queries)
    best = None
    for start in range(0, len(train), TRAINING_AT_A_TIME):
        block = neighbours.centres(train[start : start + TRAINING_AT_A_TIME])
        # A last block of few; or a whole set of too few, which `nearest` refuses.
        k = num_neighbours if best is None else min(num_neighbours, len(block))
        found = neighbours.nearest(centres, block, k)
        found = found._replace(indices=found.indices + start)
        if best is None:
            best = found
            continue
        joined = Neighbours(*map(_joined, best, found))
        order = np.argsort(joined.distances, axis=1, kind="stable")[:, :num_neighbours]
        best = Neighbours(*(np.take_along_axis(a, order, 1) for a in joined))
    assert best is not None  # a data set has no empty split
    return best


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([a, b], axis=1)


def measure(
    samples: Mapping[str, np.ndarray], held_out: np.ndarray, train: np.ndarray
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """How near to the training set samples lie, beside held-out pictures.

    Args:
      samples: pictures by the name of their source.
      held_out: real pictures that nothing was trained on.
      train: the training set.

    Returns:
      `nearer_than_held_out_NAME` of each source, see `neighbours.nearer_than_held_out`;
      and the distances [n], `nearest_NAME` and `nearest_held_out`, Euclidean in pixels
      of [0, 1].
    """
    sources = {**samples, "held_out": held_out}
    queries = np.concatenate(list(sources.values()))
    found = nearest_pictures(queries, train, 1).distances[:, 0]
    ends = np.cumsum([len(images) for images in sources.values()])[:-1]
    distances = dict(zip(sources, np.split(found, ends), strict=True))
    estimates = {
        f"nearer_than_held_out_{name}": neighbours.nearer_than_held_out(
            distances[name], distances["held_out"]
        )
        for name in samples
    }
    return estimates, {f"nearest_{name}": d for name, d in distances.items()}


def picture(
    samples: np.ndarray, train: np.ndarray, num_neighbours: int = 7
) -> np.ndarray:
    """Each sample at the left, its nearest training pictures beside it: [H', W', C].

    Args:
      samples: pictures, one per row.
      train: the training set.
      num_neighbours: at most, per row.
    """
    num_neighbours = min(num_neighbours, len(train))
    found = nearest_pictures(samples, train, num_neighbours).indices
    beside = np.stack([train[row] for row in found])  # [n, k, H, W, C]
    left = pictures.grid(samples, 1)
    right = pictures.grid(beside.reshape(-1, *train.shape[1:]), num_neighbours)
    gap = np.full((len(left), GAP, left.shape[2]), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)
