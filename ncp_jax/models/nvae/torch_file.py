"""Reads PyTorch's checkpoints as NumPy; those of 1.6 or later without PyTorch.

Only tensors, plain containers and `argparse.Namespace` are built: a file that asks for
any other class is refused, so reading one runs no code of its own.
"""

import argparse
import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.records import whole_zip

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


# How a file begins that PyTorch wrote before version 1.6: a pickled number.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def load(path: str | pathlib.Path) -> Any:
    """Returns the object that `torch.save` wrote, every tensor as an array.

    Args:
      path: of the file.

    Raises:
      InputError: for another format, or a class that is neither tensor nor container.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LEGACY_START))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if start == LEGACY_START:
        return _load_legacy(path)
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no file that torch.save has written")
    try:
        with zipfile.ZipFile(path) as archive:
            whole_zip.check(archive)
            return _load_archive(archive)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # of broken archives and pickles come many kinds
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: the checkpoint is damaged ({reason}); fetch it again"
        ) from error


def _load_archive(archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError("it holds no PyTorch checkpoint (no data.pkl)")
    content = archive.read(pickles[0])  # as a whole, so that its checksum is compared
    for operation, value, _ in pickletools.genops(content):
        # Python's reader would ask for memory of this size.
        if operation.name.endswith("PUT") and not 0 <= int(value or 0) <= len(content):
            raise InputError(f"the pickle numbers an object {value}; fetch it again")
    file, folder = io.BytesIO(content), pickles[0].removesuffix(".pkl")
    return _Unpickler(file, archive, folder).load()


def _load_legacy(path: str | pathlib.Path) -> Any:
    """Reads the format before 1.6 with PyTorch's own restricted unpickler."""
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            f"{path} was written before PyTorch 1.6: reading it "
            "needs PyTorch, which nothing else here does: pip install torch"
        ) from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _as_numpy(content, torch.Tensor)


def _as_numpy(content: Any, tensor: type) -> Any:
    """The same with an array in the place of every tensor."""
    if isinstance(content, tensor):
        return content.detach().numpy()  # type: ignore[attr-defined]
    if isinstance(content, dict):
        return {name: _as_numpy(value, tensor) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_as_numpy(value, tensor) for value in content)
    return content


class _Unpickler(pickle.Unpickler):
    """Knows tensors by the names under which PyTorch pickles them."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._folder = archive, folder
        self._classes: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): collections.defaultdict,
            ("argparse", "Namespace"): argparse.Namespace,
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *names: names,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        try:
            return self._classes[module, name]
        except KeyError:
            raise InputError(
                f"the checkpoint holds a {module}.{name}, which is neither a tensor "
                "nor a plain container"
            ) from None

    def persistent_load(self, pid: tuple[Any, ...]) -> np.ndarray:
        _, dtype, key, *_ = pid  # "storage", type, key, location, size
        return np.frombuffer(self._archive.read(f"{self._folder}/{key}"), dtype)


def _tensor(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: Any,
) -> np.ndarray:
    """A strided view of a storage, copied."""
    is_sound = min(offset, 0, *size, *stride) == 0
    if not is_sound or math.prod(size) > storage.size:
        raise InputError("the checkpoint is damaged: a tensor is not of its storage")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise InputError("the checkpoint is damaged: a tensor reaches past its storage")
    steps = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps)
    return np.array(view)
