"""The lines of metrics.jsonl, checked one by one."""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ncp_jax.errors import InputError

REMEDY = "mend this line or delete it"


class Line(msgspec.Struct):
    """What every line has beside its metrics."""

    stage: str
    split: str
    step: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the whole records of a metrics.jsonl, in the order of the file.

    A line that is cut short, as by a kill, is left out, and so is one that has no
    stage, split and step.

    Args:
      path: of the file; none is no records.

    Returns:
      By name the stage, the split, the step and the metrics, each a number or the
      numbers of the groups.

    Raises:
      InputError: a field of a whole record is of another type; names line and field.
    """
    records = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        if record.keys() >= {"stage", "split", "step"}:
            _check(f"{path}, line {number}", record)
            records.append(record)
    return records


def _check(where: str, record: dict[str, Any]) -> None:
    try:
        msgspec.convert(record, Line)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip(".`") or "the record"
        raise InputError(f"{where}: {field}: {reason}: {REMEDY}") from error
    for name, value in record.items():
        if name in Line.__struct_fields__:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(map(_is_number, numbers)):
            raise InputError(
                f"{where}: {name} is no number, nor the numbers of the groups: {REMEDY}"
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1000  # a float can hold it
    return isinstance(value, float)
