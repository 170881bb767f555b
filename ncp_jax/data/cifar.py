"""CIFAR-10 (Krizhevsky, 2009) in its publisher's binary and Python layouts.

Both are read from their folder or straight from their tar.gz. The Python layout is a
pickle: of the classes it may name only NumPy's array is known, and in its stead one of
our own that keeps the bytes, so opening a file runs no code that the file chose.
"""

import gzip
import io
import math
import pickle
import pickletools
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ncp_jax.errors import InputError, explained

SHAPE = (32, 32, 3)
PICTURES_PER_BATCH = 10_000
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY, _PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
_BINARY_ARCHIVE, _PYTHON_ARCHIVE = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_WHY = "CIFAR-10 asks for nothing else, so it is refused"
_NUM_BYTES = 3072  # red, then green, then blue, each 32x32 row by row


def find(data_dir: Path) -> Path | None:
    """Finds a folder with all six batches, or an archive; see `patterns`.

    Folders come before archives of the same place, the binary layout before Python's.
    """
    for place in _places(data_dir):
        for folder in (_BINARY, _PYTHON):
            suffix = ".bin" if folder == _BINARY else ""
            batches = (place / folder / (batch + suffix) for batch in _BATCHES)
            if all(batch.is_file() for batch in batches):
                return place / folder
        for archive in (_BINARY_ARCHIVE, _PYTHON_ARCHIVE):
            if (place / archive).is_file():
                return place / archive
    return None


