"""Reads PyTorch's zip checkpoints (version 1.6 or later) as NumPy, without PyTorch.

Only tensors, plain containers and `argparse.Namespace` are built: a file that asks for
any other class is refused, so reading one runs no code of its own.
"""

import argparse
import collections
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ncp_jax.errors import InputError

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


def load(path: str | pathlib.Path) -> Any:
    """Returns the object that `torch.save` wrote, every tensor as an array.

    Args:
      path: of the file.

    Raises:
      InputError: for another format, or a class that is neither tensor nor container.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no zip archive, which torch.save writes since PyTorch 1.6; "
            "load and save an older file once with a newer PyTorch"
        )
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"{path} holds no PyTorch checkpoint (no data.pkl)")
        with archive.open(pickles[0]) as file:
            return _Unpickler(file, archive, pickles[0].removesuffix(".pkl")).load()


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
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.size:
        raise InputError("the checkpoint is damaged: a tensor reaches past its storage")
    steps = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, steps)
    return np.array(view)
