"""The data sets that lie in files: where each is looked for and how it is divided."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ncp_jax.data import (
    celeba,
    cifar,
    numpy_pictures,
    parquet_files,
    picture_cache,
    picture_files,
    picture_folder,
    readers,
    static_mnist,
)
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.data.splits import hold_out
from ncp_jax.errors import InputError

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # train, valid, test


class Options(NamedTuple):
    """How the files are read; the arguments of `datasets.load`."""

    shape: tuple[int, ...]
    download: bool
    crop: str
    cache_dir: str


def load(name: str, folder: Path, options: Options) -> Parts:
    """Returns train, valid and test of one of `READERS`, uint8 [N, H, W, C] each.

    Args:
      name: a key of `READERS`.
      folder: that exists; of those in `FROM_FILE` perhaps a file.
      options: those that do not concern this data set have no effect.

    Raises:
      InputError: missing, broken or too few files.
    """
    return READERS[name](name, folder, options)


def prepared(
    name: str,
    folder: str,
    shape: tuple[int, ...],
    download: bool,
    use_default: bool = True,
) -> Parts:
    """Returns train, valid and test of what tensorflow-datasets has prepared.

    Args:
      name: as tensorflow-datasets spells it.
      folder: where to look first; "" means nowhere.
      shape: (H, W, C) of a picture.
      download: whether what is missing may be downloaded.
      use_default: whether to look into tensorflow-datasets' default folder, too.

    Raises:
      InputError: see `readers.read_tfds`, or too few training examples.
    """
    places = ([folder] if folder else []) + ([None] if use_default else [])
    splits = readers.read_tfds(name, shape, tuple(places), download)
    if "validation" in splits:
        return splits["train"], splits["validation"], splits["test"]
    return *hold_out(splits["train"], f"tfds:{name}"), splits["test"]


def _mnist(name: str, folder: Path, options: Options) -> Parts:
    files = readers.find_mnist(name, folder)
    if files:
        train, test = map(readers.read_idx, files)
        return *hold_out(train, str(files[0])), test
    of_keras = [place / f"{name}.npz" for place in readers.mnist_folders(name, folder)]
    for path in filter(Path.is_file, of_keras):
        return _keras_mnist(path, options)
    patterns = [*readers.mnist_patterns(name, folder), *map(str, of_keras)]
    return _prepared_instead(name, folder, options, patterns)


def _keras_mnist(path: Path, options: Options) -> Parts:
    """The same pictures in the same order as in the idx files."""
    arrays, keys = numpy_pictures.read_npz(path), ("x_train", "x_test")
    if missing := [key for key in keys if key not in arrays]:
        raise InputError(
            f"{path}: no key {missing[0]!r} among {sorted(arrays)}; expected x_train "
            "and x_test, as Keras has them; else give config.data.name='arrays'"
        )
    train, test = (
        numpy_pictures.pictures_of(f"{path}: {key}", arrays[key], options.shape)
        for key in keys
    )
    return *hold_out(train, str(path)), test


def _binarized_mnist(name: str, folder: Path, options: Options) -> Parts:
    splits = static_mnist.load(name, folder, options.shape)
    return splits["train"], splits["valid"], splits["test"]


def _cifar10(name: str, folder: Path, options: Options) -> Parts:
    path = cifar.find(folder)
    if not path:
        return _prepared_instead(name, folder, options, cifar.patterns(folder))
    train, test = cifar.read(path)
    return *hold_out(train, str(path)), test


def _celeba(name: str, folder: Path, options: Options) -> Parts:
    return _decoded(name, folder, options, celeba.find(folder, options.crop))


def _celebahq(name: str, folder: Path, options: Options) -> Parts:
    return _decoded(name, folder, options, picture_folder.find_celebahq(folder))


def _folder(name: str, folder: Path, options: Options) -> Parts:
    return _decoded(name, folder, options, picture_folder.divide(folder))


def _arrays(name: str, folder: Path, options: Options) -> Parts:
    picture_files.check_shape(name, options.shape)
    return numpy_pictures.load(folder, options.shape)


def _parquet(name: str, folder: Path, options: Options) -> Parts:
    return _decoded(name, folder, options, parquet_files.divide(folder))


def _decoded(name: str, folder: Path, options: Options, splits: PictureSplits) -> Parts:
    place = folder if folder.is_dir() else folder.parent
    folders = picture_cache.folders(options.cache_dir, place)
    return picture_cache.load(name, splits, options.shape, folders)


def _prepared_instead(
    name: str, folder: Path, options: Options, patterns: list[str]
) -> Parts:
    """What tensorflow-datasets has in `folder`, for the files that are not there."""
    shape, download = options.shape, options.download
    try:
        return prepared(name, str(folder), shape, download, use_default=False)
    except InputError as error:
        paths = "\n  ".join(patterns)
        raise InputError(f"{name}: looked for\n  {paths}\nand then: {error}") from error


READERS: dict[str, Callable[[str, Path, Options], Parts]] = {
    "mnist": _mnist,
    "fashion_mnist": _mnist,
    "binarized_mnist": _binarized_mnist,
    "cifar10": _cifar10,
    "celeba": _celeba,
    "celebahq": _celebahq,
    "folder": _folder,
    "arrays": _arrays,
    "parquet": _parquet,
}
FROM_FILE = ("folder", "arrays", "parquet")  # whose data.dir may be one file
