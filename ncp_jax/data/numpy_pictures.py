"""Pictures in NumPy's files: one `.npy` or `.npz`, or a folder of them."""

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ncp_jax.data.picture_files import is_hidden
from ncp_jax.data.picture_folder import SPLIT_WORDS, split_of
from ncp_jax.data.splits import complete
from ncp_jax.errors import InputError, explained

SUFFIXES = (".npy", ".npz")
_NUM_NAMED = 5  # arrays in a message
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # train, valid, test
Arrays = dict[str, np.ndarray]  # by name: the file's, with the key of an npz


def load(path: Path, shape: tuple[int, ...]) -> Parts:
    """Reads pictures and divides them.

    An array whose name, or that of its file or folder, holds a word of `SPLIT_WORDS`
    (`x_train`, `val_images`, `test/a.npy`) belongs to that part; others are divided,
    see `splits.complete`.  Labels are left out.  What was taken for what is printed.

    Args:
      path: a file, or a folder with files anywhere below it.
      shape: (H, W, C) of a picture.

    Returns:
      train, valid and test, uint8 [N, H, W, C] each; what lies in files of its own is
      mapped, not read.

    Raises:
      InputError: no pictures, of another shape or type, twice the same ones, or too
        few.
    """
    arrays, left_out = {}, []
    for name, array in _read(path):
        if is_labels(array, shape):
            left_out.append(_described(name, array))
        else:
            arrays[name] = pictures_of(f"{path}: {name}", array, shape)
    if not arrays:
        seen = ", ".join(left_out[:_NUM_NAMED]) or "nothing"
        raise InputError(
            f"{path}: no array of pictures, uint8 [N, H, W] or [N, H, W, C], in .npy "
            f"or .npz files; found {seen}"
        )
    groups: dict[str, list[str]] = {split: [] for split in ("", *SPLIT_WORDS)}
    for name in arrays:
        groups[split_in(name)].append(name)
    if any(groups[split] for split in SPLIT_WORDS):
        left_out += [_described(name, arrays[name]) for name in groups[""]]
        groups[""] = []
    _tell(path, groups, left_out)
    return _divided(path, arrays, groups)


def read_npz(path: Path) -> Arrays:
    """Returns the arrays of an npz by key; nothing is unpickled.

    Raises:
      InputError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive}
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({explained(error)})") from error
    except MemoryError:
        raise
    except Exception as error:  # of broken archives and headers NumPy raises many kinds
        raise _damaged(path, error) from error


def pictures_of(source: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns pictures [N, H, W, C] as they are, or with the axes that they lack.

    Args:
      source: of the array, for the error.
      array: uint8 [N, H, W, C], or of grey pictures [N, H, W] or [N, H W].
      shape: (H, W, C) that is expected.

    Raises:
      InputError: they are something else; with what makes them of it.
    """
    if array.dtype != np.uint8:
        raise InputError(
            f"{source} is of type {array.dtype}, expected uint8 from 0 to 255; "
            f"convert: {_conversion(array)}"
        )
    is_grey = shape[-1] == 1
    if is_grey and array.shape[1:] in (shape[:-1], (math.prod(shape),)):
        array = array.reshape(len(array), *shape)
    if array.shape[1:] != shape:
        hint = "resize them, or set config.data.shape"
        if array.shape[1:] == (shape[-1], *shape[:-1]):
            hint = "channels come last: x.transpose(0, 2, 3, 1)"
        raise InputError(
            f"{source} is {list(array.shape)}, expected [N, {str(shape)[1:-1]}]; {hint}"
        )
    if array.size and array[:1000].max() <= 1 and array.max() <= 1:
        raise InputError(
            f"{source} holds no values but 0 and 1 of 0 to 255, nearly black pictures; "
            "convert: x * np.uint8(255)"
        )
    return array


