"""What a stage trains and validates on: arrays on the devices, batches by step."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel
from ncp_jax.data import datasets

Array = jax.Array


def on_devices(
    mesh: Mesh,
    train: np.ndarray,
    valid: np.ndarray,
    batch_size: int,
    is_train_there: bool = True,
) -> dict[str, Array | None]:
    """Puts the examples of a stage on all devices.

    Args:
      mesh: the devices.
      train: [N, ...].
      valid: [M, ...] held-out examples.
      batch_size: of validation, too, unless there are fewer examples.
      is_train_there: False where `train` is too large: then batches are sent.

    Returns:
      "train" [N, ...] or None; "valid" [n, B, ...] and "valid_mask" [n, B].
    """
    # Validation batches are shared between the devices, too: padded to be even.
    num_valid = -(-len(valid) // mesh.size) * mesh.size
    batches = datasets.padded_batches(valid, min(batch_size, num_valid))
    rows, masks = zip(*batches, strict=True)
    stored = {
        "train": train if is_train_there else None,
        "valid": np.stack(rows),
        "valid_mask": np.stack(masks),
    }
    return parallel.replicate(mesh, stored)


def by_step(
    mesh: Mesh,
    key: Array,
    train: np.ndarray,
    batch_size: int,
    is_train_there: bool = True,
) -> Callable[[int, int], Array]:
    """Returns (first_step, n) -> numbers of the examples of n steps [n, B].

    Where the examples are not on the devices, it returns them instead: [n, B, ...].

    Args:
      mesh: the devices.
      key: PRNG key of this stream, used for nothing else.
      train: [N, ...].
      batch_size: B, at most N.
      is_train_there: as of `on_devices`.

    Raises:
      InputError: `batch_size` is not in [1, N].
    """
    datasets.check_batch_size(batch_size, len(train))

    def inputs(first_step: int, num_steps: int) -> Array:
        indices = datasets.batch_indices(
            key, first_step, num_steps, batch_size, len(train)
        )
        if is_train_there:
            return parallel.replicate(mesh, indices)
        return parallel.replicate(mesh, train[indices])

    return inputs
