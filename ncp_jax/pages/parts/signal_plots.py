"""The report's spectra: in how many directions of a group q moves with x."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from ncp_jax.pages.parts.group_plots import MAX_GROUPS
from ncp_jax.pages.parts.plots import (
    INK,
    MUTED,
    NCP,
    STYLE,
    Arrays,
    Panel,
    new_axes,
    spread,
    to_png,
)

FIELDS = ("signal_spectrum", "signal_floor", "signal_widths", "signal_total")


@matplotlib.rc_context(STYLE)
def spectra(arrays: Arrays) -> list[Panel]:
    """The leading eigenvalues of each group's signal, up to twelve groups.

    Drawn from `signal_spectrum` [K, S] with the floor, `signal_floor` [K], and the
    number of directions that were taken, `signal_widths` [K], of `signal_total` [K].
    """
    if not all(field in arrays for field in FIELDS):
        return []
    rows, floors, widths, totals = (np.asarray(arrays[field]) for field in FIELDS)
    panels = []
    for k in spread(len(rows), MAX_GROUPS):
        values, width = rows[k], int(widths[k])
        is_shown = np.isfinite(values) & (values > 0)
        if not is_shown.any():
            continue
        axes = new_axes(4.8, 2.8) if len(rows) == 1 else new_axes(3.2, 2.3)
        number = np.arange(1, len(values) + 1)
        looks: Any = {"ls": "", "marker": ".", "ms": 4}
        for is_taken, colour, label in (
            (number <= width, INK, "read"),
            (number > width, MUTED, "left out"),
        ):
            chosen = is_shown & is_taken
            axes.plot(
                number[chosen], values[chosen], color=colour, label=label, **looks
            )
        axes.axvline(width + 0.5, color=NCP, lw=1)
        if floors[k] > 0:
            axes.axhline(floors[k], color=MUTED, lw=0.9, ls="--", label="floor")
        axes.set_yscale("log")
        axes.set(xlabel="direction", ylabel="signal (prior = 1)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(handlelength=1)
        name = f"Group {k}. " if len(rows) > 1 else ""
        caption = name + _held(values, width, float(totals[k]), float(floors[k]))
        panels.append(Panel(to_png(axes), f"Eigenvalues. {caption}.", caption))
    return panels


def _held(values: Any, width: int, total: float, floor: float) -> str:
    """What the directions hold, in words."""
    if not width:
        return f"No direction is above the floor of {floor:.2g}: r = 1"
    held = f"{values[:width].sum():.3g} of a signal of {total:.3g}"
    return f"{width} direction{'s' * (width > 1)} hold{'s' * (width == 1)} {held}"
