"""What draws of a prior are like, decoded and as latents."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.comparison.against import Against, Pictures
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import (
    extractor,
    feature_scores,
    memorisation,
    neighbours,
    two_sample,
)
from ncp_jax.pages.parts import pictures


def measure(
    model: Compared, z: np.ndarray, against: Against, *, batch_size: int
) -> dict[str, Estimate]:
    """Decodes z [n, D] and measures them, decoded and as they are.

    Returns:
      `mmd` and `mmd_p` of the first as many as there are encodings; of pictures the
      Frechet distance and KID of the feature network, and `nearer_than_held_out` of as
      many as there are held-out distances; what `of_points` finds.
    """
    kept, features = [], []
    net = against.pictures and against.pictures.scores and against.pictures.scores.net
    num_kept = len(against.pictures.held_out) if against.pictures else len(z)
    for first, images in _decoded(model, z, batch_size):
        if not np.isfinite(images).all():
            raise InputError("decoded draws are not finite")
        kept.append(images[: max(num_kept - first, 0)])
        if net:
            shown = pictures.to_uint8(images)
            features.append(extractor.extract(net, shown, batch_size))
    images = np.concatenate(kept)
    found = _latents(np.asarray(model.learned(jnp.asarray(z))), against)
    if against.pictures is not None:
        joined = np.concatenate(features) if features else None
        found |= _pictures(images, joined, against.pictures)
    if against.of_points is not None:
        found |= against.of_points(images)
    return found


def decoded(model: Compared, z: np.ndarray) -> np.ndarray:
    """E[x | z] of z [B, D]: [B, *data_shape]."""
    return np.asarray(_mean(model, z))


def _decoded(
    model: Compared, z: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the first, E[x | z] [B, *data_shape])."""
    size = min(batch_size, len(z))
    for i, (batch, mask) in enumerate(datasets.padded_batches(z, size)):
        yield i * size, decoded(model, batch)[mask]


_mean = jax.jit(lambda model, z: model.decode(z).mean)


def _latents(z: np.ndarray, against: Against) -> dict[str, Estimate]:
    num, permutations = len(against.posterior), against.num_permutations
    if num < 3 or len(z) < 3 or not permutations:
        return {}
    found = two_sample.mmd(
        against.posterior,
        z[:num],
        against.kernel,
        seed=against.seed,
        num_permutations=permutations,
    )
    p = found.p_value
    error = float(np.sqrt(p * (1 - p) / (1 + permutations)))
    return {
        "mmd": found.distance,
        "mmd_p": Estimate(p, error, permutations, "probability"),
    }


def _pictures(
    decoded: np.ndarray, features: np.ndarray | None, against: Pictures
) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    num = len(against.held_out)
    if min(num, len(decoded)) > 1:
        queries = pictures.to_uint8(decoded[:num])
        nearest = memorisation.nearest_pictures(queries, against.train, 1)
        found["nearer_than_held_out"] = neighbours.nearer_than_held_out(
            nearest.distances[:, 0], against.held_out
        )
    if features is not None and against.scores is not None:
        net, reference, seed = against.scores
        scores = feature_scores.score(features, reference, seed=seed)
        for family, value in zip(feature_scores.families(net), scores, strict=True):
            if value is not None:
                found[family] = value
    return found
