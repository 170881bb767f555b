"""What signal directions tell of each group: how many carry signal, and how much."""

import math

import numpy as np

from ncp_jax.evaluation.importance import Estimate
from ncp_jax.priors.directions import Directions


def of_groups(
    directions: Directions,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """Returns the numbers of every group, and its spectrum for a plot.

    Args:
      directions: as stage 2 has them, of K groups.

    Returns:
      `num_directions` and `signal_total`, the trace of E[m m^T] in units of the prior's
      variance, named `signal_total/k` where there are several groups; and the arrays
      `signal_spectrum` [K, S] (descending; NaN where a group has fewer),
      `signal_floor` [K], `signal_widths` [K] and `signal_total` [K].
    """
    widths, n = directions.widths, directions.num_examples
    totals = np.concatenate([np.asarray(t, np.float64) for t in directions.total])
    errors = [float(e) for of_block in directions.total_stderr for e in of_block]
    errors = errors or [math.nan] * len(widths)
    estimates = {}
    for k, (width, total, error) in enumerate(zip(widths, totals, errors, strict=True)):
        mark = f"/{k}" if len(widths) > 1 else ""
        stderr = error if math.isfinite(error) else None
        estimates["num_directions" + mark] = Estimate(width, 0.0, n, "directions")
        estimates["signal_total" + mark] = Estimate(
            float(total), stderr, n, "prior variances"
        )
    longest = max(spectrum.shape[1] for spectrum in directions.spectrum)
    rows = [
        np.pad(
            np.asarray(spectrum, np.float64),
            ((0, 0), (0, longest - spectrum.shape[1])),
            constant_values=np.nan,
        )
        for spectrum in directions.spectrum
    ]
    arrays = {
        "signal_spectrum": np.concatenate(rows),
        "signal_floor": np.concatenate([np.asarray(f) for f in directions.noise_floor]),
        "signal_widths": np.array(widths),
        "signal_total": totals,
    }
    return estimates, arrays
