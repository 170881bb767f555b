"""What metrics.jsonl says of each latent group over the steps of stage 2."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        try:
            row: Any = json.loads(line)
            split, step = row["split"], int(row["step"])
            values = np.atleast_1d(np.asarray(row[metric], np.float64)).tolist()
        except (ValueError, KeyError, TypeError):
            continue
        if row.get("stage") == "ncp" and split in ("train", "valid"):
            points.setdefault(split, {})[step] = values
    return {
        split: (np.array(steps, np.float64), np.array([by_step[s] for s in steps]))
        for split, by_step in points.items()
        if len({len(values) for values in by_step.values()}) == 1
        for steps in [sorted(by_step)]
    }
