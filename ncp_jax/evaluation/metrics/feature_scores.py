"""Frechet distance and KID of pictures from reference pictures, by their features."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import (
    extractor,
    feature_nets,
    frechet,
    inception,
    moments,
)
from ncp_jax.evaluation.metrics.extractor import FeatureNet
from ncp_jax.evaluation.metrics.moments import Moments
from ncp_jax.evaluation.metrics.two_sample import kid
from ncp_jax.records import whole_file

Batches = Iterable[np.ndarray]  # pictures uint8 [B, H, W, C]

NAMES = ("inception", *feature_nets.KINDS)
KID_PICTURES = 10_000  # of the reference; more would narrow little
KID_SUBSET = 1_000  # the usual size


@dataclasses.dataclass(frozen=True)
class Reference:
    """The pictures that others are compared with.

    Attributes:
      moments: of all of them.
      features: float32 [m, D] of the first m, for KID.
    """

    moments: Moments
    features: np.ndarray


def load(name: str, path: str | Path) -> FeatureNet:
    """Returns a feature network.

    Args:
      name: one of `NAMES`.
      path: of its weights.

    Raises:
      InputError: an unknown name, no such file, or weights of another network.
    """
    if name not in NAMES:
        raise InputError(f"no feature network {name!r}: there are {', '.join(NAMES)}")
    if not str(path):
        raise InputError(f"feature network {name!r} needs the file feature_weights")
    if name == "inception":
        return inception.load(path)
    return feature_nets.load(name, path)


def families(net: FeatureNet) -> tuple[str, str]:
    """What results call the network's Frechet distance and KID.

    "fid" and "kid" are Inception's alone; LeNet's are "fd_lenet" and "kid_lenet".
    """
    if net.label == "FID":
        return "fid", "kid"
    suffix = net.label.removeprefix("FD-").lower()
    return f"fd_{suffix}", f"kid_{suffix}"


def num_features(net: FeatureNet, image_shape: tuple[int, ...]) -> int:
    """D, for pictures of a shape (H, W, C); nothing is computed.

    Raises:
      InputError: the network is of other pictures.
    """
    extractor.check_images(net, np.zeros((1, *image_shape), np.uint8))
    picture = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(net.module.apply, net.variables, picture).features.shape[1]


def features_of(net: FeatureNet, batches: Batches, batch_size: int) -> np.ndarray:
    """The features of a stream of pictures, float32 [N, D]; no picture is kept."""
    return np.concatenate([extractor.extract(net, b, batch_size) for b in batches])


def reference(
    net: FeatureNet,
    make_batches: Callable[[], Iterator[np.ndarray]],
    folder: Path,
    *,
    batch_size: int,
    num_for_kid: int,
) -> Reference:
    """Features of the reference pictures, or what `folder` holds of the same pictures.

    Files are called after a hash of every picture, in order, and of the network's
    weights: other pictures, another preparation or other weights never meet them.

    Args:
      net: the network.
      make_batches: yields the pictures, the same at every call.
      folder: of the cache; made where it is absent.
      batch_size: of the network.
      num_for_kid: of how many pictures, the first, features are kept.

    Raises:
      InputError: pictures of another shape, or a damaged file of the cache.
    """
    digest = hashlib.sha256(f"{net.label} {net.sha256} {num_for_kid}".encode())
    for batch in make_batches():
        digest.update(np.ascontiguousarray(batch))
    content = digest.hexdigest()[:32]
    path = folder / f"features-{content}.npy"

    def compute() -> Moments:
        kept: list[np.ndarray] = []
        total, num_kept = None, 0
        for batch in make_batches():
            features = extractor.extract(net, batch, batch_size)
            total = (total or Moments.empty(features.shape[1])).add(features)
            kept.append(features[: num_for_kid - num_kept])
            num_kept += len(kept[-1])
        assert total is not None  # there is a picture
        _save(path, np.concatenate(kept))
        return total

    if not path.exists():  # one without the other is of no use
        moments.save(folder, content, compute())
    return Reference(moments.cached(folder, content, compute), _load(path))


def _save(path: Path, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file.opened(path) as file:
        np.save(file, features)


def _load(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.load(file)
    except Exception as error:  # of a broken header NumPy and Python raise many kinds
        raise InputError(
            f"{path} holds no features ({error}): delete it to compute them again"
        ) from error


def score(
    features: np.ndarray, against: Reference, *, seed: int, num_for_kid: int = 0
) -> tuple[Estimate | None, Estimate | None]:
    """The Frechet distance and the KID of features [n, D] from the reference.

    Args:
      features: of pictures.
      against: of the same network.
      seed: of the division into KID's subsets, at most 1,000 pictures each and at least
        five of them.
      num_for_kid: how many of the features, the first, KID may use; 0 for all.

    Returns:
      Both, with the delta method's and the subsets' standard errors.  None in the place
      of the distance where n is no more than D, so that no covariance can be had; None
      in the place of KID for fewer than ten pictures.
    """
    distance = None
    if len(features) > features.shape[1]:
        distance = frechet.estimate(features, against.moments)
    features = features[: num_for_kid or None]
    fewer = min(len(features), len(against.features))
    if fewer < 10:
        return distance, None
    subset_size = min(KID_SUBSET, fewer // 5)
    found = kid(features, against.features, seed=seed, subset_size=subset_size)
    return distance, found.distance
