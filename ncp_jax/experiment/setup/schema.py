"""The door that every config passes: which settings there are, and of which type.

A config is a program's result, and people edit programs. What comes out here has every
setting of `config.default()` and no other, each of the type that its default has.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ncp_jax.errors import InputError, did_you_mean
from ncp_jax.experiment.setup.config import DISCRIMINATORS, VAES, default
from ncp_jax.nested import flatten

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
}
_PLURALS: dict[type, str] = {int: "integers", float: "numbers", str: "strings"}
_ELEMENTS: dict[str, type] = {  # of lists whose default is empty
    "evaluate.audit_groups": int,
    "evaluate.audit_samplers": str,
    "evaluate.fid_samplers": str,
    "compare.names": str,
    "ncp.weight_decays": float,
    "sample.groups": int,
    "sample.langevin_step_sizes": float,
}
_OPEN = ("compare.priors",)  # sections of any settings, which others look at
_FROM = "a config file starts from config.default() and changes settings that are there"
_SHOWN = 80  # characters of a value, in a message


def checked(config: Any) -> ConfigDict:
    """Returns the same settings in a new, locked config, each of its default's type.

    Lists become tuples, NumPy's scalars Python's, integers floats where the default is
    one, whole floats integers, and one value a tuple of one, which is told.

    Raises:
      InputError: for the first setting that is missing, strange or of another type.
    """
    given = _as_dict(config)
    vae = _kind(given, "vae", "model", VAES)
    discriminator = _kind(given, "ncp", "discriminator", DISCRIMINATORS)
    result = default(vae, discriminator)
    values = _section("", given, result.to_dict())
    with result.unlocked():
        result.update(values)  # flattened, a prior that has no section yet has no place
    return result


def fields(config: ConfigDict) -> dict[str, Any]:
    """Returns {"section.field": value} of a config that has passed `checked`."""
    return dict(flatten(config.to_dict()))


def element_of(name: str, value: Sequence[Any]) -> type:
    """Returns the type of what a tuple holds: int, float or str.

    Args:
      name: of the setting, "section.field".
      value: its default, or one that has passed `checked`.
    """
    return _ELEMENTS[name] if name in _ELEMENTS else type(value[0])


def is_tuple(name: str, value: Any) -> bool:
    """Whether a setting is a tuple."""
    return name in _ELEMENTS or isinstance(value, tuple)


def unknown(name: str, known: Iterable[str], flag: str = "") -> str:
    """Says that there is no such setting, and which is the nearest.

    Args:
      name: what was given, "section.field".
      known: the settings that there are.
      flag: "--" where the setting was an argument.
    """
    known = list(known)
    hint = did_you_mean(name, known, f"{flag}config.")
    message = f"there is no setting {flag}config.{shortened(name)}.{hint}"
    inside: list[str] = []
    while name and not inside:  # the fields of the innermost section that exists
        inside = [field for field in known if field.startswith(f"{name}.")]
        name = name.rpartition(".")[0]
    listed = ", ".join(f"config.{field}" for field in inside or known)
    return f"{message}\nSettings: {listed}"


def shown(value: Any) -> str:
    """Returns a value as a message names it, cut to a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of any kind: the value is of somebody else's class
        text = f"a {type(value).__name__}"
    return shortened(text)


def shortened(text: str) -> str:
    """Returns at most a line of a text."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def wrong(name: str, kind: str, value: Any) -> InputError:
    """The error of a setting that must be of another kind."""
    found = shown(value)
    if type(value) not in (int, float, str, bool, tuple, list, type(None)):
        found += f", of type {type(value).__name__}"
    return InputError(f"config.{name} must be {kind}, got {found}")


def _as_dict(config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping | ConfigDict) or not len(config):
        found = "an empty one" if isinstance(config, Mapping | ConfigDict) else None
        raise InputError(
            f"a config is a ConfigDict: {_FROM}; got {found or shown(config)}"
        )
    try:
        return config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    except Exception as error:  # a placeholder without a value, a circle of sections
        raise InputError(f"a config that cannot be read ({error}): {_FROM}") from error


def _kind(
    given: Mapping[str, Any], section: str, part: str, kinds: Mapping[str, Any]
) -> str:
    """Which model or discriminator a config has the settings of."""
    outer = given.get(section)
    settings = outer.get(part) if isinstance(outer, Mapping) else None
    if not isinstance(settings, Mapping):
        return next(iter(kinds))  # what is lacking is named later
    name = settings.get("name")
    if (
        isinstance(name, str)
        and name in kinds
        and settings.keys() >= kinds[name].keys()
    ):
        return name
    # Its fields come with it; another name is refused with the other choices.
    fitting = [
        kind for kind in kinds if kinds[kind].keys() == settings.keys() - {"name"}
    ]
    if fitting:
        return fitting[0]
    return name if isinstance(name, str) and name in kinds else next(iter(kinds))


def _section(
    prefix: str, given: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, Any]:
    names = {field: f"{prefix}{field}" for field in expected}
    for field in given:
        if field not in expected:
            known = [name for name, _ in flatten(expected, prefix)]
            raise InputError(unknown(f"{prefix}{field}", known))
    for field in expected:
        if field not in given:
            what = "section" if isinstance(expected[field], Mapping) else "setting"
            raise InputError(f"the {what} config.{names[field]} is missing: {_FROM}")
    return {
        field: _value(names[field], given[field], expected[field]) for field in expected
    }


def _value(name: str, value: Any, expected: Any) -> Any:
    if name in _OPEN and isinstance(value, Mapping):
        return dict(value)
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            kind = f"a section, with the settings {', '.join(expected)}"
            raise wrong(name, kind, value)
        return _section(f"{name}.", value, expected)
    if is_tuple(name, expected):
        return _tuple(name, value, element_of(name, expected))
    converted = convert(value, type(expected))
    if converted is None:
        raise wrong(name, KINDS[type(expected)], value)
    return converted


def _tuple(name: str, value: Any, element: type) -> tuple[Any, ...]:
    value = _plain(value)
    if convert(value, element) is not None:
        print(f"config.{name} = {shown(value)} is taken for ({shown(value)},)")
        value = (value,)
    if not isinstance(value, tuple | list):
        raise wrong(name, f"a tuple of {_PLURALS[element]}", value)
    elements = tuple(convert(part, element, is_kept=True) for part in value)
    if any(part is None for part in elements):
        raise InputError(
            f"config.{name} must hold {_PLURALS[element]}, got {shown(tuple(value))}"
        )
    return elements


def convert(value: Any, kind: type, is_kept: bool = False) -> Any:
    """Returns a value as bool, int, float or str; None where it is another thing.

    Args:
      value: anything.
      kind: bool, int, float or str.
      is_kept: whether an integer stays one where a float is meant: in tuples, whose
        elements always could, so that older runs are known again.
    """
    value = _plain(value)
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        return str(os.fsdecode(value)) if isinstance(value, str | os.PathLike) else None
    if not isinstance(value, int | float):
        return None
    if kind is int:
        return int(value) if float_is_whole(value) else None
    try:
        return value if is_kept else float(value)
    except OverflowError:
        return None


def float_is_whole(value: int | float) -> bool:
    """Whether a number is an integer, such as 1e6."""
    return isinstance(value, int) or value.is_integer()


def _plain(value: Any) -> Any:
    """Python's own scalar for NumPy's."""
    return value.item() if isinstance(value, np.generic) else value
