"""Which examples a measure takes, where it does not take all: some at random.

The first n of a file are no sample of it: MNIST's halves have other writers, and class
folders come class by class.
"""

import numpy as np

from ncp_jax import rng
from ncp_jax.experiment.setup.wiring import Experiment


def rows(experiment: Experiment, split: str, most: int = 0) -> np.ndarray:
    """Rows of a split in an order of the seed's, int64: at most so many.

    Every measure takes them from the same order, so that the rows of one cap are among
    those of a larger one.

    Args:
      experiment: the run, whose seed decides.
      split: of its data set.
      most: 0 for all.
    """
    key = rng.stream(experiment.key("evaluate"), "rows")
    order = np.random.default_rng(rng.numpy_seed(key))
    return order.permutation(len(getattr(experiment.dataset, split)))[: most or None]


def held_out(experiment: Experiment, most: int = 0) -> np.ndarray:
    """The stored examples [n, *data_shape] that are measured: `rows` of the split."""
    return experiment.held_out[rows(experiment, experiment.config.evaluate.split, most)]
