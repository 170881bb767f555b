"""Weights in one npz that is known by its sha256, and the record beside it.

The arrays are called by their paths in the model, as "params/encoder/Dense_0/kernel".
Equal arrays are equal bytes, whenever and wherever they are written.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.records import array_files, run_records, whole_file
from ncp_jax.records.array_files import Arrays, Damaged

REMEDY = "bring this file and the one beside it back, or export them again"
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Split(msgspec.Struct):
    """What examples there were, and the sha256 of all."""

    count: _Count
    shape: list[int]
    dtype: str
    sha256: str


class Data(msgspec.Struct):
    """The data that a model was trained on and judged by."""

    name: str
    splits: dict[str, Split]


class Config(msgspec.Struct):
    """The settings that tell one stage 1 from another."""

    seed: int
    data: dict[str, Any]
    vae: dict[str, Any]


class Record(msgspec.Struct):
    """What is known of a file of weights.

    Attributes:
      sha256: of the file.
      num_bytes: of the file.
      num_parameters: numbers in its arrays under "params".
      step: of training, of the arrays; `config.vae["num_steps"]` is how long it was,
        or was to be.
      fingerprint: of the arrays, as the checkpoints of stage 2 have it.
      held_out_loss: of these weights in training, the negative ELBO in nats; of a model
        with another objective, that; None of a state that lies between validations.
      config: what it was trained with.
      data: what it was trained on.
      environment: versions and devices where it was trained; empty if nobody knows.
      seconds: of training; None if nobody knows.
      licence: of the file.
      command: that wrote it, with the folder of the run as RUN.
      kind: "weights" that stage 2 reads, the best; or the "state" of training, the
        newest, from which stage 1 goes on.
      init_from: of the file of weights that training began at, the first 16 digits of
        its sha256; None if it began at random ones.
    """

    sha256: str
    num_bytes: _Count
    num_parameters: _Count
    step: _Count
    fingerprint: str
    held_out_loss: float | None
    config: Config
    data: Data
    environment: dict[str, Any]
    seconds: _Seconds | None
    licence: str
    command: str
    kind: Literal["weights", "state"] = "weights"
    init_from: str | None = None


def write(
    path: Path, arrays: Mapping[str, np.ndarray], known: Mapping[str, Any]
) -> Record:
    """Writes arrays into an npz, and what is known of them into a JSON beside it.

    Args:
      path: of the npz; its folder is made.
      arrays: by their paths; those in float16 are read back as float32.
      known: the other fields of `Record`.

    Raises:
      OSError: they cannot be written.
    """
    content = io.BytesIO()
    named: dict[str, Any] = {name: arrays[name] for name in sorted(arrays)}
    np.savez(content, allow_pickle=False, **named)  # members of it carry no time
    record = Record(
        sha256=hashlib.sha256(content.getvalue()).hexdigest(),
        num_bytes=len(content.getvalue()),
        num_parameters=sum(
            a.size for n, a in arrays.items() if n.startswith("params/")
        ),
        **known,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write(path, content.getvalue())
    whole_file.write_json(beside(path), msgspec.to_builtins(record), indent=2)
    return record


def beside(path: Path) -> Path:
    """Returns where the record of a file of weights is."""
    return path.with_suffix(".json")


def read_record(path: Path) -> Record:
    """Returns what is known of a file of weights; the file itself is not read.

    Raises:
      InputError: the record is not there, damaged, or a field is of another type.
    """
    record = beside(path)
    content = run_records.read_json(record, REMEDY)
    if content is None:
        raise InputError(f"{path} has no record {record.name} beside it: {REMEDY}")
    return run_records.checked(record, REMEDY, content, Record)


def read(path: Path) -> tuple[Record, Arrays]:
    """Returns the record and the arrays of a file of weights, as `as_read` has them.

    Raises:
      Damaged: the file holds other bytes than its record says.
      InputError: as of `read_record`.
      OSError: it cannot be opened.
    """
    record = read_record(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != record.sha256:
        reason = f"its sha256 is {found[:16]}..., not {record.sha256[:16]}..."
        raise Damaged(path, f"{reason} as in {beside(path).name}", REMEDY)
    return record, as_read(array_files.read(path, REMEDY))


def as_read(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Returns the arrays with those in float16 as float32, which models compute in."""
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in arrays.items()
    }
