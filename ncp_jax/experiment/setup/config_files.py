"""The files of `configs/` by name, in a checkout and in an installed package."""

import difflib
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from ncp_jax.errors import InputError

_PACKAGE = Path(__file__).parents[2]
_INSTALLED = _PACKAGE / "configs"  # where the wheel has them
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


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
    if Path(name).is_file():
        return Path(name)
    stem = Path(name).stem
    if stem in names() and name == f"configs/{stem}.py":
        return FOLDER / f"{stem}.py"  # as commands in a checkout spell it
    close = difflib.get_close_matches(stem, names(), n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"cannot load --config: no file and no config {name!r}.{hint}")


def load(name: str, variant: str = "") -> ConfigDict:
    """Returns the settings of an experiment.

    Args:
      name: as for `path_of`.
      variant: what may follow the name and a colon; "smoke" shrinks it to seconds.

    Raises:
      InputError: for an unknown name or variant.
    """
    path = path_of(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"cannot load --config: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


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
