"""From pictures to the features of a frozen network, batch by batch."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError

Array = jax.Array


class Outputs(NamedTuple):
    """What a feature network says of a batch."""

    features: Array | np.ndarray  # [B, D], the last layer before the classes
    logits: Array | np.ndarray  # [B, classes]


@dataclasses.dataclass(frozen=True)
class FeatureNet:
    """A trained network whose features are compared.

    Attributes:
      label: what a Frechet distance of its features is called: "FID" is Inception's.
      module: maps float32 pictures [B, H, W, C] in [0, 1] to `Outputs`.
      variables: of the module.
      sha256: of the file they are from.
      image_shape: (H, W, C) it takes, None where any size is fine.
    """

    label: str
    module: nn.Module
    variables: Any
    sha256: str
    image_shape: tuple[int | None, int | None, int | None]


def outputs(net: FeatureNet, images: np.ndarray, batch_size: int) -> Iterator[Outputs]:
    """Yields features and logits of every picture, in order.

    The network is compiled once for a `batch_size`: the last batch is filled up and cut
    again.

    Args:
      net: the network.
      images: [N, H, W, C], uint8 or floats in [0, 1].
      batch_size: pictures at a time; bounds the memory, not the result.

    Yields:
      float32 NumPy arrays [batch_size or fewer, ...].

    Raises:
      InputError: pictures of another shape or range, or not finite.
    """
    check_images(net, images)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if batch.dtype == np.uint8:
            batch = batch / np.float32(255)
        num = len(batch)
        filled = np.zeros((batch_size, *batch.shape[1:]), np.float32)
        filled[:num] = batch
        found = jax.device_get(_apply(net.module, net.variables, jnp.asarray(filled)))
        yield Outputs(*(leaf[:num] for leaf in found))


def extract(net: FeatureNet, images: np.ndarray, batch_size: int) -> np.ndarray:
    """The features of every picture, float32 [N, D]; see `outputs`."""
    return np.concatenate([o.features for o in outputs(net, images, batch_size)])


@partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, variables: Any, images: Array) -> Outputs:
    with jax.default_matmul_precision("float32"):  # TF32 would move features
        return module.apply(variables, images)


def check_images(net: FeatureNet, images: np.ndarray) -> None:
    """Refuses what the network was not made for.

    Raises:
      InputError: pictures of another shape or range, or not finite.
    """
    wanted = net.image_shape
    if images.ndim != 4 or any(
        w not in (None, n) for w, n in zip(wanted, images.shape[1:], strict=True)
    ):
        shape = ", ".join("any" if w is None else str(w) for w in wanted)
        raise InputError(
            f"{net.label} is of pictures [N, {shape}]; these are {list(images.shape)}: "
            "choose the feature network of this data set"
        )
    if images.shape[3] not in (1, 3) or not len(images):
        raise InputError(
            f"pictures {list(images.shape)} are none, or neither grey nor of 3 colours"
        )
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"pictures are uint8 or floats in [0, 1], not {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(
            f"pictures lie in [{low}, {high}] where [0, 1] is needed: look for NaN in "
            "what drew them, or clip them"
        )
