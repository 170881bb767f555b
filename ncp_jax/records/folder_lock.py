"""A folder that one process at a time may write to."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ncp_jax.errors import InputError, explained


@contextlib.contextmanager
def held(folder: Path | None, name: str) -> Iterator[None]:
    """Locks a folder, which is created if missing; the death of the process unlocks it.

    Args:
      folder: to be locked; None for nothing.
      name: of the argument that gives it, for messages.

    Raises:
      InputError: another process holds it, or it cannot be written to.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        message = f"cannot write to {name}={folder}: {explained(error)}"
        raise InputError(message) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise InputError(
                f"{name}={folder} is in use by another process (pid {holder}); wait "
                "for it or choose another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
