"""Named arrays in an npz whose every array has its sha256, so that damage is seen."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.records import array_files, whole_file

HASHES = "sha256"  # the name of the array that holds the others' hashes


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the sha256 of every array, its type and shape included, by its name."""
    return {
        name: hashlib.sha256(
            f"{array.dtype.str} {array.shape} ".encode()
            + np.ascontiguousarray(array).tobytes()
        ).hexdigest()
        for name, array in arrays.items()
    }


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns one sha256 of all arrays and their names, in hexadecimal."""
    lines = [f"{name} {value}" for name, value in sorted(digests(arrays).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays and their hashes; a kill leaves no half file at `path`."""
    content: dict[str, Any] = dict(arrays)
    content[HASHES] = np.array(json.dumps(digests(arrays)))
    with whole_file.opened(Path(path)) as file:
        np.savez(file, allow_pickle=False, **content)


def read(path: str | Path, remedy: str) -> dict[str, np.ndarray]:
    """Reads what `write` wrote, and compares every array with its hash.

    Args:
      path: of the file.
      remedy: what to do where it is missing or damaged; a clause for the error.

    Raises:
      InputError: a missing, damaged or changed file.
    """
    try:
        arrays = array_files.read(Path(path), remedy)
        expected = json.loads(str(arrays.pop(HASHES)))
    except (OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} holds no hashed arrays ({error}): {remedy}"
        ) from error
    if digests(arrays) != expected:
        raise InputError(f"{path}: an array differs from its sha256: {remedy}")
    return arrays
