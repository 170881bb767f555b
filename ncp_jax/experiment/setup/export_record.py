"""The record of an export, by which a call that was stopped goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.records import whole_file

RECORD = "export.json"


class ExportRecord:
    """How far an export is, and of what it is.

    Args:
      folder: of the export; the record is `RECORD` in it.
      identity: what its files depend on, by name.

    Raises:
      InputError: an export of something else is there, by what differs; or files that
        no record speaks of.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._folder, self._path = folder, folder / RECORD
        self._content: dict[str, Any] = {"of": dict(identity), "num_done": 0}
        if not self._path.exists():
            if folder.exists() and any(p.suffix != ".tmp" for p in folder.iterdir()):
                raise InputError(
                    f"{folder} holds files and no {RECORD}, which says what they are: "
                    "move it away"
                )
            return
        try:
            found = json.loads(self._path.read_bytes())
            before, self._content["num_done"] = (
                dict(found["of"]),
                int(found["num_done"]),
            )
            self._content |= {k: found[k] for k in ("chunk_size", "done") if k in found}
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self._path} is damaged ({error}): delete {folder} and export again"
            ) from error
        names = sorted(before.keys() | identity.keys())
        if other := [n for n in names if before.get(n) != identity.get(n)]:
            lines = [f"{n}: {before.get(n)} -> {identity.get(n)}" for n in other]
            raise InputError(
                f"{folder} was exported with other settings or weights:\n  "
                + "\n  ".join(lines)
                + "\nGive the old values, or move that folder away."
            )

    @property
    def num_done(self) -> int:
        """Pictures that are written."""
        return self._content["num_done"]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self._content.get("done", False)

    @property
    def chunk_size(self) -> int | None:
        """Of the sampler in the call before."""
        return self._content.get("chunk_size")

    def begin(self, chunk_size: int | None) -> None:
        """Makes the folder, and remembers the sampler's chunk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._content["chunk_size"] = chunk_size
        self._save()

    def add(self, num: int) -> None:
        """Counts pictures that are on the disk."""
        self._content["num_done"] += num
        self._save()

    def finish(self) -> None:
        """Says that all is there."""
        self._content["done"] = True
        self._save()

    def _save(self) -> None:
        whole_file.write_json(self._path, self._content, indent=2)
