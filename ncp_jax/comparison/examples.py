"""The stored examples of a comparison, and what is made of them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics.extractor import FeatureNet
from ncp_jax.evaluation.metrics.feature_scores import Reference
from ncp_jax.training.loop import Prepare


class Scores(NamedTuple):
    """What pictures are scored against, by a feature network."""

    net: FeatureNet
    reference: Reference
    seed: int


class Examples(NamedTuple):
    """Stored examples, in an order of no meaning, and what is made of them.

    The last of `train` are those that the floor decodes, so that the first, which KID's
    reference may be, are others.
    """

    train: np.ndarray
    valid: np.ndarray
    held_out: np.ndarray  # that everything is measured on
    prepare: Prepare
    has_pictures: bool
    scores: Scores | None = None
    of_points: Callable[[np.ndarray], Mapping[str, Estimate]] | None = None
