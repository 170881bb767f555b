"""A file with its sha256 beside it, so that changed bytes are noticed."""

import contextlib
import hashlib
from pathlib import Path

from ncp_jax.errors import InputError, explained
from ncp_jax.records import whole_file


def check(path: Path) -> None:
    """Compares a file with its seal, or seals it where that was never done.

    The seal `NAME.sha256` is what the program sha256sum writes and checks.  Where it
    cannot be written the file stays without one.

    Args:
      path: the file, which is read as a whole.

    Raises:
      InputError: it holds other bytes than were sealed, or cannot be read.
    """
    seal = path.with_suffix(".sha256")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        sealed = seal.read_text(errors="replace").split() if seal.exists() else []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({explained(error)})") from error
    if not sealed:  # none, or one that a kill cut short
        with contextlib.suppress(OSError):
            whole_file.write(seal, f"{found}  {path.name}\n".encode())
    elif sealed[0] != found:
        raise InputError(
            f"{path}: a broken cache (other bytes than {seal.name} says were written); "
            f"delete it and {seal.name}, it will be made again"
        )
