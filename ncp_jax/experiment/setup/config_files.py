"""The files of `configs/` and of weights by name, of a checkout and of a package."""

import contextlib
import signal
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.errors import InputError, did_you_mean, local_path
from ncp_jax.experiment.setup import schema
from ncp_jax.training.loop import Preempted, preempted_by

_PACKAGE = Path(__file__).parents[2]
_INSTALLED = _PACKAGE / "configs"  # where the wheel has them
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
_WITH_WHEEL = _PACKAGE / "pretrained"
_FORMATS = {"pretrained": "weights", "resume": "state", "init_from": "weights"}
_IN_CHECKOUT = _PACKAGE.parent / "results" / "pretrained"
WEIGHTS = _WITH_WHEEL if _WITH_WHEEL.is_dir() else _IN_CHECKOUT


def names() -> list[str]:
    """Returns the name of every experiment, sorted."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def path_of(name: str) -> Path:
    """Returns the file of an experiment.

    Args:
      name: "digits", or the path of a file, which then need not be of this package.

    Raises:
      InputError: there is neither an experiment nor a file of this name.
    """
    if name in names():
        return FOLDER / f"{name}.py"
    with contextlib.suppress(OSError):  # a name too long for a file
        if Path(name).is_file():
            return Path(name)
    stem = Path(name).stem
    if stem in names() and name == f"configs/{stem}.py":
        return FOLDER / f"{stem}.py"  # as commands in a checkout spell it
    hint = did_you_mean(stem, names())
    raise InputError(f"cannot load --config: no file and no config {name!r}.{hint}")


def weights_names() -> list[str]:
    """Returns the name of every file of weights that is here, sorted."""
    return sorted(path.stem for path in WEIGHTS.glob("[!_.]*.npz"))


def weights_path(name: str, field: str = "pretrained") -> Path:
    """Returns a file of weights, or of a training's state.

    Args:
      name: "mnist_nvae", or the path of an npz.
      field: of `config.vae`, that names it.

    Raises:
      InputError: there are neither weights nor a file of this name.
    """
    if name in weights_names():
        return WEIGHTS / f"{name}.npz"
    with contextlib.suppress(OSError):  # a name too long for a file
        path = Path(local_path(f"config.vae.{field}", name))
        if path.is_file() and path.suffix == ".npz":
            return path
    raise InputError(
        f"config.vae.{field}={name} is no .npz file and no name of weights: there "
        f"are {', '.join(weights_names()) or 'none here'}; --stage=export with "
        f"--config.export.format={_FORMATS[field]} makes others"
    )


def load(name: str, variant: str = "") -> ConfigDict:
    """Returns the settings of an experiment, each of its type.

    Args:
      name: as for `path_of`.
      variant: what may follow the name and a colon; "smoke" shrinks it to seconds.

    Raises:
      InputError: as of `called`, and as of `schema.checked`, with the file's name.
    """
    given = called(name, variant)
    try:
        return schema.checked(given)
    except InputError as error:
        raise InputError(f"{path_of(name)}, get_config: {error}") from error


def called(name: str, variant: str = "") -> Any:
    """Returns whatever the `get_config` of an experiment's file returns.

    Raises:
      InputError: for an unknown name or variant, and for a file that raises anything.
    """
    path = path_of(name)
    if path.suffix != ".py":
        raise InputError(f"cannot load --config: {path} is no Python file")
    try:
        with _interrupts_apart():
            return _get_config(path, variant)
    except (InputError, Preempted):
        raise
    except BaseException as error:  # of any kind: the file is a program
        raise InputError(f"cannot load --config: {_described(path, error)}") from error


def _get_config(path: Path, variant: str) -> Any:
    module = types.ModuleType(f"config_file_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for their own
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InputError(
            f"cannot load --config: {path} has no function get_config, which returns "
            "the settings"
        )
    return get_config(variant) if variant else get_config()


def _interrupts_apart() -> contextlib.AbstractContextManager[None]:
    """Ctrl-C ends the run; a KeyboardInterrupt is then of the file's own making."""
    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext()
    return preempted_by(signal.SIGINT)


def _described(path: Path, error: BaseException) -> str:
    """The kind of an error, its first line, and where in the file it was raised."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    place = f", line {lines[-1]}" if lines else ""
    reason = (str(error).strip().splitlines() or ["no reason given"])[-1].strip()
    return f"{path}{place} raises {type(error).__name__}: {reason}"


def on_data(data_name: str, name: str, variant: str = "") -> ConfigDict:
    """Returns the settings of an experiment, on another data set of equal shape.

    Args:
      data_name: what `data.name` becomes.
      name: as for `path_of`.
      variant: as for `load`.
    """
    config = load(name, variant)
    config.data.name = data_name
    return config
