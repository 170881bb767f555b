"""What draws of a prior are like, decoded and as latents, and what they cost."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.benchmark import timing
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
from ncp_jax.evaluation.metrics.extractor import FeatureNet
from ncp_jax.evaluation.metrics.feature_scores import Reference
from ncp_jax.evaluation.metrics.gaussian_kernel import Kernel
from ncp_jax.pages.parts import pictures
from ncp_jax.priors.ex_post.contract import LatentPrior

Array = jax.Array

NUM_REPEATS, MAX_SECONDS = 3, 60.0  # of timed batches of draws
NUM_SHOWN = 64  # of each prior, on the page


class Scores(NamedTuple):
    """What pictures are scored against, by a feature network."""

    net: FeatureNet
    reference: Reference
    seed: int


class Pictures(NamedTuple):
    """What decoded pictures are held against."""

    train: np.ndarray  # uint8 [N, H, W, C]
    held_out: np.ndarray  # [l] distances of held-out pictures to the nearest of them
    scores: Scores | None


class Against(NamedTuple):
    """What draws are held against; one for all priors."""

    posterior: np.ndarray  # [m, D'] of one z ~ q(z | x) of each of m held-out examples
    kernel: Kernel  # of the MMD
    num_permutations: int
    seed: int
    pictures: Pictures | None
    # Decoded points [n, ...] -> estimates by name; None for no such measure.
    of_points: Callable[[np.ndarray], Mapping[str, Estimate]] | None


class Measured(NamedTuple):
    """What was found of one prior's draws."""

    estimates: dict[str, Estimate]
    shown: np.ndarray  # decoded means of the first [NUM_SHOWN, *data_shape]


def draw(prior: LatentPrior, key: Array, num: int, batch_size: int) -> np.ndarray:
    """Draws z [num, D]; draw i depends on (key, i) alone.

    Raises:
      InputError: a draw is not finite.
    """
    size, parts = min(batch_size, num), []
    for first in range(0, num, size):
        keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(size))
        parts.append(np.asarray(_sample(prior, keys)))
    z = np.concatenate(parts)[:num]
    if not np.isfinite(z).all():
        raise InputError(f"draws of {type(prior).__name__} are not finite")
    return z


_sample = jax.jit(lambda prior, keys: prior.sample(keys))


def cost(prior: LatentPrior, key: Array, batch_size: int) -> dict[str, Estimate]:
    """What draws of z cost, decoding left out, `batch_size` at a time.

    Returns:
      `sampling_seconds` of 1,000, from the median of a few calls; and `num_bytes` of a
      batch: arguments, results and temporaries of the compiled program.
    """
    keys = jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(batch_size))
    jax.block_until_ready(_sample(prior, keys))  # compiled now, if not before
    taken = timing.time_calls(lambda: _sample(prior, keys), NUM_REPEATS, MAX_SECONDS)
    num_bytes = timing.num_bytes(_sample.lower(prior, keys).compile())
    seconds = 1_000 / batch_size * float(np.median(taken))
    return {
        "sampling_seconds": Estimate(seconds, None, len(taken), "s per 1,000"),
        "num_bytes": Estimate(float(num_bytes), None, 1, "bytes"),
    }


def measure(
    model: Compared, z: np.ndarray, against: Against, *, batch_size: int
) -> Measured:
    """Decodes z [n, D] and measures them, decoded and as they are.

    Returns:
      `mmd` and `mmd_p` of the first as many as there are encodings; of pictures the
      Frechet distance and KID of the feature network, and `nearer_than_held_out` of as
      many as there are held-out distances; what `of_points` finds.
    """
    kept, features = [], []
    net = against.pictures and against.pictures.scores and against.pictures.scores.net
    num_kept = len(against.pictures.held_out) if against.pictures else len(z)
    num_kept = max(num_kept, NUM_SHOWN)
    for first, images in _decoded(model, z, batch_size):
        if not np.isfinite(images).all():
            raise InputError("decoded draws are not finite")
        kept.append(images[: max(num_kept - first, 0)])
        if net:
            shown = pictures.to_uint8(images)
            features.append(extractor.extract(net, shown, batch_size))
    decoded = np.concatenate(kept)
    found = _latents(np.asarray(model.learned(jnp.asarray(z))), against)
    if against.pictures is not None:
        joined = np.concatenate(features) if features else None
        found |= _pictures(decoded, joined, against.pictures)
    if against.of_points is not None:
        found |= against.of_points(decoded)
    return Measured(found, decoded[:NUM_SHOWN])


def _decoded(
    model: Compared, z: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the first, E[x | z] [B, *data_shape])."""
    size = min(batch_size, len(z))
    for i, (batch, mask) in enumerate(datasets.padded_batches(z, size)):
        yield i * size, np.asarray(_mean(model, batch))[mask]


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
