"""The report's pictures: arrays in, PNG panels out, one panel per picture.

Every function takes the mapping of arrays that the evaluation left behind and returns
the panels it can draw from it; an absent array is an absent panel, never an error.  The
page lays panels out, so that a phone shows one per row and a desktop several.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from ncp_jax.pages.parts.quantities import Z95

Arrays = Mapping[str, NDArray[Any]]
Limits = tuple[float, float]

INK, MUTED = "#24292f", "#8c959f"
BASE, NCP, LANGEVIN, POSTERIOR = "#3a6ea5", "#c8553d", "#2a8c6a", "#7b5aa6"
MAX_POINTS = 4_000  # of one scatter
NO_SIGNAL = 2 * math.log(2)  # the NCE loss of a classifier that always says p = q

STYLE: Any = {  # its type is the list of all of matplotlib's settings
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.transparent": True,  # the page's own background shows, light or dark
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}

# (array, colour, caption) of the scatters; the densities stand after the first two.
PLANE_SCATTERS = (
    ("plane_z_q", POSTERIOR, "Aggregate posterior q(z)"),
    ("plane_z_p", BASE, "Draws from the base prior p(z)"),
    ("plane_z_sir", NCP, "NCP by SIR"),
    ("plane_z_langevin", LANGEVIN, "NCP by Langevin"),
)
PLANE_DENSITIES = (
    ("plane_log_p", BASE, "Base prior p(z)"),
    ("plane_log_ncp", NCP, "NCP prior r(z) p(z) / Z"),
)
POINT_SCATTERS = (
    ("points_data", INK, "Data"),
    ("points_base", BASE, "Base prior p(z)"),
    ("points_sir", NCP, "NCP by SIR"),
    ("points_langevin", LANGEVIN, "NCP by Langevin"),
    ("points_floor", POSTERIOR, "Floor: decoded posterior draws"),
)


class Panel(NamedTuple):
    """One picture of the page."""

    png: bytes
    alt: str  # what a reader who cannot see the picture should know
    caption: str


@matplotlib.rc_context(STYLE)
def loss(
    stage: str,
    curves: Mapping[str, NDArray[np.float64]],
    negative_weight: float = 1.0,
    unit: str = "nats",
) -> list[Panel]:
    """The loss of one stage over its steps.

    Args:
      stage: "vae" or "ncp"; the second gets a line where p = q, at 2 log 2.
      curves: split ("train", "valid") -> [n, 2] columns step and loss.
      negative_weight: M of the NCE loss, which moves that line.
      unit: of the loss; "" where it has none.

    Returns:
      One panel, or none when no curve holds a finite loss.
    """
    colours = {"train": MUTED, "valid": INK}
    finite = {
        s: curves[s][np.isfinite(curves[s]).all(1)] for s in colours if s in curves
    }
    curves = {split: xy for split, xy in finite.items() if len(xy)}
    if not curves:
        return []
    axes = new_axes(4.8, 2.8)
    for split, xy in curves.items():
        looks: Any = {"marker": "."} if len(xy) <= 40 else {"lw": 0.8, "alpha": 0.7}
        axes.plot(*xy.T, color=colours[split], label=split, **looks)
    level = no_signal(negative_weight)
    if stage == "ncp":
        label = "2 log 2 (p = q)" if negative_weight == 1.0 else f"{level:.4g} (p = q)"
        axes.axhline(level, color=NCP, ls="--", lw=1, label=label)
    # The first steps fall from far above: they may leave the picture.
    last = max(xy[-1, 0] for xy in curves.values())
    kept = np.concatenate([xy[xy[:, 0] >= 0.1 * last, 1] for xy in curves.values()])
    if stage == "ncp":
        kept = np.append(kept, level)
    low, high = kept.min(), kept.max()
    pad = 0.06 * (high - low) or 0.1
    label = f"loss ({unit})" if unit else "loss (no unit)"
    axes.set(xlabel="step", ylabel=label, ylim=(low - pad, high + pad))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
    axes.legend()
    final = ", ".join(f"{split} {xy[-1, 1]:.4g}" for split, xy in curves.items())
    name = {"vae": "Stage 1: VAE", "ncp": "Stage 2: NCE"}.get(stage, stage)
    if stage == "vae" and not unit:
        name = "Stage 1: autoencoder"
    caption = f"{name} loss; last values: {final} {unit}".rstrip()
    return [Panel(to_png(axes), f"Loss against step. {caption}.", caption)]


def no_signal(negative_weight: float) -> float:
    """The NCE loss of a classifier that always says p = q: 2 log 2 at M = 1."""
    m = negative_weight
    return math.log1p(m) + m * math.log1p(1 / m)


@matplotlib.rc_context(STYLE)
def log_z(arrays: Arrays) -> list[Panel]:
    """Convergence of log Z from `log_z_curve` [m, 3]: draws, estimate, stderr."""
    curve = arrays.get("log_z_curve", np.zeros((0, 3)))
    curve = curve[np.isfinite(curve).all(1) & (curve[:, 0] > 0)]
    if not len(curve):
        return []
    draws, estimate, half = curve[:, 0], curve[:, 1], Z95 * curve[:, 2]
    axes = new_axes(4.8, 2.8)
    axes.fill_between(
        draws, estimate - half, estimate + half, color=NCP, alpha=0.2, lw=0
    )
    axes.plot(draws, estimate, color=NCP, marker=".")
    axes.axhline(estimate[-1], color=MUTED, lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set(xlabel="draws from p(z)", ylabel="log Z (nats)")
    caption = (
        f"log Z = {estimate[-1]:.3f} ± {half[-1]:.3f} nats after {int(draws[-1]):,} "
        "draws; the band is the 95 % interval"
    )
    return [
        Panel(to_png(axes), f"Estimate against number of draws. {caption}.", caption)
    ]


@matplotlib.rc_context(STYLE)
def plane(arrays: Arrays) -> list[Panel]:
    """A two-dimensional latent space: q(z), p(z), p_NCP(z) and draws, on shared axes.

    Scatters are the `plane_z_*` [n, 2]; densities `plane_log_p` and `plane_log_ncp`
    [gy, gx] on `plane_grid_x` [gx], `plane_grid_y` [gy], up to a constant.
    """
    has_grid = "plane_grid_x" in arrays and "plane_grid_y" in arrays
    scatters = [s for s in PLANE_SCATTERS if s[0] in arrays]
    densities = [d for d in PLANE_DENSITIES if d[0] in arrays and has_grid]
    if any(name == "plane_log_p" for name, *_ in densities):  # says the same, better
        scatters = [s for s in scatters if s[0] != "plane_z_p"]
    if has_grid:
        x, y = arrays["plane_grid_x"], arrays["plane_grid_y"]
        limits = (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))
    else:
        limits = _box([arrays[name] for name, *_ in scatters])
    drawn = {
        name: _scatter(arrays[name], colour, caption, "z₁", "z₂", limits)
        for name, colour, caption in scatters
    } | {
        name: _density(arrays[name], colour, caption, limits)
        for name, colour, caption in densities
    }
    order = ("plane_z_q", "plane_z_p", "plane_log_p", "plane_log_ncp")
    return [drawn.pop(name) for name in order if name in drawn] + list(drawn.values())


@matplotlib.rc_context(STYLE)
def points(arrays: Arrays) -> list[Panel]:
    """Two-dimensional data and decoded draws `points_*` [n, 2], on shared axes."""
    scatters = [s for s in POINT_SCATTERS if s[0] in arrays]
    frame = ["points_data"] if "points_data" in arrays else [s[0] for s in scatters]
    limits = _box([arrays[name] for name in frame])
    return [
        _scatter(arrays[name], colour, caption, "x₁", "x₂", limits)
        for name, colour, caption in scatters
    ]


@matplotlib.rc_context(STYLE)
def langevin(arrays: Arrays) -> list[Panel]:
    """Chain means `langevin_log_density` and `langevin_gradient_norm` [K, steps]."""
    panels = []
    for name, label in (
        ("langevin_log_density", "log density (nats)"),
        ("langevin_gradient_norm", "gradient norm"),
    ):
        if name not in arrays:
            continue
        series = np.atleast_2d(arrays[name])
        series = np.where(np.isfinite(series), series, np.nan)
        num_groups = len(series)
        colours = _fade(LANGEVIN, alpha=0.35)(np.linspace(1, 0, num_groups))
        axes = new_axes(4.8, 2.8)
        for k, (row, colour) in enumerate(zip(series, colours, strict=True)):
            ends = num_groups > 1 and k in (0, num_groups - 1)
            axes.plot(row, color=colour, label=f"group {k}" if ends else None)
        if num_groups > 1:
            axes.legend()
        axes.set(xlabel="Langevin step", ylabel=label)
        caption = f"Mean {label} over the chains"
        panels.append(Panel(to_png(axes), f"{caption} against Langevin step.", caption))
    return panels


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new picture of so many inches."""
    return Figure(figsize=(width, height), dpi=180).subplots()


