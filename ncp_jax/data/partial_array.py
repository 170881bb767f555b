"""A `.npy` file filled row by row, by a process that may be killed at any time."""

import json
import math
import os
from pathlib import Path

import numpy as np

from ncp_jax.records import whole_file


class PartialArray:
    """Rows of an array on their way to the disk, and the record of their progress.

    Until `finish` the rows are in a file of suffix `.partial`, the record in one of
    suffix `.json`; a second instance of the same path continues from there.

    Args:
      path: of the complete file, `.npy`.
      shape: [N, ...] of the whole array; the same whenever the path is.
      dtype: of the array, likewise.

    Attributes:
      num_tried: the rows before this one are written or among `failed`.
      failed: rows that could not be made.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike = np.uint8
    ) -> None:
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._record = path.with_suffix(".json")
        self._row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        try:
            record = json.loads(self._record.read_text())
            self.num_tried = int(record["num_tried"])
            self.failed = {int(row) for row in record["failed"]}
            array = np.lib.format.open_memmap(self._partial, mode="r")
        except (OSError, ValueError, LookupError, TypeError):  # none, or half a one
            self.num_tried, self.failed = 0, set()
            self._write_record()
            array = np.lib.format.open_memmap(
                self._partial, mode="w+", dtype=dtype, shape=shape
            )
        self._offset = array.offset
        # Not through the mapping: there, a full disk would kill the process.
        self._file = self._partial.open("r+b")

    def __enter__(self) -> "PartialArray":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: int, value: np.ndarray) -> None:
        """Writes one row of the right shape and type."""
        self._file.seek(self._offset + row * self._row_bytes)
        self._file.write(value.tobytes())

    def save(self) -> None:
        """Brings what is written to the disk, then records how far that is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._write_record()

    def finish(self) -> None:
        """Gives the file its final name."""
        self.save()
        self._file.close()
        os.replace(self._partial, self._path)
        self._record.unlink()

    def _write_record(self) -> None:
        record = {"num_tried": self.num_tried, "failed": sorted(self.failed)}
        whole_file.write_json(self._record, record)