def patterns(data_dir: Path) -> list[str]:
    """Names every file that `find` looks for, in the shell's brace notation."""
    batches = "{data_batch_{1,2,3,4,5},test_batch}"
    files = (
        f"{_BINARY}/{batches}.bin",
        f"{_PYTHON}/{batches}",
        "cifar-10-{binary,python}.tar.gz",
    )
    return [f"{place}/{file}" for place in _places(data_dir) for file in files]


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the pictures of training and test, in the publisher's order.

    Args:
      path: a folder or an archive under its publisher's name, as `find` returns it.

    Returns:
      uint8 [50000, 32, 32, 3] and [10000, 32, 32, 3].

    Raises:
      InputError: a batch is missing, truncated, corrupt, of another size or, as a
        pickle, asks for anything but arrays and plain containers.
    """
    is_binary = path.name in (_BINARY, _BINARY_ARCHIVE)
    names = [batch + (".bin" if is_binary else "") for batch in _BATCHES]
    contents = _from_folder(path, names) if path.is_dir() else _from_tar(path, names)
    pictures = np.empty((len(names), PICTURES_PER_BATCH, *SHAPE), np.uint8)
    for i, name in enumerate(names):
        source = f"{path}/{name}"
        rows = (_records if is_binary else _unpickled)(source, contents[name])
        planes = rows.reshape(PICTURES_PER_BATCH, 3, 32, 32)
        pictures[i] = planes.transpose(0, 2, 3, 1)
    return pictures[:-1].reshape(-1, *SHAPE), pictures[-1]


def _places(data_dir: Path) -> list[Path]:
    return [data_dir / "cifar10", data_dir, data_dir / "CIFAR10"]


def _from_folder(path: Path, names: list[str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            reason = f"cannot be read ({explained(error)})"
            raise InputError(f"{path / name}: {reason}") from error
    return contents


def _from_tar(path: Path, names: list[str]) -> dict[str, bytes]:
    """The files of `names`, in whatever folder of the archive; nothing is unpacked."""
    contents = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    file = archive.extractfile(member) if name in names else None
                    if file:
                        contents[name] = file.read()
            while stream.read(2**20):  # gzip's checksum comes last
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"{path}: no tar.gz archive, or truncated or corrupt ({error}); fetch it "
            "again"
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; fetch it again")
    return contents


def _records(source: str, content: bytes) -> np.ndarray:
    """The [N, 3072] pictures of a binary batch, whose records begin with a label."""
    expected = PICTURES_PER_BATCH * (1 + _NUM_BYTES)
    if len(content) != expected:
        raise InputError(
            f"{source}: {len(content)} bytes found, expected {PICTURES_PER_BATCH} "
            f"records of {1 + _NUM_BYTES} = {expected} bytes; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, 1 + _NUM_BYTES)[:, 1:]


def _unpickled(source: str, content: bytes) -> np.ndarray:
    """The [N, 3072] pictures of a Python batch, a dict with key "data"."""
    try:
        _check_operations(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return _array_of(batch)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except Exception as error:  # a broken pickle raises of any kind, MemoryError, too
        raise InputError(
            f"{source}: no pickle, or truncated or corrupt ({error}); fetch it again"
        ) from error


def _array_of(batch: Any) -> np.ndarray:
    """The [N, 3072] pictures of an unpickled batch."""
    array = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
    if not isinstance(array, _PickledArray):
        raise InputError("the pickle is no dict with an array as 'data'")
    shape = (PICTURES_PER_BATCH, _NUM_BYTES)
    if (array.shape, array.kind, array.is_fortran) != (shape, "u1", False):
        order = ", columns first" if array.is_fortran else ""
        raise InputError(
            f"'data' is {array.kind} {array.shape}{order}, expected u1 {shape}; fetch "
            "it again"
        )
    if not isinstance(array.content, bytes) or len(array.content) != math.prod(shape):
        raise InputError(f"the bytes of 'data' do not fill {shape}")
    return np.frombuffer(array.content, np.uint8).reshape(shape)


def _check_operations(content: bytes) -> None:
    """Refuses what a pickle must not ask for, before anything of it is run.

    A number of the memo that is beyond the file's length makes Python's reader ask for
    memory of that size. An import is named here even where the pickle is broken after
    it, or names it in a way that the reader does not come to.
    """
    names: list[Any] = ["?", "?"]  # the last two strings
    memo: dict[int, Any] = {}
    value: Any
    for operation, value, _ in pickletools.genops(content):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if not 0 <= value <= len(content):
                raise InputError(
                    f"the pickle numbers an object {value}, more than the "
                    f"{len(content)} bytes of the file; it is corrupt, fetch it again"
                )
            memo[value] = names[-1]
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = names[-1]
        elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
            names = [names[-1], memo.get(value, "?")]
        elif operation.name in ("GLOBAL", "INST"):
            _check_import(*value.split(" ", 1))
        elif operation.name == "STACK_GLOBAL":
            _check_import(*names)
        elif operation.name.startswith("EXT"):
            raise InputError(
                f"the pickle asks for the registered class {value}: {_WHY}"
            )
        elif isinstance(value, str):
            names = [names[-1], value]
        elif isinstance(value, bytes):
            names = [names[-1], value[:100].decode("latin1")]


def _check_import(module: str, name: str) -> None:
    """Refuses what is not one of the three names that arrays are pickled by."""
    is_known = module == "numpy" and name in ("ndarray", "dtype")
    if not is_known and not (module in _MULTIARRAY and name == "_reconstruct"):
        raise InputError(
            f"the pickle asks for {module}.{name}, which is neither an array nor a "
            f"plain container; {_WHY}"
        )


class _PickledType:
    """Stands in for `numpy.dtype`; keeps the name, such as "u1"."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Ignores byte order and alignment, which single bytes do not have."""


class _PickledArray:
    """Stands in for `numpy.ndarray`; keeps what describes it."""

    shape: Any = None
    kind: str = "nothing"
    is_fortran: bool = False
    content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, is_fortran, self.content = state
        self.kind, self.is_fortran = dtype.name, bool(is_fortran)


class _Unpickler(pickle.Unpickler):
    """Knows NumPy's array, as Python 2 and later pickled it, and no other class."""

    def find_class(self, module: str, name: str) -> Any:
        _check_import(module, name)
        if name == "ndarray":
            return _PickledArray
        if name == "dtype":
            return _PickledType
        return lambda *_: _PickledArray()