def to_png(axes: Axes) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    figure = axes.figure
    assert isinstance(figure, Figure)  # not one of its subfigures
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _scatter(
    xy: NDArray[Any], colour: str, caption: str, x: str, y: str, limits: tuple
) -> Panel:
    shown = xy[spread(len(xy), MAX_POINTS)]
    axes = _square(limits, x, y)
    axes.scatter(
        shown[:, 0], shown[:, 1], s=3.5, color=colour, alpha=0.45, linewidths=0
    )
    alt = f"Scatter of {len(shown):,} points in the plane of {x} and {y}. {caption}."
    return Panel(to_png(axes), alt, caption)


def _density(
    log_density: NDArray[Any], colour: str, caption: str, limits: tuple
) -> Panel:
    finite = log_density[np.isfinite(log_density)]
    top = finite.max() if len(finite) else 0.0
    height = np.exp(np.nan_to_num(log_density, nan=-np.inf, posinf=top) - top)
    axes = _square(limits, "z₁", "z₂")
    axes.imshow(
        height,
        origin="lower",
        extent=(*limits[0], *limits[1]),
        cmap=_fade(colour),
        interpolation="bilinear",
        vmin=0,
        vmax=1,
    )
    alt = f"Density over the latent plane, brought to maximum one. {caption}."
    return Panel(to_png(axes), alt, caption)


