"""What the data of a run were, so that other data in their place are refused."""

import base64
import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ncp_jax.data.datasets import Dataset

FILE = "data.json"


def of(name: str, dataset: Dataset) -> dict[str, Any]:
    """Returns the seal of a data set, as JSON values.

    Args:
      name: of the data set.
      dataset: the decoded examples of its splits.

    Returns:
      The name, and of every split how many examples of which shape and type it has,
      the sha256 of all and the crc32 of each.
    """
    splits = {split: _of_split(part) for split, part in dataset._asdict().items()}
    return {"name": name, "splits": splits}


def short(seal: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a seal without the crc32 of each example: a few lines of text."""
    splits = {
        split: {name: value for name, value in part.items() if name != "crc32"}
        for split, part in seal["splits"].items()
    }
    return {**seal, "splits": splits}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line per split that is not what it was, by two seals.

    Args:
      before: the older seal; if it is `short`, where examples were is not told.
      now: the newer one.
    """
    lines = []
    if before["name"] != now["name"]:
        lines.append(f"data set: {before['name']} -> {now['name']}")
    is_short = any("crc32" not in part for part in before["splits"].values())
    splits = {} if is_short else before["splits"]
    was = {split: _examples(part) for split, part in splits.items()}
    for split, part in now["splits"].items():
        old = before["splits"].get(split, {})
        if old.get("sha256") == part["sha256"]:
            continue
        line = f"{split}: {_size(old)} -> {_size(part)}"
        if _size(old) == _size(part):
            line = f"{split}: {_size(part)}, of other content or in another order"
        if not is_short:
            line += "".join(_origins(split, _examples(part), was))
        lines.append(line)
    return lines


def is_seal(content: Any) -> bool:
    """Whether a JSON value is what `of` returns."""
    if not (isinstance(content, dict) and isinstance(content.get("splits"), dict)):
        return False
    parts = content["splits"].values()
    return isinstance(content.get("name"), str) and all(map(_is_of_split, parts))


def _is_of_split(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    try:
        base64.b64decode(part["crc32"], validate=True)
    except (LookupError, TypeError, ValueError):
        return False
    return (
        all(isinstance(part.get(key), str) for key in ("sha256", "dtype"))
        and isinstance(part.get("count"), int)
        and isinstance(part.get("shape"), list)
    )


def _of_split(examples: np.ndarray) -> dict[str, Any]:
    rows = np.ascontiguousarray(examples).reshape(len(examples), -1).view(np.uint8)
    checks = np.fromiter(map(zlib.crc32, rows), "<u4", len(rows))
    return {
        "count": len(examples),
        "shape": list(examples.shape[1:]),
        "dtype": str(examples.dtype),
        "sha256": hashlib.sha256(rows.reshape(-1)).hexdigest(),
        "crc32": base64.b64encode(checks.tobytes()).decode(),
    }


def _size(part: Mapping[str, Any]) -> str:
    if not part:
        return "nothing"
    return f"{part['count']:,} examples {part['dtype']} {tuple(part['shape'])}"


def _examples(part: Mapping[str, Any]) -> Counter[bytes]:
    """How often each example occurs, by its crc32."""
    content = base64.b64decode(part["crc32"])
    return Counter(content[i : i + 4] for i in range(0, len(content), 4))


def _origins(
    split: str, now: Counter[bytes], was: Mapping[str, Counter[bytes]]
) -> list[str]:
    """Where the examples that a split did not have come from: ", 3 were in train"."""
    fresh, found = now - was.get(split, Counter()), []
    for other, examples in was.items():
        moved = sum(count for check, count in fresh.items() if check in examples)
        if moved and other != split:
            found.append(f", {moved:,} were in {other}")
            fresh = Counter({c: n for c, n in fresh.items() if c not in examples})
    if new := fresh.total():
        found.append(f", {new:,} are new")
    return found
