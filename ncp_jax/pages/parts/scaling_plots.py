"""How costs grow, and where samplers lie under the machine's roof; imports no JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from ncp_jax.pages.parts import plots
from ncp_jax.pages.parts.plots import Panel

Row = Mapping[str, Any]

# A colour and a marker of each, so that neither has to be told apart alone.
LOOKS = {
    "sir": (plots.NCP, "o"),
    "langevin": (plots.LANGEVIN, "s"),
    "asir": (plots.BASE, "^"),
    "isir": (plots.POSTERIOR, "D"),
    "mala": (plots.INK, "v"),
    "sirmala": (plots.MUTED, "P"),
    "stage_two": (plots.BASE, "X"),
}
SIZES = {
    "proposals": "proposals M",
    "steps": "steps",
    "chains": "chains B",
    "dimension": "dimension D",
    "groups": "groups K",
    "devices": "devices",
}


@matplotlib.rc_context(plots.STYLE)
def curves(found: Mapping[str, Any], names: Mapping[str, str]) -> list[Panel]:
    """Seconds against each size, both logarithmic, with slopes in the legend.

    Args:
      found: `rows` and `curves` of the part "scaling".
      names: what a reader calls each sampler.

    Returns:
      A panel per size; a size of which one value was timed at most has none.
    """
    panels = []
    for curve, label in SIZES.items():
        lines = [
            line
            for line in found["curves"]
            if line["curve"] == curve and line["slope"] is not None
        ]
        if lines:
            panels.append(_curve(curve, label, lines, found["rows"], names))
    return panels


def _curve(
    curve: str,
    label: str,
    lines: Sequence[Row],
    rows: Sequence[Row],
    names: Mapping[str, str],
) -> Panel:
    axes = plots.new_axes(4.8, 3.0)
    told = []
    for line in lines:
        sampler, text = line["sampler"], f"slope {line['slope']:.2f}"
        colour, marker = LOOKS[sampler]
        axes.plot(
            *(line["sizes"], line["seconds"]),
            color=colour,
            marker=marker,
            ms=4,
            label=f"{names[sampler]}: {text}",
        )
        low, high = _spread(rows, curve, sampler)
        axes.fill_between(line["sizes"], low, high, color=colour, alpha=0.2, lw=0)
        told.append(f"{names[sampler]} {text}")
    first, ideal = lines[0], -1.0 if curve == "devices" else 1.0
    sizes = np.array(first["sizes"], float)
    linear = first["seconds"][-1] * (sizes / sizes[-1]) ** ideal
    text = f"linear (slope {ideal:.0f})"
    axes.plot(sizes, linear, color=plots.MUTED, ls="--", lw=1, label=text)
    axes.set(xlabel=label, ylabel="time", xscale="log", yscale="log")
    axes.set_xticks(sizes, labels=[f"{size:,.0f}" for size in sizes])
    axes.set_xticks([], minor=True)
    _in_powers(axes, "s")
    axes.legend(fontsize=7)
    caption = f"Seconds against {label}: {', '.join(told)}"
    alt = f"{caption}. The band is the lowest to the highest call."
    return Panel(plots.to_png(axes), alt, caption)


def _spread(
    rows: Sequence[Row], curve: str, sampler: str
) -> tuple[list[float], list[float]]:
    """Lowest and highest seconds of the timed sizes."""
    timed = [
        row
        for row in rows
        if (row["curve"], row["sampler"]) == (curve, sampler) and "seconds" in row
    ]
    low, high = ([row[f"{end}_seconds"] for row in timed] for end in ("min", "max"))
    return low, high


@matplotlib.rc_context(plots.STYLE)
def roofline(found: Mapping[str, Any], names: Mapping[str, str]) -> list[Panel]:
    """FLOP/s against FLOP per byte, under min(ceiling, intensity * bandwidth).

    Args:
      found: a part of the benchmark with both limits, whose rows have `intensity`.
      names: what a reader calls each sampler.

    Returns:
      One panel with a point per row, or none where no row has an intensity.
    """
    rows = [row for row in found["rows"] if "intensity" in row]
    bandwidth = found.get("bandwidth_bytes_per_second")
    if not rows or not bandwidth:
        return []
    ceiling = found["ceiling_flops_per_second"]
    at = np.array([row["intensity"] for row in rows] + [ceiling / bandwidth])
    x = np.geomspace(at.min() / 2, at.max() * 2, 200)
    axes = plots.new_axes(4.8, 3.4)
    roof = np.minimum(ceiling, x * bandwidth)
    axes.plot(x, roof, color=plots.INK, lw=1.2, label="roof")
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        mine = [row for row in rows if row["sampler"] == sampler]
        colour, marker = LOOKS[sampler]
        axes.scatter(
            [row["intensity"] for row in mine],
            [row["flops_per_second"] for row in mine],
            s=22,
            color=colour,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=names[sampler],
        )
    axes.set(xlabel="FLOP per byte", ylabel="FLOP/s", xscale="log", yscale="log")
    _in_powers(axes, "")
    axes.legend(fontsize=7)
    caption = (
        f"Roofline: {ceiling / 1e9:,.0f} GFLOP/s and {bandwidth / 1e9:,.0f} GB/s; "
        "caches serve what lies above its slope"
    )
    alt = f"Reached FLOP/s against FLOP per byte, a point per row. {caption}."
    return [Panel(plots.to_png(axes), alt, caption)]


def _in_powers(axes: Axes, unit: str) -> None:
    """Ticks of a logarithmic y axis at 1, 2 and 5, or at 1 where there are many."""
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(EngFormatter(unit))
    axes.yaxis.set_minor_locator(NullLocator())
