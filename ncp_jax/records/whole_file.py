"""Files written at once: a reader sees the old one or the new one, never a part."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets the name `path` when the block ends, and is gone if it fails.

    Processes that write the same file do not meet: the last to end is read.

    Raises:
      OSError: it cannot be written; it names `path` where the system names no file, as
        of a full disk.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Writes a file at once, also over one that is there.

    Raises:
      OSError: as of `opened`.
    """
    with opened(path) as file:
        file.write(content)


def write_json(
    path: Path, content: Mapping[str, Any], indent: int | None = None
) -> None:
    """Writes JSON values in that way.

    Raises:
      OSError: as of `opened`.
    """
    write(path, (json.dumps(content, indent=indent) + "\n").encode())
