"""What the arrays of evaluation/arrays.npz must be for their figures to be drawn."""

from pathlib import Path

import numpy as np

from ncp_jax.records import array_files
from ncp_jax.records.array_files import INTEGERS, Arrays, Damaged, Kind

_KINDS = {
    "groups": Kind(("K",), INTEGERS),
    "log_r_q": Kind(("K", "*")),
    "log_r_p": Kind(("K", "*")),
    "nce_loss": Kind(("K", 2)),
    "sir_ess": Kind(("*", 2)),
    "log_z_curve": Kind(("*", 3)),
    "signal_spectrum": Kind(("G", "*")),
    "signal_floor": Kind(("G",)),
    "signal_widths": Kind(("G",), INTEGERS),
    "signal_total": Kind(("G",)),
    "plane_grid_x": Kind(("X",)),
    "plane_grid_y": Kind(("Y",)),
    "plane_log_p": Kind(("Y", "X")),
    "plane_log_ncp": Kind(("Y", "X")),
    "audit_curve": Kind(("J", 2)),
    "audit_groups": Kind(("J",), INTEGERS),
    "mmd_kernel": Kind(("*", "*")),
}
_FAMILIES = {  # by how their names begin; those above come first
    "reliability_": Kind(("K", "B")),
    "langevin_": Kind(("*", "*")),
    "plane_z_": Kind(("*", 2)),
    "points_": Kind(("*", 2)),
    "nearest_": Kind(("*",)),
    "audit_": Kind((1, 2)),
    "mmd_null_": Kind(("*", "*")),
    "note_": Kind((), "U"),
}


def check(path: Path, remedy: str, arrays: Arrays) -> None:
    """Compares all arrays that a figure, a table or a note is made of.

    Args:
      path: of their file, for the error.
      remedy: what to do if it is damaged; a clause for the error.
      arrays: by name; others than ours are left alone.

    Raises:
      Damaged: one is of another shape or type than is drawn; names it.
    """
    kinds = {name: _KINDS.get(name) or _of_family(name) for name in arrays}
    known = {name: kind for name, kind in kinds.items() if kind}
    array_files.check(path, remedy, arrays, known)
    for name in ("plane_grid_x", "plane_grid_y"):
        grid = arrays.get(name, np.zeros(1))
        if not grid.size or not np.isfinite(grid).all():
            raise Damaged(path, f"{name} is no grid", remedy)
    if "audit_curve" in arrays and "audit_groups" not in arrays:
        raise Damaged(path, "it lacks audit_groups", remedy)


def _of_family(name: str) -> Kind | None:
    found = (kind for start, kind in _FAMILIES.items() if name.startswith(start))
    return next(found, None)
