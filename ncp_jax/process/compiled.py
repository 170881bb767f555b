"""Compiled programs are kept from one run of the program to the next."""

import hashlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax

LEAST_SECONDS = 0.1  # programs that compile faster are not kept
MAX_AGE = 30 * 24 * 3600  # seconds after which a program is dropped


def keep() -> Path | None:
    """Lets JAX keep what it compiles, and takes it from there the next time.

    The folder is the user's own cache ($XDG_CACHE_HOME or ~/.cache), one for every kind
    of processor: programs hold its machine code.  JAX's own variables come first:
    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0
    keeps nothing.

    Returns:
      The folder; None where JAX was told otherwise, or nothing can be written.
    """
    config: Any = jax.config  # its options are attributes that types do not know
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(home).expanduser() / "ncp_jax" / "compiled" / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_old(folder)
    except (OSError, RuntimeError):  # read-only, or there is no home at all
        return None
    if not os.access(folder, os.W_OK):
        return None
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _machine() -> str:
    """A name for this kind of processor, by what it can do."""
    able = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        able += next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # another system: by its name
        able += platform.processor()
    return hashlib.sha256(able.encode()).hexdigest()[:16]


def _drop_old(folder: Path) -> None:
    """Removes what nobody has written for a month; other processes may, too."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > MAX_AGE:
                path.unlink()
        except FileNotFoundError:
            continue
