"""Weights of feature networks: from PyTorch's names and layouts to Linen's."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.models.nvae import torch_file
from ncp_jax.records import array_files

Arrays = Mapping[str, np.ndarray]

# A Linen leaf for every PyTorch one; weights are by the number of their axes.
STATISTICS = {"running_mean": "mean", "running_var": "var"}
WEIGHTS = {1: "scale", 2: "kernel", 4: "kernel"}
AXES = {2: (1, 0), 4: (2, 3, 1, 0)}  # out x in, OIHW
NAMES_SHOWN = 6


def read(path: str | Path, remedy: str) -> tuple[dict[str, np.ndarray], str]:
    """Reads named tensors and the sha256 of their file.

    Args:
      path: an npz of PyTorch's names and layouts, or what `torch.save` wrote of a state
        dict; see `torch_file.load`.
      remedy: what to do where there is no such file.

    Returns:
      The arrays by PyTorch's names, and the file's sha256 in hexadecimal.

    Raises:
      InputError: no such file, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. {remedy}")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".npz":
        return _read_npz(path), sha256
    content = torch_file.load(path)
    is_state = isinstance(content, Mapping) and all(
        isinstance(value, np.ndarray) for value in content.values()
    )
    if not is_state:
        raise InputError(f"{path} holds something else than named tensors")
    return dict(content), sha256


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        return array_files.read(path, "fetch it again")
    except array_files.Damaged as error:
        reason = f"{error.reason}; fetch it again"
        raise InputError(f"{path} is no npz of arrays: {reason}") from error


def to_variables(
    module: nn.Module, state: Arrays, image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Returns the variables of a module whose parts are named as PyTorch's are.

    A numbered part, "layer1.0" in PyTorch, is called "layer1_0" in the module.

    Args:
      module: maps pictures [B, *image_shape] to whatever.
      state: PyTorch's names to arrays; it must hold the module's tensors and no others
        but counts of batches.
      image_shape: (H, W, C) of a picture that the module takes.

    Raises:
      InputError: names that are missing or unknown, or other shapes: the weights are
        of another network.
    """
    picture = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), picture)
    wanted = {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    found = dict(
        _converted(name, np.asarray(value, np.float32))
        for name, value in state.items()
        if not name.endswith(".num_batches_tracked")
    )
    _refuse("lacks", wanted.keys() - found.keys())
    _refuse("has unknown", found.keys() - wanted.keys())
    _refuse("has other shapes of", {k for k in wanted if found[k].shape != wanted[k]})
    variables: dict[str, Any] = {}
    for path, value in found.items():
        tree = variables
        for part in path[:-1]:
            tree = tree.setdefault(part, {})
        tree[path[-1]] = jnp.asarray(value)
    return variables


def _converted(name: str, value: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The path of a Linen variable, and the value in its layout."""
    *parts, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if leaf in STATISTICS:
        return ("batch_stats", *parts, STATISTICS[leaf]), value
    if leaf == "weight":
        leaf = WEIGHTS.get(value.ndim, leaf)
        value = value.transpose(AXES.get(value.ndim))
    return ("params", *parts, leaf), value


def _refuse(what: str, paths: set[tuple[str, ...]]) -> None:
    if not paths:
        return
    names = sorted("/".join(path) for path in paths)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    raise InputError(
        f"the weights are of another network: the file {what} "
        f"{', '.join(names[:NAMES_SHOWN])}{more}"
    )
