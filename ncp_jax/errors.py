"""The one exception that a person at the keyboard can mend; what often raises it."""

import difflib
import errno
import operator
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Range = tuple[Callable[[Any], Any], str]  # kind and interval of `number`


class InputError(Exception):
    """Bad input: a setting, a file or a folder that the user can change.

    The program prints the message, without a traceback, and exits with code 2; so the
    message names what was found, what was expected and what to do.
    """


class NotFinite(InputError):
    """A loss that is NaN or infinite, of settings or of numbers that came in."""


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def local_path(setting: str, path: str) -> str:
    """Returns a path of this machine, `~` expanded and "file://" taken off.

    Args:
      setting: what names the path, for the error.
      path: as a user writes it; "" stays what it is.

    Raises:
      InputError: it is an address of something else, as gs:// or s3://.
    """
    if not (address := _ADDRESS.fullmatch(path)):
        return os.path.expanduser(path)
    scheme, rest = address.groups()
    here = rest.removeprefix("localhost")
    if scheme.lower() == "file" and here.startswith("/"):
        return here
    raise InputError(
        f"{setting}={path} is an address, and only files of this machine are read and "
        "written: mount it as a folder (gcsfuse, s3fs) or copy it, and give that path"
    )


def number(setting: str, value: Any, kind: Callable[[Any], Any], interval: str) -> Any:
    """Returns a setting as a number of Python's own, NumPy's scalars included.

    Args:
      setting: its name, for the error.
      value: as a user gives it.
      kind: `operator.index` for integers, or `float`.
      interval: of what is allowed, such as "[0, 1)" or "(0, inf)".

    Raises:
      InputError: it is another number, or none.
    """
    low, high = map(float, interval[1:-1].split(","))
    try:
        found = kind(value)
        is_in = low < found < high
        is_in |= (found == low and interval[0] == "[") or (
            found == high and interval[-1] == "]"
        )
    except (TypeError, ValueError, OverflowError):
        is_in = False
    if not is_in:
        what = "an integer" if kind is operator.index else "a number"
        raise InputError(f"{setting} must be {what} in {interval}, got {value!r}")
    return found


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """Returns " Did you mean ...?" of the name most like an unknown one, or "".

    Args:
      name: that is not known.
      known: those that are.
      before: what stands before a known one where it is written; "" quotes it.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = [before + one if before else repr(one) for one in close]
    return f" Did you mean {meant[0]}?" if meant else ""


def explained(error: OSError) -> str:
    """Returns what the system said, and of a refusal who lacks which permission.

    Args:
      error: of the system; other errors than those of permissions stay as they are.
    """
    if error.errno not in (errno.EACCES, errno.EPERM) or not error.filename:
        return str(error)
    try:
        lacking = _lacking(Path(os.fsdecode(error.filename)).absolute())
    except OSError:  # gone meanwhile
        return str(error)
    return f"{error}; user {_name(os.geteuid())} {lacking}"


def _lacking(path: Path) -> str:
    """Which permission an effective user lacks, of a path or of a folder around it."""
    has_effective = os.access in os.supports_effective_ids

    def may(place: Path, mode: int) -> bool:
        return os.access(place, mode, effective_ids=has_effective)

    for folder in reversed(path.parents):
        if not may(folder, os.X_OK):
            return f"may not enter the folder {_described(folder)}"
    if not path.exists():
        return f"may not write to the folder {_described(path.parent)}"
    ways = {"read": os.R_OK, "write to": os.W_OK}
    if path.is_dir():
        ways["enter"] = os.X_OK
    refused = [way for way, mode in ways.items() if not may(path, mode)]
    return f"may not {' or '.join(refused) or 'do that to'} {_described(path)}"


def _described(path: Path) -> str:
    status = path.stat()
    return f"{path} ({stat.filemode(status.st_mode)}, owner {_name(status.st_uid)})"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
