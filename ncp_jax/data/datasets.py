"""Data sets as arrays, and batches as pure functions of (key, step)."""

import functools
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.data import catalogue
from ncp_jax.data.splits import pseudo_random_order
from ncp_jax.errors import InputError, did_you_mean, local_path

Array = jax.Array

NAMES = ("digits", "toy25", *catalogue.READERS)
TOY25_STD = 0.1


class Dataset(NamedTuple):
    """Pictures uint8 [N, H, W, C], or points in the plane float32 [N, 2]."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def load(
    name: str,
    shape: tuple[int, ...],
    data_dir: str = "",
    download: bool = False,
    seed: int = 0,
    *,
    crop: str = "nvae",
    cache_dir: str = "",
) -> Dataset:
    """Loads a data set: into memory, or mapped from a cache of decoded pictures.

    A training file without a validation part lends its last sixth, so MNIST validates
    on the last 10,000 of its 60,000. From tensorflow-datasets the examples come in
    another order, hence with another validation part. CelebA has its official split;
    of "celebahq" and "folder" see `picture_folder.divide`.

    Args:
      name: one of `NAMES`, or "tfds:NAME" for what tensorflow-datasets has prepared.
      shape: of one example, (H, W, C) or (2,). The pictures of "celeba", "celebahq",
        "folder" and "parquet" are resized to it.
      data_dir: folder of the files, of "folder", "arrays" and "parquet" their own, or
        one file; "" means the environment variable NCP_JAX_DATA.
      download: whether tensorflow-datasets may download what is missing.
      seed: of the points of "toy25"; nothing else depends on it.
      crop: of "celeba", one of `celeba.CROPS`.
      cache_dir: for decoded pictures; "" means see `picture_cache.folders`.

    Returns:
      The three splits, none of them empty; decoded pictures are read-only.

    Raises:
      InputError: an unknown name, missing or broken files, or another `shape`.
    """
    shape = tuple(shape)
    where = "data.dir" if data_dir else "NCP_JAX_DATA"
    folder = local_path(where, data_dir or os.environ.get("NCP_JAX_DATA", ""))
    if name == "digits":
        dataset = _digits()
    elif name == "toy25":
        dataset = _toy25(seed)
    elif name in NAMES:
        options = catalogue.Options(shape, download, crop, cache_dir)
        dataset = Dataset(*catalogue.load(name, _existing(name, folder), options))
    elif name.startswith("tfds:"):
        prepared = name.removeprefix("tfds:")
        dataset = Dataset(*catalogue.prepared(prepared, folder, shape, download))
    else:
        raise InputError(_unknown(name))
    _check(name, dataset, shape)
    return dataset


def toy25_modes() -> np.ndarray:
    """Returns the means of the 25 Gaussians of "toy25", float32 [25, 2]."""
    axis = np.arange(-4, 5, 2, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(25, 2)


def binarize(key: Array, images: Array) -> Array:
    """Draws each pixel from Bernoulli(images / 255).

    The probabilities are rounded to multiples of 2**-16; 0 and 255 stay exact.

    Args:
      key: PRNG key; consumed here.
      images: uint8, any shape.

    Returns:
      float32 of the same shape, 0 or 1.

    Raises:
      InputError: the images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise InputError(
            f"binarize got examples of type {images.dtype}: it takes uint8 pictures, "
            "0 to 255; turn grey values x in [0, 1] into them by "
            "np.round(255 * x).astype(np.uint8)"
        )
    # One 32-bit word serves two pixels. `bits(..., uint16)` would hash a word for each,
    # and the hash is nearly all of the cost.
    words = jax.random.bits(key, (-(-images.size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    noise = halves[: images.size].reshape(images.shape).astype(jnp.int32)
    level = images.astype(jnp.int32)
    threshold = level * 257 + (level >> 7)  # round(2**16 * level / 255)
    return (noise < threshold).astype(jnp.float32)


def check_batch_size(batch_size: int, num_examples: int) -> None:
    """Refuses, by an InputError, batches that no epoch of the examples can fill."""
    if not 1 <= batch_size <= num_examples:
        raise InputError(
            f"batch_size = {batch_size} must be at least 1 and at most the "
            f"{num_examples} training examples"
        )


def batch_indices(
    key: Array, first_step: int, num_steps: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Returns which examples the steps from `first_step` on train on.

    Epochs follow one another without a gap: a batch may end one and begin the next,
    and every example is seen exactly once per epoch. Row s depends on `key` and
    first_step + s only, so a resumed run sees what an unbroken one would have seen.
    The orders of the last epochs are kept: a call costs what it cuts out of them.

    Args:
      key: PRNG key of this stream; the same for all steps, used for nothing else. No
        tracer: this is work of the host, outside of `jit`.
      first_step: on the host, of any size below 2**32.
      num_steps: number of batches.
      batch_size: at most `num_examples`.
      num_examples: size of the training set.

    Returns:
      int32 [num_steps, batch_size] in [0, num_examples).

    Raises:
      InputError: `batch_size` is not in [1, num_examples].
    """
    check_batch_size(batch_size, num_examples)
    # Host integers: the position of a late step does not fit into int32.
    start = first_step * batch_size
    stop = start + num_steps * batch_size
    words = tuple(np.asarray(jax.random.key_data(key)).tolist())
    rows = [
        _order(jax.random.key_impl(key), words, epoch, num_examples)[
            max(start - epoch * num_examples, 0) : stop - epoch * num_examples
        ]
        for epoch in range(start // num_examples, -(-stop // num_examples))
    ]
    return np.concatenate(rows).reshape(num_steps, batch_size)


@functools.lru_cache(maxsize=4)
def _order(
    impl: Hashable, words: tuple[int, ...], epoch: int, num_examples: int
) -> np.ndarray:
    """int32 [num_examples]: the order of an epoch, under the key of these words."""
    key = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl=impl)
    return np.asarray(_shuffled(key, np.uint32(epoch), num_examples))


@functools.partial(jax.jit, static_argnums=2)
def _shuffled(key: Array, epoch: Array, num_examples: int) -> Array:
    examples = jnp.arange(num_examples, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def padded_batches(
    array: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every row once, in order, in batches of one fixed shape.

    Args:
      array: [N, ...] rows.
      batch_size: B, at least 1.

    Yields:
      [B, ...] rows and a bool [B] mask that is False on the padding, which repeats the
      array from its first row.
    """
    num_rows = len(array)
    for start in range(0, num_rows, batch_size):
        positions = np.arange(start, start + batch_size)
        yield array[positions % num_rows], positions < num_rows


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    levels = load_digits().images  # [1797, 8, 8] in 0..16
    pictures = np.round(levels * (255 / 16)).astype(np.uint8)[..., None]
    order = pseudo_random_order(len(pictures))
    return Dataset(*np.split(pictures[order], [1297, 1547]))


def _toy25(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    modes = toy25_modes()[rng.integers(25, size=65_000)]  # [65000, 2]
    noise = rng.standard_normal(modes.shape, np.float32)
    points = modes + np.float32(TOY25_STD) * noise
    return Dataset(*np.split(points, [50_000, 55_000]))


def _check(name: str, dataset: Dataset, shape: tuple[int, ...]) -> None:
    for split, examples in dataset._asdict().items():
        if not len(examples):
            raise InputError(f"{name}: the split {split!r} is empty")
        if examples.shape[1:] != shape:
            raise InputError(
                f"{name}: {split} examples have shape {examples.shape[1:]}, but the "
                f"config expects {shape}"
            )


def _existing(name: str, folder: str) -> Path:
    if not folder:
        raise InputError(
            f"{name} is read from files: set data.dir or the environment variable "
            "NCP_JAX_DATA to their folder"
        )
    if Path(folder).is_file() and name not in catalogue.FROM_FILE:
        raise InputError(
            f"{name}: {folder} is a file, and data.dir the folder around it; a file "
            "is what data.name = 'folder' (a zip), 'arrays' (.npy, .npz) or 'parquet' "
            "takes"
        )
    if not Path(folder).exists():
        raise InputError(f"{name}: the data folder {folder} does not exist")
    return Path(folder)


def _unknown(name: str) -> str:
    hint = did_you_mean(name, NAMES)
    return f"unknown data set {name!r}.{hint} There are {', '.join(NAMES)}, tfds:NAME"
