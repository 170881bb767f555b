"""The picture of nearest distances, beside those of `plots`; imports no JAX."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ncp_jax.report import plots
from ncp_jax.report.plots import INK, MUTED, Arrays, Panel
from ncp_jax.report.quantities import SAMPLERS

COLOURS = {
    "base": plots.BASE,
    "sir": plots.NCP,
    "langevin": plots.LANGEVIN,
    "floor": plots.POSTERIOR,
    "held_out": INK,
}
LABELS = {
    **SAMPLERS,
    "floor": "reconstructed held-out pictures",
    "held_out": "held-out pictures",
}


@matplotlib.rc_context(plots.STYLE)
def nearest(arrays: Arrays) -> list[Panel]:
    """Shares of pictures nearer than a distance, from the `nearest_*` [n]."""
    distances = {
        name: np.sort(arrays[f"nearest_{name}"])
        for name in LABELS
        if f"nearest_{name}" in arrays and len(arrays[f"nearest_{name}"])
    }
    if not distances:
        return []
    figure = Figure(figsize=(4.8, 2.8), dpi=180)
    axes = figure.subplots()
    for name, values in distances.items():
        share = np.arange(1, len(values) + 1) / len(values)
        style = "--" if name in ("floor", "held_out") else "-"
        colour = COLOURS.get(name, MUTED)
        axes.step(values, share, style, color=colour, label=LABELS[name], where="post")
    axes.set(xlabel="distance from the nearest training picture", ylabel="share")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7.5, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    medians = "; ".join(
        f"{LABELS[name]} {np.median(values):.2f}" for name, values in distances.items()
    )
    caption = f"Medians: {medians}"
    return [Panel(buffer.getvalue(), f"Distribution functions. {caption}.", caption)]
