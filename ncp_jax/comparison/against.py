"""What draws of all priors are held against: encodings and pictures."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import draws, one_vector
from ncp_jax.comparison.examples import Examples, Scores
from ncp_jax.comparison.one_vector import Compared, OneVector
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import gaussian_kernel, memorisation
from ncp_jax.evaluation.metrics.gaussian_kernel import Kernel
from ncp_jax.pages.parts import pictures as picture_files
from ncp_jax.priors.ex_post.contract import Encodings

Array = jax.Array


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

    def without_nearest(self) -> "Against":
        """The same for what decodes encodings of training pictures, its originals."""
        if self.pictures is None:
            return self
        none = self.pictures.held_out[:0]
        return self._replace(pictures=self.pictures._replace(held_out=none))


def of(
    model: Compared,
    examples: Examples,
    encodings: Encodings,
    key: Array,
    settings: ComparisonSettings,
) -> Against:
    """Returns what the draws of all priors are held against."""
    num = min(settings.num_mmd_samples, len(examples.held_out), len(examples.train))
    posterior = np.zeros((0, encodings.train.shape[-1]), np.float32)
    if num >= 3:
        posterior = one_vector.draws(
            model,
            examples.held_out[:num],
            examples.prepare,
            rng.stream(key, "held-out encodings"),
            settings.batch_size,
        )
        posterior = np.asarray(model.learned(jnp.asarray(posterior)))
    of_base = draws.draw(encodings.base, rng.stream(key, "base"), max(num, 3), 1_000)
    seed = rng.numpy_seed(rng.stream(key, "kernel"))
    of_q = posterior
    if of_q.shape[1] > gaussian_kernel.NUM_COMPONENTS:
        # Axes of largest variance in the held-out encodings would tell these from any
        # other draws, also of the same distribution.
        of_q = np.asarray(encodings.valid[:num, 0])
    kernel = gaussian_kernel.fit(np.concatenate([of_q, of_base]), seed=seed)
    of_pictures = None
    if examples.has_pictures:
        queries = examples.held_out[: settings.num_neighbour_queries]
        train = picture_files.as_uint8(examples.train)
        nearest = memorisation.nearest_pictures(
            picture_files.as_uint8(queries), train, 1
        )
        of_pictures = Pictures(train, nearest.distances[:, 0], examples.scores)
    return Against(
        posterior,
        kernel,
        settings.num_permutations,
        seed,
        of_pictures,
        examples.of_points,
    )


def floor(
    model: Compared,
    examples: Examples,
    encodings: Encodings,
    key: Array,
    settings: ComparisonSettings,
) -> np.ndarray:
    """Returns encodings of training examples that are not in the reference of KID."""
    num = len(examples.train)
    if examples.scores is not None:
        num -= len(examples.scores.reference.features)
    num = max(min(settings.num_samples, num), 1)
    if isinstance(model, OneVector):
        return np.asarray(encodings.train[-num:, 0])
    return one_vector.draws(
        model,
        examples.train[-num:],
        examples.prepare,
        rng.stream(key, "floor"),
        settings.batch_size,
    )
