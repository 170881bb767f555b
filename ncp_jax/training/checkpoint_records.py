"""What is written beside the arrays of a checkpoint, and whether it is still that."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ncp_jax.errors import InputError


class Weights(NamedTuple):
    """Which checkpoint numbers are of: its step, and the `fingerprint` of its state."""

    step: int
    fingerprint: str


class DamagedCheckpoint(InputError):
    """A checkpoint that holds something else than was written."""

    def __init__(self, path: Path, reason: str):
        self.reason = reason
        stage = path.parents[1].name
        super().__init__(
            f"checkpoint {path} {reason}, and others are no substitute: run "
            f"--stage={stage}, which moves it to {path.parents[1] / 'damaged'} and "
            "trains again what is missing"
        )


def best_weights(directory: Path) -> Weights | None:
    """Returns what `Checkpoints.restore_best` would restore, by the sealed records.

    Args:
      directory: of the checkpoints of one stage.

    Returns:
      The weights, whose arrays are not read; None if there is no checkpoint.

    Raises:
      DamagedCheckpoint: a record is damaged, so that the best is not known.
    """
    records = {
        step: checked_record(path) for step, path in saved_steps(directory).items()
    }
    if not records:
        return None
    losses = {step: record["valid_loss"] for step, record in records.items()}
    step = best_step(records, losses)
    return Weights(step, short_hash(records[step]["sha256"]))


def values_of(directory: Path, name: str) -> set[Any]:
    """Returns what the whole checkpoints of a folder have as one of their metadata."""
    records = map(read_record, saved_steps(directory).values())
    return {record.get(name) for record in records if record}


def newest_record(directory: Path) -> dict[str, Any]:
    """Returns the metadata of the newest whole checkpoint; {} if there is none."""
    for _, path in sorted(saved_steps(directory).items(), reverse=True):
        if record := read_record(path):
            return record
    return {}


def saved_steps(directory: Path) -> dict[int, Path]:
    """Returns the folders of checkpoints by step; one that was cut off has a suffix."""
    paths = directory.glob("[0-9]*")
    return {int(path.name): path for path in paths if path.name.isdigit()}


def short_hash(values: Any) -> str:
    """Returns a hash of JSON values, such as the hashes of arrays by their paths."""
    content = json.dumps(values, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def described(thing: object, is_whole: bool = True) -> str:
    """`repr` on one line, without where functions lie in memory.

    Args:
      thing: any.
      is_whole: whether its arrays are, as what tells it from others needs; long ones
        are else shown by their ends.
    """
    threshold = sys.maxsize if is_whole else 20
    with np.printoptions(threshold=threshold, floatmode="unique"):
        return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(thing).split()))


def best_step(steps: Iterable[int], losses: Mapping[int, float | None]) -> int:
    """Returns the step of lowest loss, of equals the latest; without a loss is last."""

    def loss(step: int) -> float:
        found = losses.get(step)
        return np.inf if found is None else found

    return min(steps, key=lambda step: (loss(step), -step))


def read_record(path: Path) -> dict[str, Any] | None:
    """Returns the metadata of the checkpoint at `path`; None if not what was written.

    Raises:
      OSError: the file is there and cannot be opened, which is no damage.
    """
    try:
        record = json.loads((path / "metadata" / "metadata").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    return record if record.pop("seal", None) == seal_of(record) else None


def checked_record(path: Path) -> dict[str, Any]:
    """Returns the same, and raises `DamagedCheckpoint` where that is None."""
    record = read_record(path)
    if record is None:
        raise DamagedCheckpoint(path, "has damaged metadata")
    return record


def seal_of(metadata: Mapping[str, Any]) -> str:
    """Returns the hash that metadata are stored with."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
