"""Pictures of distances, beside those of `plots`; imports no JAX.

Of samples from their nearest training pictures, and of priors from the posterior.
"""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ncp_jax.pages.parts import plots
from ncp_jax.pages.parts.plots import INK, MUTED, Arrays, Panel
from ncp_jax.pages.parts.quantities import SAMPLERS, Z95

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


@matplotlib.rc_context(plots.STYLE)
def audit(arrays: Arrays) -> list[Panel]:
    """What pictures tell of a hole, over the group from which on z is from p.

    Drawn from `audit_curve` [J, 2] (value, standard error) at `audit_groups` [J], for
    two of them or more; what a sampler leaves, `audit_NAME` [1, 2], is a line.
    """
    curve = arrays.get("audit_curve", np.zeros((0, 2)))
    if len(curve) < 2 or not np.isfinite(curve[:, 0]).any():
        return []
    axes = plots.new_axes(4.8, 2.8)
    for name in (n for n in SAMPLERS if n != "base" and f"audit_{n}" in arrays):
        value, half = arrays[f"audit_{name}"][0] * (1, Z95)
        colour = COLOURS.get(name, MUTED)
        axes.axhspan(value - half, value + half, color=colour, alpha=0.15, lw=0)
        axes.axhline(value, color=colour, lw=1, label=f"{SAMPLERS[name]}, left")
    axes.axhline(0, color=MUTED, lw=0.9, ls="--")
    groups, label = arrays["audit_groups"], "base prior from group j on"
    looks: Any = {"color": plots.BASE, "marker": "o", "elinewidth": 0.9}
    axes.errorbar(groups, curve[:, 0], Z95 * curve[:, 1], label=label, **looks)
    axes.set(xlabel="groups from q, j", ylabel="JSD of pictures, at least (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    seen = groups[curve[:, 0] > Z95 * curve[:, 1]]
    caption = f"At least {curve[0, 0]:.3f} nats from the base prior"
    caption += f"; seen down to j = {seen.max()}" if len(seen) else "; none is seen"
    alt = f"JSD against groups from q. {caption}."
    return [Panel(plots.to_png(axes), alt, caption)]
