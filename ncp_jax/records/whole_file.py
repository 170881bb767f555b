"""Files written at once: a reader sees the old one or the new one, never a part."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes) -> None:
    """Writes a file at once, also over one that is there.

    Raises:
      OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(
    path: Path, content: Mapping[str, Any], indent: int | None = None
) -> None:
    """Writes JSON values in that way.

    Raises:
      OSError: as of `write`.
    """
    write(path, (json.dumps(content, indent=indent) + "\n").encode())