def _square(limits: tuple[Limits, Limits], x: str, y: str) -> Axes:
    axes = new_axes(3.2, 3.2)
    axes.set(xlim=limits[0], ylim=limits[1], xlabel=x, ylabel=y)
    axes.set_aspect("equal", adjustable="box")
    return axes


def _box(clouds: Sequence[NDArray[Any]]) -> tuple[Limits, Limits]:
    """Limits of both axes that hold all but the farthest points."""
    if not clouds:
        return (-1.0, 1.0), (-1.0, 1.0)
    xy = np.concatenate(clouds)
    return limits_of(xy[:, 0], tail=0.5), limits_of(xy[:, 1], tail=0.5)


def limits_of(values: NDArray[Any], tail: float) -> Limits:
    """The central 100 - 2 tail per cent of the finite values, and a margin."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [tail, 100 - tail]) if len(finite) else (0, 0)
    margin = 0.12 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _fade(colour: str, alpha: float = 0.0) -> LinearSegmentedColormap:
    """From the colour at opacity `alpha`, the page showing through, to the colour."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ends = [(red, green, blue, alpha), (red, green, blue, 1.0)]
    return LinearSegmentedColormap.from_list("fade", ends)


def spread(num_items: int, num_kept: int) -> NDArray[np.int64]:
    """At most `num_kept` indices below `num_items`, evenly spaced, ends included."""
    kept = min(num_items, num_kept)
    return np.linspace(0, max(num_items - 1, 0), kept).round().astype(np.int64)
