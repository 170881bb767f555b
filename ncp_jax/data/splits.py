"""How a data set without a validation or a test part is divided."""

from typing import TypeVar

import numpy as np

from ncp_jax.errors import InputError

Examples = TypeVar("Examples", np.ndarray, list[str])


def hold_out(train: Examples, source: str) -> tuple[Examples, Examples]:
    """Splits the last sixth off, at least one example, for validation.

    Args:
      train: [N, ...] examples, or the names of their files.
      source: file or folder that the error names.

    Raises:
      InputError: there are fewer than two examples.
    """
    num_valid = max(1, len(train) // 6)
    if num_valid >= len(train):
        raise InputError(
            f"{source}: {len(train)} training examples are too few to keep one for "
            "validation; at least 2 are needed"
        )
    return train[:-num_valid], train[-num_valid:]


def pseudo_random_order(num_examples: int) -> np.ndarray:
    """Returns the same permutation of range(num_examples) always, int64 [N].

    Raw bits are the one stream that NumPy promises never to change, so a test set
    chosen this way is the same for every seed and every version.
    """
    return np.argsort(np.random.PCG64(25).random_raw(num_examples), kind="stable")
