"""Damage by the dice, the same on every run: of bytes, of JSON values, of texts."""

import json

import numpy as np

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
STRANGE = (  # in the place of a value of a record or of a setting
    None,
    True,
    0,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    1e300,
    2**31,
    10**30,
    10**400,
    "",
    "x",
    "1",
    "\ud800",
    "é\x00",
    [],
    [1],
    ["x"],
    [[1.0]],
    {},
    {"a": 1},
    {"x": {"y": {}}},
)


def of_bytes(dice: np.random.Generator, content: bytes) -> bytes:
    """Content with one to three small damages."""
    found = bytearray(content)
    for _ in range(dice.integers(1, 4)):
        kind, at = dice.integers(7), int(dice.integers(len(found) + 1))
        size = int(dice.integers(1, 9))
        if kind == 0:
            found[at : at + 1] = bytes([dice.integers(256)])
        elif kind == 1 and at < len(found):
            found[at] ^= 1 << int(dice.integers(8))
        elif kind == 2 and at < len(found):
            found[at] = INTERESTING[dice.integers(len(INTERESTING))]
        elif kind == 3:
            del found[at : at + size]
        elif kind == 4:
            found[at:at] = dice.bytes(size)
        elif kind == 5:
            found[at : at + size] = found[at : at + size][::-1]
        elif kind == 6 and dice.integers(4) == 0:
            del found[at:]
    return bytes(found)


def of_json(dice: np.random.Generator, content: object) -> object:
    """A copy of a JSON value with one part replaced, removed, renamed or doubled."""
    content = json.loads(json.dumps(content))
    places: list[tuple[object, object]] = []

    def visit(part: object) -> None:
        keys = part if isinstance(part, dict) else range(len(part))
        for key in keys:
            places.append((part, key))
            if isinstance(part[key], dict | list):
                visit(part[key])

    visit(content)
    part, key = places[dice.integers(len(places))]
    kind = dice.integers(6)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part, dict):
        part[["x", "1/2", "a/" + "9" * 5_000, "\ud800"][dice.integers(4)]] = part.pop(
            key
        )
    elif kind == 2 and isinstance(part[key], int | float) and part[key] is not True:
        part[key] = part[key] * [-1, 0, 1e300, 1e-300][dice.integers(4)]
    else:
        part[key] = STRANGE[dice.integers(len(STRANGE))]
    return content


def of_text(dice: np.random.Generator, text: str) -> str:
    """A text with one to three characters put in, taken out or replaced."""
    signs = list("+-_.,eE()[]{}'\" 0123456789xinfaNone=\u0665\ud800\x00é")
    found = list(text)
    for _ in range(dice.integers(1, 4)):
        at = int(dice.integers(len(found) + 1))
        put = [signs[dice.integers(len(signs))]] if dice.integers(3) else []
        found[at : at + int(dice.integers(2))] = put
    return "".join(found)
