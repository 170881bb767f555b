"""The page's tables of measures against sources of samples; imports no JAX."""

from collections.abc import Mapping
from typing import Any

from ncp_jax.pages.parts import page, published, quantities
from ncp_jax.pages.parts.quantities import FAMILIES, SAMPLERS

Metrics = Mapping[str, Mapping[str, Any]]

# Columns, in order; those without a number are left out.
COLUMNS = {
    "base": SAMPLERS["base"],
    "ncp": "NCP prior r p / Z",
    **{name: label for name, label in SAMPLERS.items() if name != "base"},
    "floor": "Floor",
    "real": "Real",
}
NLL = "bounds on -log p(x); lower is better"
OF_SPLIT = {"test": "Test NLL (nats)", "valid": "Validation NLL (nats)"}
LIKELIHOODS = {"base": "nll_base", "ncp": "nll_ncp", "sir": "nll_snis"}
OF_MMD = ("mmd", "mmd_p")  # have a table of their own


def is_shown(name: str) -> bool:
    """Whether the tables here hold a metric, by its name without the group."""
    family, _, source = name.rpartition("_")
    return family in FAMILIES and source in quantities.SOURCES


def measures(metrics: Metrics, config: Mapping[str, Any], notes: list[str]) -> str:
    """The section with a row per measure and a column per source of samples.

    Args:
      metrics: of `results.json`.
      config: that they were made with, which says whose examples they are of and
        whether the paper has a number.
      notes: sentences on how the numbers came about.

    Returns:
      HTML; "" where there is no measure of samples.
    """
    split = config.get("evaluate", {}).get("split", "test")
    nll = OF_SPLIT.get(split, f"NLL of {split} (nats)")
    rows: dict[str, tuple[str, str, dict[str, str]]] = {"nll": (nll, NLL, LIKELIHOODS)}
    for family, (label, text) in FAMILIES.items():
        if family not in OF_MMD:
            names = {source: f"{family}_{source}" for source in COLUMNS}
            rows[family] = (label, text, names)
    cells = {
        row: {c: _cell(metrics[n]) for c, n in names.items() if _is_known(metrics, n)}
        for row, (_, _, names) in rows.items()
    }
    cells = {row: of_row for row, of_row in cells.items() if of_row}
    if not cells:
        return ""
    paper = published.of(config) if split == "test" else None
    columns = {c: t for c, t in COLUMNS.items() if any(c in r for r in cells.values())}
    if paper is not None and paper.measure in cells:
        columns["paper"] = "Paper"
        cells[paper.measure]["paper"] = (
            f"{paper.base:.2f} → {paper.ncp:.2f}"
            f"<small>base → NCP, {page.escape(paper.protocol)}</small>"
        )
    body = "".join(
        f"<tr><td>{page.escape(rows[row][0])}"
        f"<small>{page.escape(rows[row][1])}</small></td>"
        + page.labelled_cells(columns, of_row)
        + "</tr>\n"
        for row, of_row in cells.items()
    )
    table = page.table(page.head("Measure", columns.values()) + body, "summary")
    lead = (
        "Value ± half a 95 % interval, and n. Floor: decoded posterior draws, which "
        "stage 2 cannot beat."
    )
    return page.section("Summary", lead, table + page.notes(notes))


def mmd(metrics: Metrics, arrays: Mapping[str, Any], note: str) -> str:
    """The section with the MMD of every latent group; "" where it was not measured.

    Args:
      metrics: of `results.json`.
      arrays: of `latent_mmd.per_group`; an absent one is an empty cell.
      note: how it was measured.
    """
    names = [source for source in COLUMNS if _keys(metrics, f"mmd_{source}")]
    if not names:
        return ""
    keys = _keys(metrics, f"mmd_{names[0]}")
    columns: dict[str, str] = {}
    for source in names:
        columns |= {
            f"mmd_{source}": COLUMNS[source],
            f"null_{source}": "if equal",
            f"mmd_p_{source}": "p-value",
        }
    columns["kernel"] = "kernel"
    body = ""
    for k, suffix in enumerate(keys):
        of_row = {}
        for source in names:
            for name in (f"mmd_{source}", f"mmd_p_{source}"):
                if _is_known(metrics, name + suffix):
                    of_row[name] = _cell(metrics[name + suffix], has_n=False)
            of_row[f"null_{source}"] = _pair(arrays, f"mmd_null_{source}", k)
        of_row["kernel"] = _pair(arrays, "mmd_kernel", k)
        cells = page.labelled_cells(columns, of_row)
        body += f"<tr><td>Group {k}</td>{cells}</tr>\n"
    lead = (
        "MMD² of the aggregate posterior q from each prior; where the two are equal, "
        "95 % of values lie in the interval beside it. Floor: encodings of training "
        "examples in the place of draws. Kernel: bandwidth, share of the variance kept."
    )
    table = page.table(page.head("Group", columns.values()) + body, "summary mmd")
    return page.section("Latent groups: MMD", lead, table + page.notes([note]))


def _keys(metrics: Metrics, name: str) -> list[str]:
    """What follows a metric's name for each group: "" alone, or "/0", "/1", ..."""
    if _is_known(metrics, name):
        return [""]
    suffixes = [f"/{k}" for k in range(len(metrics))]
    return [suffix for suffix in suffixes if _is_known(metrics, name + suffix)]


def _is_known(metrics: Metrics, name: str) -> bool:
    return name in metrics and metrics[name].get("stderr") is not None


def _cell(metric: Mapping[str, Any], has_n: bool = True) -> str:
    value = " ".join(quantities.estimate(metric))
    n = metric.get("n")
    return value + (f"<small>n = {n:,}</small>" if has_n and n is not None else "")


def _pair(arrays: Mapping[str, Any], name: str, k: int) -> str:
    rows = arrays.get(name, ())
    return ", ".join(f"{v:.2g}" for v in rows[k]) if k < len(rows) else ""
