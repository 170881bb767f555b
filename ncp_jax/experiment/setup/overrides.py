"""Settings on the command line: --config.SECTION.FIELD=VALUE, read by their types."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import schema

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|-?inf|nan", re.I)
_TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_BRACKETS = {"(": ")", "[": "]"}
_HOW = {
    bool: "true or false",
    int: "an integer in the digits 0 to 9, such as 2000 or 1e6",
    float: "a number in the digits 0 to 9, such as 0.001 or 1e-3",
}


class Override(NamedTuple):
    """One argument that changes a setting."""

    field: str  # "section.field"
    text: str  # its value, as typed
    argument: str  # all of it, for messages


def split(
    argv: Sequence[str], known: Mapping[str, Any]
) -> tuple[list[str], list[Override]]:
    """Divides arguments into the others and those that change settings.

    Args:
      argv: the arguments; a value may be joined by "=" or be the next one, and what is
        true or false needs none: --config.data.download, --noconfig.data.download.
      known: of `schema.fields`.

    Raises:
      InputError: for a setting that there is not, is given twice or has no value.
    """
    others: list[str] = []
    found: dict[str, Override] = {}
    words = iter(argv)
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if not match:
            others.append(word)
            continue
        is_negated, field, text = match.groups()
        if field not in known:
            raise InputError(schema.unknown(field, known, "--"))
        if is_negated and (type(known[field]) is not bool or text is not None):
            raise InputError(
                f"{schema.shortened(word)}: 'no' is for settings that are true or "
                f"false, without a value; give --config.{field}=VALUE"
            )
        if text is None and type(known[field]) is bool:
            text = "false" if is_negated else "true"
        if text is None:
            text = next(words, None)
        if text is None:
            raise InputError(f"--config.{field} has no value: --config.{field}=VALUE")
        if field in found:
            raise InputError(
                f"--config.{field} is given twice, as {schema.shown(found[field].text)}"
                f" and as {schema.shown(text)}: give it once"
            )
        found[field] = Override(field, text, f"--config.{field}={text}")
    return others, list(found.values())


def apply(config: ConfigDict, overrides: Sequence[Override]) -> ConfigDict:
    """Returns a config with some settings changed.

    Args:
      config: has passed `schema.checked`; stays as it is.
      overrides: of `split`.

    Raises:
      InputError: for a value of another type than the setting's.
    """
    known = schema.fields(config)
    values = {o.field: _parsed(o, known[o.field]) for o in overrides}
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(values)
    return schema.checked(changed)


def _parsed(override: Override, before: Any) -> Any:
    if not schema.is_tuple(override.field, before):
        return _scalar(override, override.text, type(before))
    text, element = override.text.strip(), schema.element_of(override.field, before)
    is_closed = len(text) > 1 and _BRACKETS.get(text[0]) == text[-1]
    parts = (text[1:-1] if is_closed else text).split(",")
    if parts[-1].strip() == "" and is_closed:
        parts.pop()  # of "()" and "(3,)"
    values = tuple(_scalar(override, _unquoted(p.strip()), element) for p in parts)
    return values if is_closed or len(values) > 1 else values[0]


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _scalar(override: Override, text: str, kind: type) -> Any:
    value = _value(text, kind)
    if value is None:
        raise InputError(
            f"{schema.shortened(override.argument)}: config.{override.field} takes "
            f"{_HOW[kind]}, got {schema.shown(text)}"
        )
    return value


def _value(text: str, kind: type) -> Any:
    """What a text says, None if nothing of this kind."""
    if kind is str:
        return text
    if kind is bool:
        return _TRUTHS.get(text.lower())
    if kind is int and _INTEGER.fullmatch(text):
        return int(text) if len(text) < 1_000 else None  # Python stops at 4,300 digits
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return schema.convert(number, int) if kind is int else number
