"""Standard output that nobody reads, or that was never there, stops no run."""

import io
import os
import sys
from typing import Any


class Lasting:
    """A text stream that goes on into nothing when its reader has gone.

    Args:
      stream: of standard output or error.
      is_told: whether a full disk behind it raises.
    """

    def __init__(self, stream: Any, is_told: bool = True):
        self._stream = stream
        self._is_told = is_told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, if anybody listens."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flushes, if anybody listens."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """What is not yet written, and all that follows, leads nowhere.

        Raises:
          OSError: it is not that the reader has gone: a full disk, told once.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._is_told and not isinstance(error, BrokenPipeError):
            raise error


def outlive_readers() -> None:
    """Makes standard output and error last, whoever closes them.

    A descriptor that is closed from the start would be given to the next file that is
    opened, and libraries that print would write into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(descriptor, "w")
        if isinstance(stream, io.TextIOWrapper):  # of names that are no UTF-8
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Lasting(stream, is_told=name == "stdout"))
