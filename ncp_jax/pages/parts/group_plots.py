"""The report's pictures of latent groups: log r, calibration, overlap of q and p.

As in `plots`: arrays in, panels out, and an absent array is an absent panel.  Row i of
an array is of the group whose number is `groups[i]`; without `groups`, of group i.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from ncp_jax.pages.parts.group_curves import Curves
from ncp_jax.pages.parts.plots import (
    BASE,
    INK,
    MUTED,
    NCP,
    NO_SIGNAL,
    POSTERIOR,
    STYLE,
    Arrays,
    Panel,
    limits_of,
    new_axes,
    spread,
    to_png,
)
from ncp_jax.pages.parts.quantities import Z95

MAX_GROUPS = 12  # with a picture of their own
GOOD_OVERLAP = 0.4  # nats of loss, the line that Sec. 5.4 draws


@matplotlib.rc_context(STYLE)
def log_ratios(arrays: Arrays) -> list[Panel]:
    """Histograms of `log_r_q` and `log_r_p` [K, n], up to twelve groups."""
    if "log_r_q" not in arrays or "log_r_p" not in arrays:
        return []
    log_r_q, log_r_p = (np.atleast_2d(arrays[k]) for k in ("log_r_q", "log_r_p"))
    names, panels = _names(arrays, len(log_r_q)), []
    for k in spread(len(log_r_q), MAX_GROUPS):
        on_q, on_p = (log_r[k][np.isfinite(log_r[k])] for log_r in (log_r_q, log_r_p))
        if not (len(on_q) and len(on_p)):
            continue
        low, high = limits_of(np.concatenate([on_q, on_p]), tail=0.2)
        bins = np.linspace(low, high, 60)
        axes = _small_axes(len(log_r_q))
        for values, colour, label in (
            (on_q, POSTERIOR, "z ~ q"),
            (on_p, BASE, "z ~ p"),
        ):
            heights = np.histogram(values, bins)[0] / len(values)
            axes.stairs(heights, bins, color=colour, fill=True, alpha=0.3)
            axes.stairs(heights, bins, color=colour, label=label)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set(xlabel="log r (nats)", yticks=[], xlim=(low, high))
        axes.grid(visible=False)
        axes.spines.left.set_visible(False)
        axes.legend(handlelength=1)
        mean = f"mean log r {on_q.mean():.2f} nats under q, {on_p.mean():.2f} under p"
        alt, caption = f"Histogram. {names[k]}{mean}.", names[k] + mean.capitalize()
        panels.append(Panel(to_png(axes), alt, caption))
    return panels


@matplotlib.rc_context(STYLE)
def reliability(arrays: Arrays) -> list[Panel]:
    """Reliability curves, up to twelve groups.

    Drawn from `reliability_predicted`, `reliability_observed`, and the interval of the
    latter, `reliability_low` and `reliability_high` [K, num_bins], NaN in empty bins.
    """
    fields = [f"reliability_{f}" for f in ("predicted", "observed", "low", "high")]
    if not all(field in arrays for field in fields):
        return []
    curves = np.stack([arrays[field] for field in fields], 1)  # [K, 4, num_bins]
    names, panels = _names(arrays, len(curves)), []
    for k in spread(len(curves), MAX_GROUPS):
        x, y, low, high = curves[k][:, np.isfinite(curves[k]).all(0)]
        if not len(x):
            continue
        axes = _small_axes(len(curves))
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls="--")
        # Rounding may put an interval's end past the share itself.
        bars = np.maximum([y - low, high - y], 0.0)
        axes.errorbar(x, y, bars, color=NCP, marker=".", capsize=2, elinewidth=0.9)
        axes.set(xlabel="predicted: D = sigmoid(log r)", ylabel="share from q")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        inside = f"{np.sum((low <= x) & (x <= high))} of {len(x)} bins"
        caption = f"{names[k]}The prediction lies in the 95 % interval of {inside}"
        alt = f"Observed against predicted share of posterior draws. {caption}."
        panels.append(Panel(to_png(axes), alt, caption))
    return panels


@matplotlib.rc_context(STYLE)
def overlap(arrays: Arrays) -> list[Panel]:
    """The paper's Figure 5, for two groups or more, with 95 % intervals.

    (a) the held-out loss of each group, from `nce_loss` [K, 2] (value, standard error);
    (b) the ESS of SIR against it, from `sir_ess` [K, 2].
    """
    loss = arrays.get("nce_loss", np.zeros((0, 2)))
    if len(loss) < 2 or not np.isfinite(loss[:, 0]).any():
        return []
    numbers = arrays.get("groups", np.arange(len(loss)))
    panels = [_loss_of_groups(numbers, loss)]
    ess = arrays.get("sir_ess", np.zeros((0, 2)))
    if ess.shape == loss.shape and np.isfinite(ess[:, 0]).any():
        panels.append(_ess_against_loss(numbers, loss, ess))
    return panels


@matplotlib.rc_context(STYLE)
def gains(curves: Curves) -> list[Panel]:
    """The gain of each group over the steps, train beside held out, up to twelve.

    Args:
      curves: {split: (steps [n], gains [n, K])} in nats.
    """
    if "valid" not in curves:
        return []
    num_groups, panels = curves["valid"][1].shape[1], []
    for k in spread(num_groups, MAX_GROUPS):
        axes, last = _small_axes(num_groups), {}
        for split, colour in (("train", MUTED), ("valid", INK)):
            steps, values = curves.get(split, (np.zeros(0), np.zeros((0, 0))))
            if values.shape[1:] != (num_groups,):
                continue
            shown = np.isfinite(values[:, k])
            if shown.any():
                label = "held out" if split == "valid" else split
                last[label] = f"{values[shown, k][-1]:.4g} {label}"
                axes.plot(steps[shown], values[shown, k], color=colour, label=label)
        if not last:
            continue
        axes.axhline(0, color=NCP, ls="--", lw=1)
        axes.set(xlabel="step", ylabel="gain (nats)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
        axes.legend()
        name = f"Group {k}. " if num_groups > 1 else ""
        caption = f"{name}Last gain: {', '.join(last.values())} (nats)"
        panels.append(Panel(to_png(axes), f"Gain against step. {caption}.", caption))
    return panels


def _loss_of_groups(numbers: NDArray[Any], loss: NDArray[Any]) -> Panel:
    axes = new_axes(4.8, 2.8)
    _points(axes, numbers, loss[:, 0], yerr=Z95 * loss[:, 1])
    for level, label in ((NO_SIGNAL, "p = q"), (GOOD_OVERLAP, "good overlap")):
        axes.axhline(level, color=MUTED, lw=0.9, ls="--")
        axes.annotate(label, (1, level), xycoords=axes.get_yaxis_transform(), **_ABOVE)
    axes.set(xlabel="group", ylabel="held-out loss L (nats)", ylim=(0, 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    to_jsd_and_back: Any = (
        lambda x: (NO_SIGNAL - x) / 2,
        lambda jsd: NO_SIGNAL - 2 * jsd,
    )
    axes.secondary_yaxis("right", functions=to_jsd_and_back).set_ylabel("JSD (nats)")
    enough = f"{np.sum(loss[:, 0] >= GOOD_OVERLAP)} of {len(loss)} groups"
    caption = (
        f"(a) NCE loss of each group, at the right JSD = log 2 - L/2: {enough} have a "
        f"loss of {GOOD_OVERLAP} or more"
    )
    return Panel(to_png(axes), f"Loss against group. {caption}.", caption)


def _ess_against_loss(
    numbers: NDArray[Any], loss: NDArray[Any], ess: NDArray[Any]
) -> Panel:
    axes = new_axes(4.8, 2.8)
    errors: Any = {"xerr": Z95 * loss[:, 1], "yerr": Z95 * ess[:, 1]}
    _points(axes, loss[:, 0], ess[:, 0], **errors)
    for number, x, y in zip(numbers, loss[:, 0], ess[:, 0], strict=True):
        axes.annotate(
            str(number), (x, y), (3, 3), textcoords="offset points", fontsize=7.5
        )
    axes.set(xlabel="held-out loss L (nats)", ylabel="ESS of SIR (proposals)")
    axes.set_yscale("log")
    caption = "(b) Effective sample size of SIR against the loss; numbers are groups"
    return Panel(to_png(axes), f"Scatter. {caption}.", caption)


_ABOVE: Any = {"ha": "right", "va": "bottom", "fontsize": 8, "color": MUTED}


def _points(axes: Axes, x: NDArray[Any], y: NDArray[Any], **errors: Any) -> None:
    axes.errorbar(x, y, color=INK, marker="o", ms=3.5, ls="", elinewidth=0.9, **errors)


def _small_axes(num_groups: int) -> Axes:
    return new_axes(4.8, 2.8) if num_groups == 1 else new_axes(3.2, 2.3)


def _names(arrays: Arrays, num_rows: int) -> list[str]:
    """What stands before a group's caption: nothing where there is only one."""
    numbers = arrays.get("groups", np.arange(num_rows))
    if num_rows == 1 and numbers[0] == 0:
        return [""]
    return [f"Group {number}. " for number in numbers]
