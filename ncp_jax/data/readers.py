"""Pictures from the file formats that data sets come in: idx, tfds.

Every reader returns uint8 arrays or raises `InputError` with the file, what was found
and what was expected.
"""

import gzip
import importlib.util
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ncp_jax.errors import InputError, explained

_IDX_UBYTE, _IDX_NDIM = 0x08, 3  # pictures: unsigned bytes [N, H, W]
_TORCHVISION_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_INSTALL_TFDS = "in a clone of ncp_jax, pip install '.[tfds]'"


def read_idx(path: Path) -> np.ndarray:
    """Reads an idx file of grey pictures, plain or gzipped (told by its content).

    Args:
      path: the file; its name does not matter.

    Returns:
      uint8 [N, H, W, 1] pictures, read-only.

    Raises:
      InputError: the file is truncated, too long, empty, or something else.
    """
    content = read_maybe_gzipped(path)
    header_bytes = 4 + 4 * _IDX_NDIM
    if len(content) < header_bytes:
        raise InputError(
            f"{path}: {len(content)} bytes are too few for an idx header of "
            f"{header_bytes}; the file is truncated, fetch it again"
        )
    zeros, type_code, ndim, *shape = struct.unpack(
        f">HBB{_IDX_NDIM}I", content[:header_bytes]
    )
    if zeros:
        raise InputError(
            f"{path}: starts with 0x{content[:4].hex()}, so it is no idx file "
            "(pictures start with 0x00000803)"
        )
    if type_code != _IDX_UBYTE or ndim != _IDX_NDIM:
        raise InputError(
            f"{path}: idx type code 0x{type_code:02x} with {ndim} axes; pictures need "
            "0x08 (unsigned bytes) with 3 axes. Is it a file of labels?"
        )
    found, expected = len(content) - header_bytes, math.prod(shape)
    if found != expected:
        remedy = "is truncated" if found < expected else "has trailing bytes"
        raise InputError(
            f"{path}: the header announces {shape} = {expected} bytes but {found} "
            f"follow; the file {remedy}, fetch it again"
        )
    if not expected:
        raise InputError(f"{path}: holds no picture, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(*shape, 1)


def read_maybe_gzipped(path: Path) -> bytes:
    """Returns the bytes of a file, unpacked where its content is gzip's.

    Raises:
      InputError: it cannot be read, or is truncated or corrupt.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({explained(error)})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read, truncated or corrupt ({error}); fetch it again"
        ) from error


def find_mnist(name: str, data_dir: Path) -> tuple[Path, Path] | None:
    """Finds the two idx files of pictures of MNIST or Fashion-MNIST.

    Args:
      name: "mnist" or "fashion_mnist".
      data_dir: the folder of `mnist_patterns`.

    Returns:
      Paths of the training and the test file, both from the first folder that has
      both, or None.
    """
    for folder in mnist_folders(name, data_dir):
        found = [_first_idx(folder, part) for part in ("train", "t10k")]
        if found[0] and found[1]:
            return found[0], found[1]
    return None


def mnist_patterns(name: str, data_dir: Path) -> list[str]:
    """Names every file that `find_mnist` looks for, in the shell's brace notation."""
    return [
        f"{folder}/{{train,t10k}}-images{{-,.}}idx3-ubyte{{,.gz}}"
        for folder in mnist_folders(name, data_dir)
    ]


def read_tfds(
    name: str,
    shape: tuple[int, ...],
    data_dirs: tuple[str | Path | None, ...],
    download: bool = False,
) -> dict[str, np.ndarray]:
    """Reads the feature "image" of a data set that tensorflow-datasets has prepared.

    Reading needs no TensorFlow, but only files in the format array_record can be read.

    Args:
      name: as tensorflow-datasets spells it: "mnist", "name/config:1.0.0".
      shape: (H, W, C) of a picture.
      data_dirs: where to look, in this order; None is tensorflow-datasets' default
        folder. A download goes to the first.
      download: whether a data set that is not there may be downloaded and prepared,
        which needs TensorFlow.

    Returns:
      uint8 [N, H, W, C] by split: train, test, and validation where there is one.

    Raises:
      InputError: not installed, not prepared, unreadable, without a needed split, or
        of another size.
    """
    builder = _prepared_builder(name, data_dirs)
    if builder is None and download:
        builder = _prepare(name, data_dirs[0])
    if builder is None:
        places = ", ".join(str(d or "its default folder") for d in data_dirs)
        raise InputError(
            f"tensorflow-datasets has not prepared {name!r} in {places}; prepare it "
            "there with file_format='array_record', or set data.download=true"
        )
    splits = builder.info.splits
    missing = {"train", "test"} - set(splits)
    if missing:
        raise InputError(
            f"{builder.data_dir}: no split {sorted(missing)} among {sorted(splits)}; "
            "train and test are needed"
        )
    wanted = [split for split in ("train", "validation", "test") if split in splits]
    return {split: _read_split(builder, split, shape) for split in wanted}


def mnist_folders(name: str, data_dir: Path) -> list[Path]:
    """Returns where MNIST or Fashion-MNIST may be, best first."""
    torchvision = data_dir / _TORCHVISION_FOLDERS[name] / "raw"
    return [data_dir / name, data_dir, torchvision]


def _first_idx(folder: Path, part: str) -> Path | None:
    """The file of `part` in `folder`, under any of the four names in circulation."""
    stems = (f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte")
    paths = (folder / (stem + suffix) for stem in stems for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _prepared_builder(name: str, data_dirs: tuple[str | Path | None, ...]) -> Any:
    """A read-only builder over files that exist, or None; never touches the network."""
    try:
        from tensorflow_datasets.core import read_only_builder, registered
    except ImportError as error:
        raise InputError(
            f"{name!r} needs tensorflow-datasets ({error}): {_INSTALL_TFDS}"
        ) from error
    for data_dir in data_dirs:
        try:
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
        except registered.DatasetNotFoundError:
            continue
        except Exception as error:  # a bad name, broken metadata: theirs to word
            raise InputError(f"tensorflow-datasets, {name!r}: {error}") from error
    return None


def _prepare(name: str, data_dir: str | Path | None) -> Any:
    # Without TensorFlow the download would only fail after minutes of retries.
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"data.download=true prepares {name!r} with TensorFlow, which is not "
            "installed: pip install tensorflow, or copy the files by hand"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # network, disk, unknown name: theirs to word
        raise InputError(
            f"tensorflow-datasets could not prepare {name!r}: {error}"
        ) from error
    return builder


def _read_split(builder: Any, split: str, shape: tuple[int, ...]) -> np.ndarray:
    where = f"{builder.data_dir}, split {split!r}"
    if "image" not in builder.info.features:
        raise InputError(
            f"{where}: no feature 'image' among {sorted(builder.info.features)}"
        )
    pictures = np.empty((builder.info.splits[split].num_examples, *shape), np.uint8)
    try:
        for i, example in enumerate(builder.as_data_source(split=split)):
            picture = example["image"]
            if picture.shape != shape or picture.dtype != np.uint8:
                raise InputError(
                    f"{where}: picture {i} is {picture.dtype} {picture.shape}, but "
                    f"the config expects uint8 {shape}"
                )
            pictures[i] = picture
    except InputError:
        raise
    except Exception as error:  # another file format, a broken shard: theirs to word
        raise InputError(f"{where}: cannot be read: {error}") from error
    return pictures
