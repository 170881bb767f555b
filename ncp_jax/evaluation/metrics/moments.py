"""Mean and covariance of features: streamed, merged over machines, kept on disk.

All is float64.  Batches, devices and hosts may each hold a share of the examples; the
order in which shares merge moves the last digits only.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.records import array_files, whole_file
from ncp_jax.records.array_files import Kind

ROWS_AT_A_TIME = 4096  # of features, as float64: 67 MB at 2048 features


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a stream of features; they merge exactly.

    Attributes:
      count: n, how many examples.
      mean: float64 [D].
      scatter: float64 [D, D], sum over examples of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, num_features: int) -> "Moments":
        """The moments of no example."""
        return cls(0, np.zeros(num_features), np.zeros((num_features, num_features)))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features [n, D]."""
        return cls.empty(np.shape(features)[-1]).add(features)

    def add(self, features: np.ndarray) -> "Moments":
        """The moments with features [n, D] added; n may be 0.

        Raises:
          InputError: features of another size, or not finite.
        """
        _check_features(features, self.mean.size)
        total = self
        for start in range(0, len(features), ROWS_AT_A_TIME):
            rows = np.asarray(features[start : start + ROWS_AT_A_TIME], np.float64)
            mean = rows.mean(0)
            rows = rows - mean
            total = total.merge(Moments(len(rows), mean, rows.T @ rows))
        return total

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both streams (Chan et al. 1983: nothing large cancels).

        Raises:
          InputError: features of another size.
        """
        if self.mean.size != other.mean.size:
            raise InputError(
                f"moments of {self.mean.size} and of {other.mean.size} features do "
                "not merge: use one feature network for both"
            )
        count = self.count + other.count
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(step * (self.count * other.count / count), step)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, float64 [D, D].

        Raises:
          InputError: for fewer than two examples.
        """
        if self.count < 2:
            raise InputError(
                f"a covariance needs at least 2 samples, there are {self.count}"
            )
        return self.scatter / (self.count - 1)


def cached(folder: Path, content: str, compute: Callable[[], Moments]) -> Moments:
    """The moments stored for `content`, else those of `compute()`, which it stores.

    Args:
      folder: made where it is absent.
      content: a hash of all that the moments depend on: pictures, their preparation
        and the feature network's weights; hexadecimal.
      compute: called at most once.

    Raises:
      InputError: a stored file that cannot be read.
    """
    path = _place(folder, content)
    if not path.exists():
        save(folder, content, compute())
    return load(folder, content)


def save(folder: Path, content: str, moments: Moments) -> Path:
    """Stores moments under a hash of their content; see `cached`.  Returns the file."""
    path = _place(folder, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file.opened(path) as file:
        np.savez(file, **dataclasses.asdict(moments))
    return path


def load(folder: Path, content: str) -> Moments:
    """The moments that `save` stored.

    Raises:
      InputError: absent or damaged.
    """
    path, remedy = _place(folder, content), "delete it to compute them again"
    kinds = {
        "count": Kind((), array_files.INTEGERS),
        "mean": Kind(("D",), "f"),
        "scatter": Kind(("D", "D"), "f"),
    }
    try:
        arrays = array_files.read_exactly(path, remedy, kinds)
    except (OSError, InputError) as error:
        raise InputError(f"{path} holds no moments ({error}): {remedy}") from error
    return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])


def _place(folder: Path, content: str) -> Path:
    if not re.fullmatch("[0-9a-f]{16,}", content):
        raise ValueError(f"content must be a hash in hexadecimal, got {content!r}")
    return Path(folder) / f"moments-{content}.npz"


def _check_features(features: np.ndarray, num_features: int) -> None:
    if features.ndim != 2 or features.shape[1] != num_features:
        raise InputError(
            f"features of shape {features.shape} where [n, {num_features}] is needed: "
            "use one feature network for both"
        )
    if not np.isfinite(features).all():
        raise InputError(
            "features are not finite: look for NaN in the pictures or the samples"
        )