def is_labels(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether an array has too few axes for pictures of a shape."""
    is_flat = array.ndim == 2 and array.shape[1] == math.prod(shape)
    return array.ndim < 3 and not is_flat


def split_in(name: str) -> str:
    """Returns the part that a name speaks of, "" for none: "x_train" is "train".

    The innermost of its folders, file and key that names one part decides: in
    "train_and_test/x_test.npy" that is the file.
    """
    for place in reversed(re.split(r"[/:]", name)):
        found = {split_of(word) for word in re.split(r"[_. -]", place)} - {""}
        if len(found) == 1:
            return found.pop()
    return ""


def _read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays, by name relative to the folder; of an npz with its key."""
    for file in _files(path):
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        if file.suffix.lower() == ".npy":
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except PermissionError as error:
                raise InputError(f"{file}: {explained(error)}") from error
            except Exception as error:  # as of an npz
                raise _damaged(file, error) from error
            yield name, array
        else:
            arrays = read_npz(file)
            for key, array in arrays.items():
                yield f"{name}:{key}", array


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{path} is neither a folder nor a .npy or .npz file, which is what "
                "config.data.name='arrays' takes"
            )
        return [path]
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(map(is_hidden, file.relative_to(path).parts))
    ]


def _damaged(path: Path, error: Exception) -> InputError:
    if "Object arrays" in str(error) or "Python objects" in str(error):
        return InputError(
            f"{path} holds Python objects, which are never unpickled; save its "
            "pictures as one uint8 array [N, H, W, C]"
        )
    return InputError(f"{path}: corrupt or no array ({error}); fetch it again")


def _conversion(array: np.ndarray) -> str:
    if array.dtype == bool:
        return "x * np.uint8(255)"
    if not np.issubdtype(array.dtype, np.number) or not array.size:
        return "it holds no numbers"
    low, high = array.min(), array.max()
    seen = f", of values from {low:g} to {high:g}"
    if low >= 0 and 1 < high <= 255:
        return f"np.round(x).astype(np.uint8){seen}"
    if low >= 0 and high <= 1:
        return f"np.round(255 * x).astype(np.uint8){seen}"
    if low >= -1 and high <= 1:
        return f"np.round(127.5 * (x + 1)).astype(np.uint8){seen}"
    return f"bring x to 0 .. 255, then x.astype(np.uint8){seen}"


def _divided(path: Path, arrays: Arrays, groups: dict[str, list[str]]) -> Parts:
    """The three parts; each comes from the arrays of one group."""
    joined, rows, first = {}, {}, 0
    # Across the parts, too: what is trained on must not be what is measured on.
    _refuse_copies(path, {name: arrays[name] for of in groups.values() for name in of})
    for split, names in groups.items():
        parts = [arrays[name] for name in names]
        joined[split] = parts[0] if len(parts) == 1 else _joined(parts)
        rows[split] = list(range(first, first + len(joined[split])))
        first += len(joined[split])

    def taken(part: list[int]) -> np.ndarray:
        (split,) = (s for s in rows if rows[s] and rows[s][0] <= part[0] <= rows[s][-1])
        if len(part) == len(rows[split]):
            return joined[split]
        return joined[split][np.sort(part) - rows[split][0]]

    train, valid, test = complete(rows, str(path))
    return taken(train), taken(valid), taken(test)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.uint8)


def _refuse_copies(path: Path, arrays: Arrays) -> None:
    """Files that share most of their pictures are versions, not parts, of a set."""
    if len(arrays) < 2:
        return
    seen: dict[str, set[int]] = {}
    for name, array in arrays.items():
        checks = {zlib.crc32(np.ascontiguousarray(picture)) for picture in array}
        for other, others in seen.items():
            if 2 * len(checks & others) > min(len(checks), len(others)):
                raise InputError(
                    f"{path}: {other} and {name} hold the same pictures for the most "
                    "part: give the file that is meant as config.data.dir"
                )
        seen[name] = checks


def _described(name: str, array: np.ndarray) -> str:
    return f"{name} ({array.dtype} {list(array.shape)})"


def _tell(path: Path, groups: dict[str, list[str]], left_out: list[str]) -> None:
    said = [
        f"{split or 'to be divided'}: {', '.join(names[:_NUM_NAMED])}"
        + f" and {len(names) - _NUM_NAMED} more" * (len(names) > _NUM_NAMED)
        for split, names in groups.items()
        if names
    ]
    if left_out:
        more = f" and {len(left_out) - _NUM_NAMED} more" * (len(left_out) > _NUM_NAMED)
        said.append(f"left out: {', '.join(left_out[:_NUM_NAMED])}{more}")
    print(f"{path}: {'; '.join(said)}")
