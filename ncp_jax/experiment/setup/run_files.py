"""The JSON files of a run's folder: read, or named with what to do if damaged."""

from pathlib import Path
from typing import Any

from ncp_jax.experiment.setup import data_seal
from ncp_jax.records import run_records

EXTENDED = "extended.json"  # within the folder of a stage: its lengths before

CURES = {
    EXTENDED: "bring it back from a copy; checkpoints of the shorter run need it",
    data_seal.FILE: "delete it, and what the data are now is taken for what they were",
}


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the content of one of a run's JSON files, None if there is no such file.

    Args:
      folder: of the run.
      name: one of `CURES`, "config.json" or "results.json".

    Raises:
      InputError: the file is damaged, or a field of it is of another type.
    """
    readers = {
        "config.json": run_records.read_config,
        "results.json": run_records.read_results,
    }
    if name in readers:
        return readers[name](folder / name)
    return run_records.read_json(folder / name, CURES[name])
