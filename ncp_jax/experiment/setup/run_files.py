"""The JSON files of a run's folder: read, or named with what to do if damaged."""

import json
from pathlib import Path
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import data_seal

EXTENDED = "extended.json"  # within the folder of a stage: its lengths before

CURES = {
    "config.json": "delete it; the checkpoints know which config made them",
    "results.json": "delete it and run --stage=sample and --stage=evaluate again",
    EXTENDED: "bring it back from a copy; checkpoints of the shorter run need it",
    data_seal.FILE: "delete it, and what the data are now is taken for what they were",
}


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the content of one of a run's JSON files, None if there is no such file.

    Args:
      folder: of the run.
      name: one of `CURES`.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {CURES[name]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: {CURES[name]}")
    return content
