"""The page's tables of every metric but those that `summary` shows; imports no JAX."""

from collections.abc import Mapping
from typing import Any

from ncp_jax.pages import summary
from ncp_jax.pages.parts import page, quantities
from ncp_jax.pages.parts.quantities import Quantity


def numbers(results: Mapping[str, Any]) -> str:
    """The table of the whole model's metrics, by section; "" without any.

    Args:
      results: the content of `results.json`.
    """
    printable = quantities.printable(results)
    by_section: dict[str, list[Quantity]] = {}
    for q in printable:
        if q.group is None and not summary.is_shown(q.name):
            by_section.setdefault(q.meaning.section, []).append(q)
    if not by_section:
        return ""
    rows = ""
    for section, members in by_section.items():
        rows += f'<tr><th colspan="5" scope="rowgroup">{section}</th></tr>\n'
        for q in members:
            note = f"{page.escape(q.meaning.text)} · " if q.meaning.text else ""
            rows += (
                f"<tr><td>{page.escape(q.meaning.label)}"
                f"<small>{note}<code>{page.escape(q.name)}</code></small></td>"
                f'<td class="right">{q.value}</td><td class="half">{q.interval}</td>'
                f'<td>{page.escape(q.unit)}</td><td class="right">{q.n}</td></tr>\n'
            )
    hidden = quantities.without_interval(results)
    omitted = f" Too few for one, so only in results.json: {hidden}." if hidden else ""
    head = (
        '<tr class="head"><th>Quantity</th><th class="right">Value</th><th>± 95 %</th>'
        '<th>Unit</th><th class="right">n</th></tr>\n'
    )
    return page.section(
        "Numbers",
        f"Value ± half a 95 % interval (1.96 standard errors).{omitted}",
        page.table(head + rows, "numbers"),
    )


def per_group(results: Mapping[str, Any]) -> str:
    """One row per latent group, one column per metric that groups have.

    Args:
      results: the content of `results.json`.
    """
    grouped = [
        q
        for q in quantities.printable(results)
        if q.group is not None and not summary.is_shown(q.name)
    ]
    if not grouped:
        return ""
    columns = {q.name: f"{q.meaning.label} ({q.unit or 'no unit'})" for q in grouped}
    cells = {(q.group, q.name): q for q in grouped}
    rows = '<tr><th class="right">Group</th>' + "".join(
        f'<th class="right" colspan="2">{page.escape(label)}</th>'
        for label in columns.values()
    )
    for k in sorted({q.group for q in grouped if q.group is not None}):
        rows += f'</tr>\n<tr><td class="right">{k}</td>'
        for name in columns:
            q = cells.get((k, name))
            value, half = (q.value, q.interval) if q else ("", "")
            rows += f'<td class="right">{value}</td><td class="half">{half}</td>'
    text = "Each latent group and its discriminator, coarse to fine."
    if "audit_jsd_hybrid" in columns:
        text += (
            " Where the JSD of pictures is above zero and no NCE loss from that row on "
            "is below 2 log 2 = 1.386, the classifiers of z are blind."
        )
    return page.section(
        "Groups",
        text,
        page.table(f"{rows}</tr>", "groups"),
    )
