"""Arrays by name from an npz: whole and uncorrupted, or an error that says why not."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.records import whole_zip

Arrays = dict[str, np.ndarray]
NUMBERS = "fiu"  # of NumPy's kinds of types
INTEGERS = "iu"
_NPY = b"\x93NUMPY"  # how such a file begins


class Damaged(InputError):
    """A file of arrays that are not what they must be, and what to do."""

    def __init__(self, path: Path, reason: str, remedy: str):
        self.reason = reason
        super().__init__(f"{path} is damaged ({reason}): {remedy}")


class Kind(NamedTuple):
    """What an array must be.

    Attributes:
      axes: sizes; of equal letters all arrays of a file have one size, "*" may be any.
      types: the first letters of its type, of NumPy's `dtype.kind`.
    """

    axes: tuple[int | str, ...]
    types: str = NUMBERS


def read(path: Path, remedy: str) -> Arrays:
    """Returns all arrays of an npz.

    Unlike NumPy's own reader it takes every member as a whole, so that the checksum of
    each is compared whatever its header says.

    Args:
      path: of the file.
      remedy: what to do if it is damaged; a clause for the error.

    Raises:
      Damaged: it is, or it is no npz.
      OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(len(_NPY))
        if start == _NPY:
            reason = "one array, .npy, where an archive of them, .npz, was"
            raise Damaged(path, reason, remedy)
        try:
            with zipfile.ZipFile(file) as archive:
                whole_zip.check(archive)
                return {
                    name.removesuffix(".npy"): _array(archive.read(name))
                    for name in archive.namelist()
                }
        except Exception as error:  # of broken archives and headers come many kinds
            reason = str(error) or type(error).__name__
            raise Damaged(path, reason, remedy) from error


def read_exactly(path: Path, remedy: str, kinds: Mapping[str, Kind]) -> Arrays:
    """Returns all arrays of an npz, of which none that is expected may be lacking.

    Args:
      path: of the file.
      remedy: as of `read`.
      kinds: what is expected, by name; floats must be finite.

    Raises:
      Damaged: as of `read` and `check`; or one is lacking or not finite.
      OSError: as of `read`.
    """
    arrays = read(path, remedy)
    if missing := sorted(kinds.keys() - arrays.keys()):
        raise Damaged(path, f"it lacks {missing}", remedy)
    check(path, remedy, arrays, kinds)
    for name in kinds:
        if not np.isfinite(arrays[name]).all():
            raise Damaged(path, f"{name} is not finite", remedy)
    return arrays


def check(path: Path, remedy: str, arrays: Arrays, kinds: Mapping[str, Kind]) -> None:
    """Compares arrays with what they must be.

    Args:
      path: of their file, for the error.
      remedy: as of `read`.
      arrays: those of them that are in `kinds` are compared.
      kinds: by name.

    Raises:
      Damaged: one is of another shape or type; names it.
    """
    sizes: dict[str, tuple[int, str]] = {}  # by letter, and whose it is
    for name, kind in kinds.items():
        if name not in arrays:
            continue
        array = arrays[name]
        found = f"{array.dtype} {list(array.shape)}"
        if array.ndim != len(kind.axes) or array.dtype.kind not in kind.types:
            reason = f"{name} is {found}, not {_described(kind)}"
            raise Damaged(path, reason, remedy)
        for size, axis in zip(array.shape, kind.axes, strict=True):
            if isinstance(axis, int):
                expected, why = axis, "it must be"
            elif axis == "*":
                continue
            else:
                expected, other = sizes.setdefault(axis, (size, name))
                why = f"as of {other}, it must be"
            if size != expected:
                where = f"where {size} stands, {why} {expected}"
                raise Damaged(path, f"{name} is {found}: {where}", remedy)


def _array(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if rest := len(content) - stream.tell():
        raise ValueError(f"{rest} bytes follow an array")
    return array


def _described(kind: Kind) -> str:
    types = {
        "f": "floats",
        "i": "integers",
        "u": "integers",
        "U": "text",
        "b": "truths",
    }
    names = dict.fromkeys(types[letter] for letter in kind.types)
    axes = ", ".join("any" if axis == "*" else str(axis) for axis in kind.axes)
    return f"{' or '.join(names)} of shape [{axes}]"
