"""The prior hole in the plane: how many samples miss the modes of a known mixture."""

import numpy as np

from ncp_jax.evaluation.importance import Estimate


def on_modes(
    points: np.ndarray, modes: np.ndarray, std: float, num_std: float = 4.0
) -> tuple[Estimate, Estimate]:
    """Measures the share of points off every mode, and how many modes have points.

    Args:
      points: [n, D] samples.
      modes: [m, D] centres.
      std: standard deviation of each mode.
      num_std: a point farther than this many `std` from every centre is off.

    Returns:
      The share off (binomial standard error), and the number of modes visited (an
      exact count: its standard error is 0).
    """
    distances = np.linalg.norm(points[:, None] - modes[None], axis=-1)  # [n, m]
    is_off = distances.min(axis=1) > num_std * std
    share, n = float(is_off.mean()), len(points)
    visited = np.unique(distances.argmin(axis=1)[~is_off]).size
    return (
        Estimate(share, float(np.sqrt(share * (1.0 - share) / n)), n, "fraction"),
        Estimate(float(visited), 0.0, n, "modes"),
    )
