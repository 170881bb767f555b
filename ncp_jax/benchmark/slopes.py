"""The slopes of costs against sizes, both logarithmic.

1 where the cost is linear, 0 where it does not depend on the size.  Against devices,
which share the same work, -1 is all that can be had.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
_AXES = ("size", "seconds")


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds against log size, by least squares; two sizes at least."""
    x, y = np.log(sizes), np.log(seconds)
    return float(np.sum((x - x.mean()) * y) / np.sum((x - x.mean()) ** 2))


def with_slopes(timed: Iterable[Row]) -> Iterator[Row]:
    """Adds to each row the `slope` from the size before on its curve."""
    before: dict[tuple[str, str], Row] = {}
    for row in timed:
        curve = row["curve"], row["sampler"]
        if "seconds" in row:
            if last := before.get(curve):
                both = last, row
                row["slope"] = slope(*([r[n] for r in both] for n in _AXES))
            before[curve] = row
        yield row


def curves(timed: Sequence[Row]) -> list[Row]:
    """Each curve with its `slope` over the upper half of its sizes.

    Args:
      timed: rows; those that were not run are left out.

    Returns:
      Per curve and sampler: `sizes`, medians of `seconds`, and the slope by least
      squares over the larger half of the sizes, two at least; None of one size.
    """
    names = dict.fromkeys((row["curve"], row["sampler"]) for row in timed)
    found = []
    for curve, sampler in names:
        mine = [
            row
            for row in timed
            if (row["curve"], row["sampler"]) == (curve, sampler) and "seconds" in row
        ]
        sizes, seconds = ([row[name] for row in mine] for name in _AXES)
        upper = slice(-max(-(-len(sizes) // 2), 2), None)
        steepness = slope(sizes[upper], seconds[upper]) if len(sizes) > 1 else None
        found.append(
            {
                "curve": curve,
                "sampler": sampler,
                "sizes": sizes,
                "seconds": seconds,
                "slope": steepness,
            }
        )
    return found
