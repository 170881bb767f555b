"""Priors fitted to the encodings of a frozen VAE of one latent vector, one a file.

Knows what a prior over one vector offers and how each learns it.  Knows no VAE, no data
set and no run: encodings come as arrays.
"""

import dataclasses
import difflib
import importlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from ncp_jax.errors import InputError


class Known(NamedTuple):
    """Where the settings of a prior are, and what its name says of them."""

    module: str
    settings: str = "Settings"
    fields: Mapping[str, Any] = types.MappingProxyType({})
    base: str = ""  # the prior that is reweighted, fitted first; "": the VAE's own


PRIORS = {
    "gaussian": Known("gaussian"),
}
NAMES = tuple(PRIORS)


def settings_of(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Returns how a prior is fitted: a frozen dataclass, a `contract.Fit`.

    Args:
      name: one of `NAMES`.
      changes: of its fields; those of a field that holds settings are a mapping again,
        e.g. {"training": {"num_steps": 100}}.

    Raises:
      InputError: there is no such prior or field.
    """
    if name not in PRIORS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"there is no prior {name!r}.{hint} There are {', '.join(NAMES)}"
        )
    known = PRIORS[name]
    module = importlib.import_module(f"{__name__}.{known.module}")
    fields = dict(known.fields)
    if known.base:
        fields["base"] = settings_of(known.base)
    return _changed(name, getattr(module, known.settings)(**fields), changes or {})


def _changed(name: str, settings: Any, changes: Mapping[str, Any]) -> Any:
    """The same settings with other values of some fields."""
    fields = [field.name for field in dataclasses.fields(settings)]
    if unknown := sorted(changes.keys() - set(fields)):
        raise InputError(
            f"prior {name!r} has no setting {unknown[0]!r}: there are "
            f"{', '.join(fields) or 'none'}"
        )
    values = {}
    for field, value in changes.items():
        before = getattr(settings, field)
        if dataclasses.is_dataclass(before) and isinstance(value, Mapping):
            value = _changed(f"{name}.{field}", before, value)
        values[field] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(settings, **values)
