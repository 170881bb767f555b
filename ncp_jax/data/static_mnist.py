"""Black-and-white pictures in three fixed parts: packed, unpacked or in text.

Statically binarised MNIST (Larochelle & Murray, 2011) goes round in these layouts.
"""

import math
from pathlib import Path

import numpy as np

from ncp_jax.data.readers import read_maybe_gzipped
from ncp_jax.errors import InputError, explained
from ncp_jax.records import array_files

SPLITS = ("train", "valid", "test")
_SPACE, _ZERO, _ONE = b" \t\r\n", ord("0"), ord("1")


def load(name: str, data_dir: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Finds the files and reads them.

    Args:
      name: of the data set, and of the folder that they are looked for in.
      data_dir: holds that folder; text files may lie beside it, too.
      shape: (H, W, C) of a picture.

    Returns:
      For train, valid and test, uint8 [N, H, W, C] pictures of 0 and 255.

    Raises:
      InputError: no or several files, or what they hold is something else.
    """
    pattern = data_dir / name / "*.npz"
    paths = sorted(pattern.parent.glob(pattern.name))
    texts = None if paths else _find_texts(name, data_dir)
    if texts:
        return {split: read_text(path, shape) for split, path in texts.items()}
    if len(paths) != 1:
        found = [path.name for path in paths] or "nothing"
        raise InputError(
            f"{name}: one {pattern} is needed, found {found}; or {name}_train.amat, "
            f"_valid.amat and _test.amat, there or in {data_dir}"
        )
    return read_npz(paths[0], shape)


def read_npz(path: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Reads an npz with keys train, valid and test, of bits packed or not.

    Args:
      path: an npz; its arrays are uint8 [N, ceil(H W C / 8)] rows of
        `np.packbits(..., axis=1)`, or of any type [N, H W C] or [N, H, W(, C)] and
        hold 0 and 1, or 0 and 255.
      shape: (H, W, C) of a picture.

    Returns:
      For each key, uint8 [N, H, W, C] pictures of 0 and 255.

    Raises:
      InputError: the archive is corrupt, lacks a key, or holds something else.
    """
    try:
        arrays = array_files.read(path, "fetch it again")
    except array_files.Damaged as error:
        reason = f"corrupt npz ({error.reason})"
        raise InputError(f"{path}: {reason}; fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({explained(error)})") from error
    pictures = {}
    for key in SPLITS:
        if key not in arrays:
            raise InputError(
                f"{path}: no key {key!r} among {sorted(arrays)}; expected train, valid "
                "and test"
            )
        pictures[key] = _bits(path, key, arrays[key], shape)
    return {key: (255 * bits).reshape(-1, *shape) for key, bits in pictures.items()}


def read_text(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads Larochelle's text: a picture a line, a 0 or 1 for each pixel.

    Args:
      path: an .amat file, gzipped or not.
      shape: (H, W, C) of a picture.

    Returns:
      uint8 [N, H, W, C] pictures of 0 and 255.

    Raises:
      InputError: the file holds anything else, with the line.
    """
    text = np.frombuffer(read_maybe_gzipped(path), np.uint8)
    is_digit = (text == _ZERO) | (text == _ONE)
    is_strange = ~(is_digit | np.isin(text, list(_SPACE)))
    is_strange[1:] |= is_digit[1:] & is_digit[:-1]  # a number of two digits
    if is_strange.any():
        at = int(np.argmax(is_strange))
        line = 1 + int(np.count_nonzero(text[:at] == ord("\n")))
        seen = bytes(text[max(at - 3, 0) : at + 9]).decode(errors="replace")
        raise InputError(
            f"{path}, line {line}: found {seen!r}, expected zeros and ones with spaces "
            "between; fetch it again, or save an npz with keys train, valid and test"
        )
    num_pixels = math.prod(shape)
    starts = np.append(0, np.flatnonzero(text == ord("\n")) + 1)
    starts = starts[starts < len(text)]
    counts = (
        np.add.reduceat(is_digit, starts, dtype=np.int64) if len(starts) else starts
    )
    if wrong := np.flatnonzero((counts != num_pixels) & (counts != 0)).tolist():
        raise InputError(
            f"{path}, line {wrong[0] + 1}: {counts[wrong[0]]} pixels, expected "
            f"{num_pixels} of shape {shape}; the file is truncated, or "
            "config.data.shape is another"
        )
    return ((text[is_digit] - _ZERO) * np.uint8(255)).reshape(-1, *shape)


def _find_texts(name: str, data_dir: Path) -> dict[str, Path] | None:
    for folder in (data_dir / name, data_dir):
        found = {}
        for split in SPLITS:
            stem = folder / f"{name}_{split}.amat"
            for path in (stem, stem.with_suffix(".amat.gz")):
                if path.is_file():
                    found[split] = path
        if len(found) == len(SPLITS):
            return found
    return None


def _bits(
    path: Path, key: str, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Zeros and ones, uint8 [N, H W C], from packed or unpacked ones."""
    num_pixels = math.prod(shape)
    num_bytes = math.ceil(num_pixels / 8)
    if array.dtype == np.uint8 and array.shape[1:] == (num_bytes,) != (num_pixels,):
        return np.unpackbits(array, axis=1, count=num_pixels)
    if array.shape[1:] not in ((num_pixels,), shape, shape[:-1] * (shape[-1] == 1)):
        raise InputError(
            f"{path}: {key!r} is {array.dtype} {list(array.shape)}; pictures of "
            f"shape {shape} pack into uint8 [N, {num_bytes}], or are [N, {num_pixels}] "
            "zeros and ones"
        )
    rows = array.reshape(len(array), -1)
    is_one = rows == (255 if rows.size and rows.max() == 255 else 1)
    if not (is_one | (rows == 0)).all():
        raise InputError(
            f"{path}: {key!r} holds other values than 0 and 1, or 0 and 255: these are "
            "no binarised pictures; for grey ones choose config.data.name='arrays'"
        )
    return is_one.astype(np.uint8)
