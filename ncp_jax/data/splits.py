"""How a data set without a validation or a test part is divided."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ncp_jax.errors import InputError

Examples = TypeVar("Examples", np.ndarray, list[str], list[int])
Name = TypeVar("Name", str, int)


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


def complete(
    parts: Mapping[str, list[Name]], source: str
) -> tuple[list[Name], list[Name], list[Name]]:
    """Returns train, valid and test, of which some may be lacking.

    What is lacking is made from what is there, shuffled by one fixed permutation:
    without a test part, half of the validation part; without that, a sixth of the
    training part; without any, a tenth is held out, half of it for testing.

    Args:
      parts: names or rows of "train", "valid", "test" in a fixed order, and of "" where
        there are none of these.
      source: file or folder that an error names.

    Raises:
      InputError: too few examples, or none to train on.
    """
    if not any(parts[split] for split in ("train", "valid", "test")):
        return _three_parts(parts[""], source)
    train, valid, test = parts["train"], parts["valid"], parts["test"]
    if not train:
        beside = " and ".join(f"a {key} part" for key in parts if key and parts[key])
        raise InputError(f"{source}: has {beside} but no pictures in train/")
    if not valid:
        train, valid = hold_out(_shuffled(train), source)
    if not test:
        if len(valid) < 2:
            raise InputError(
                f"{source}: has no test/, and {len(valid)} validation picture cannot "
                "be halved; at least 2 are needed"
            )
        shuffled = _shuffled(valid)
        valid, test = shuffled[: len(valid) // 2], shuffled[len(valid) // 2 :]
    return train, valid, test


def _three_parts(
    names: list[Name], source: str
) -> tuple[list[Name], list[Name], list[Name]]:
    num_held_out = max(1, len(names) // 20)
    first_valid = len(names) - 2 * num_held_out
    if first_valid < 1:
        raise InputError(
            f"{source}: {len(names)} pictures are too few for training, validation and "
            "test; at least 3 are needed"
        )
    names = _shuffled(names)
    return (
        names[:first_valid],
        names[first_valid : first_valid + num_held_out],
        names[first_valid + num_held_out :],
    )


def _shuffled(names: list[Name]) -> list[Name]:
    return [names[i] for i in pseudo_random_order(len(names))]
