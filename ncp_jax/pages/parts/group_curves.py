"""What metrics.jsonl says of each latent group over the steps of stage 2."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ncp_jax.records import log_lines

Curves = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def read(path: Path, metric: str) -> Curves:
    """{split: (steps [n], values [n, K])} of stage "ncp", for "train" and "valid".

    Lines cut short by a kill are skipped, and so are those without the metric, which
    older runs do not have.  A resumed run repeats steps: the last word counts.

    Args:
      path: of the metrics.jsonl.
      metric: its name.
    """
    points: dict[str, dict[int, list[float]]] = {}
    for row in log_lines.read(path):
        is_known = row["stage"] == "ncp" and row["split"] in ("train", "valid")
        if is_known and metric in row:
            values = np.atleast_1d(np.asarray(row[metric], np.float64)).tolist()
            points.setdefault(row["split"], {})[row["step"]] = values
    return {
        split: (np.array(steps, np.float64), np.array([by_step[s] for s in steps]))
        for split, by_step in points.items()
        if len({len(values) for values in by_step.values()}) == 1
        for steps in [sorted(by_step)]
    }
