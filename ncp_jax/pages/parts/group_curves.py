"""What metrics.jsonl says of a metric over the steps, as of each latent group."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ncp_jax.records import log_lines

Points = dict[int, NDArray[np.float64]]
Curves = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def read(path: Path, metric: str) -> Curves:
    """{split: (steps [n], values [n, K])} of stage "ncp", for "train" and "valid".

    A split whose steps differ in the number of groups is left out.

    Args:
      path: of the metrics.jsonl.
      metric: its name.
    """
    return {
        split: (np.array(list(points), np.float64), np.array(list(points.values())))
        for split, points in by_step(path, metric).get("ncp", {}).items()
        if split in ("train", "valid") and len({v.size for v in points.values()}) == 1
    }


def by_step(path: Path, metric: str) -> dict[str, dict[str, Points]]:
    """{stage: {split: {step: values [K]}}}, the steps in their order.

    Lines cut short by a kill are skipped, and so are those without the metric, which
    older runs do not have.  A resumed run repeats steps: the last word counts.

    Args:
      path: of the metrics.jsonl.
      metric: its name; a number is one group's.
    """
    found: dict[str, dict[str, Points]] = {}
    for row in log_lines.read(path):
        if metric in row:
            points = found.setdefault(row["stage"], {}).setdefault(row["split"], {})
            points[row["step"]] = np.atleast_1d(np.asarray(row[metric], np.float64))
    return {
        stage: {split: dict(sorted(points.items())) for split, points in splits.items()}
        for stage, splits in found.items()
    }
