"""Pictures decoded once into a memory-mapped file, in parallel, resumably.

The pictures of a data set, train then valid then test, are one uint8 array
`NAME-KEY.npy`, whose KEY changes with the files, their crop and the shape. While it is
being filled it is called `NAME-KEY.partial` and `NAME-KEY.json` says how far it is; a
run that was killed continues there, one that finds another at work waits for it. Once
it is full `NAME-KEY.sha256` seals it, and every use compares. All may be deleted
whenever no run uses them.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm

from ncp_jax.data import picture_files, sealed_file
from ncp_jax.data.partial_array import PartialArray
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.errors import InputError, local_path

_VERSION = 1  # of what decoding does; another one makes old files unused
_CHUNK_BYTES = 2**25  # decoded between two records of the progress
_MAX_CHUNK = 512
_MAX_THREADS = 32
_NUM_NAMED = 20  # corrupt pictures in an error message


def folders(cache_dir: str, data_dir: Path) -> list[Path]:
    """Returns where a cache may be, best first.

    Args:
      cache_dir: the one folder to use; "" means ncp_jax_cache within `data_dir` or,
        where that cannot be written, ncp_jax in the user's own cache folder.
      data_dir: where the pictures are.
    """
    if cache_dir:
        return [Path(local_path("data.cache_dir", cache_dir))]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [data_dir / picture_files.CACHE_FOLDER, Path(home) / "ncp_jax"]


def load(
    name: str,
    splits: PictureSplits,
    shape: tuple[int, ...],
    cache_folders: list[Path],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opens the decoded pictures; decodes first what is not yet decoded.

    Args:
      name: of the data set, for file names and messages.
      splits: which pictures, in which order, and their crop.
      shape: (H, W, C) that they are resized to.
      cache_folders: see `folders`. A complete cache in any of them is used; a new one
        goes to the first that can be written.

    Returns:
      train, valid and test, read-only uint8 [N, H, W, C] views of one mapped file.

    Raises:
      InputError: corrupt pictures, all of which are named after the others have been
        decoded; no folder to write to, a full disk, or a broken cache.
    """
    picture_files.check_shape(name, shape)
    file_name = f"{name}-{_key(splits, shape)}.npy"
    complete = [folder / file_name for folder in cache_folders]
    path = next((path for path in complete if path.exists()), None)
    if path is None:
        path = _writable(name, cache_folders) / file_name
        try:
            with _locked(path.with_suffix(".lock")):
                if not path.exists():  # else another process has just made it
                    _decode_all(name, path, splits, shape)
        except OSError as error:
            raise InputError(
                f"{name}: the decoded pictures, {_gigabytes(splits, shape)}, cannot be "
                f"written into {path.parent} ({error}); what is there is kept. Make "
                "room, or set data.cache_dir to another folder"
            ) from error
    pictures = _open(path, (len(splits.names), *shape))
    first_valid = len(splits.train)
    first_test = first_valid + len(splits.valid)
    return (
        pictures[:first_valid],
        pictures[first_valid:first_test],
        pictures[first_test:],
    )


def _decode_all(
    name: str, path: Path, splits: PictureSplits, shape: tuple[int, ...]
) -> None:
    names = splits.names
    reasons = {}
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(PartialArray(path, (len(names), *shape)))
        read = stack.enter_context(splits.files.reader())
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(num_threads))

        def decode(row: int) -> np.ndarray | InputError:
            try:
                return picture_files.decode(
                    lambda: read(names[row]), shape, splits.box, splits.size
                )
            except InputError as error:
                return error

        # Those that failed before come first: perhaps their cause is mended.
        rows = [*sorted(partial.failed), *range(partial.num_tried, len(names))]
        bar = stack.enter_context(_bar(name, path, len(rows), len(names)))
        for chunk in _chunks(rows, shape):
            for row, picture in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(picture, InputError):
                    reasons[row] = str(picture)
                    partial.failed.add(row)
                else:
                    partial.write(row, picture)
                    partial.failed.discard(row)
            partial.num_tried = max(partial.num_tried, chunk[-1] + 1)
            partial.save()
            bar.update(len(chunk))
        if not reasons:
            partial.finish()
            # Whoever waits for this lock looks for the complete file next.
            path.with_suffix(".lock").unlink()
    if reasons:
        raise InputError(_corrupt(name, splits, reasons))


def _chunks(rows: list[int], shape: tuple[int, ...]) -> Iterator[list[int]]:
    length = max(1, min(_MAX_CHUNK, _CHUNK_BYTES // math.prod(shape)))
    return (rows[i : i + length] for i in range(0, len(rows), length))


def _bar(name: str, path: Path, num_rows: int, num_pictures: int) -> tqdm.tqdm:
    """A bar on a terminal; elsewhere one line at the start."""
    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        print(f"{name}: decoding {num_rows} pictures into {path}", file=sys.stderr)
    return tqdm.tqdm(
        total=num_pictures,
        initial=num_pictures - num_rows,
        desc=f"decoding {name}",
        unit="picture",
        disable=not is_terminal,
    )


def _corrupt(name: str, splits: PictureSplits, reasons: dict[int, str]) -> str:
    names = splits.names
    by_file = sorted((names[row], reason) for row, reason in reasons.items())
    lines = [
        f"\n  {splits.files.path}/{file} {reason}"
        for file, reason in by_file[:_NUM_NAMED]
    ]
    more = len(reasons) - len(lines)
    rest = f"\n  and {more} more" if more else ""
    return (
        f"{name}: {len(reasons)} of {len(names)} pictures cannot be used; fetch them "
        f"again:{''.join(lines)}{rest}"
    )


def _key(splits: PictureSplits, shape: tuple[int, ...]) -> str:
    """Identifies files, order, crop and shape by 16 hexadecimal digits."""
    stamps = splits.files.stamps
    files = [(name, stamps[name]) for name in splits.names]
    content = json.dumps([_VERSION, shape, splits.box, splits.size, files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _writable(name: str, cache_folders: list[Path]) -> Path:
    for folder in cache_folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    places = ", ".join(map(str, cache_folders))
    raise InputError(
        f"{name}: no folder for the decoded pictures can be written, tried {places}; "
        "set data.cache_dir to one that can"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of one cache; waits while another process holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: another process decodes, waiting", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.with_suffix(".sha256").exists():  # what follows would read broken bytes
        sealed_file.check(path)
    try:
        pictures = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # of a broken header NumPy and Python raise many kinds
        raise InputError(
            f"{path}: a broken cache ({error}); delete it, it will be made again"
        ) from error
    if pictures.shape != shape or pictures.dtype != np.uint8:
        raise InputError(
            f"{path}: holds {pictures.dtype} {pictures.shape}, expected uint8 {shape}; "
            "delete it, it will be made again"
        )
    if not path.with_suffix(".sha256").exists():
        sealed_file.check(path)
    return pictures


def _gigabytes(splits: PictureSplits, shape: tuple[int, ...]) -> str:
    return f"{len(splits.names) * math.prod(shape) / 1e9:.2f} GB"
