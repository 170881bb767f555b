"""The HTML of the report: one page, nothing fetched, no scripts.

Every argument that ends up between tags is escaped here, but for `body`, `figures` and
`parts`, which are HTML already.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

CSS = """
:root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e6ea; --soft: #9aa4af; --line: #343b43; --paper: #14171a; }
  img.plot { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; line-height: 1.2; font-weight: 650; }
h2 { margin: 0 0 .25rem; font-size: 1.2rem; font-weight: 650; }
p { margin: 0 0 .75rem; max-width: 44rem; }
section { margin-top: 2.75rem; }
.soft, figcaption, td small { color: var(--soft); }
.byline, figcaption, details, td small { font-size: .85rem; }
.headline { font-size: 1.2rem; margin: 1.25rem 0; padding-left: 1rem;
  border-left: 3px solid #c8553d; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.numbers { width: 100%; }
th, td { padding: .4rem .75rem .4rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
th[scope=rowgroup] { padding-top: 1.25rem; color: var(--ink); }
td small { display: block; }
.summary { font-size: .92rem; }
.summary th { vertical-align: bottom; line-height: 1.3; }
.summary td { white-space: nowrap; }
.summary td:first-child { white-space: normal; min-width: 10rem; }
.summary.mmd td:first-child { white-space: nowrap; min-width: 0; }
.summary td small { white-space: normal; }
p.note { margin-top: .75rem; font-size: .85rem; }
.right { text-align: right; white-space: nowrap; }
.half { padding-left: 0; white-space: nowrap; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.grid { display: grid; gap: 1.25rem; margin-top: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); }
.wide { grid-template-columns: minmax(0, 34rem); }
.pair { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
img { display: block; width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figcaption { margin-top: .4rem; }
.groups td.right { padding-left: 1.25rem; }
details { margin-top: .75rem; }
summary { cursor: pointer; font-size: 1rem; }
details td { padding-block: .15rem; vertical-align: top; }
@media (max-width: 36rem) {  /* a row of numbers becomes two lines */
  .numbers, .numbers tbody { display: block; }
  .numbers .head { display: none; }
  .numbers tr { display: flex; flex-wrap: wrap; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .numbers td, .numbers th { border: 0; padding-block: 0; }
  .numbers th { padding-top: 1rem; }
  .numbers td:first-child { flex: 0 0 100%; }
  .numbers td:last-child { margin-left: auto; padding-right: 0; }
  .numbers td:last-child:not(:empty)::before { content: "n = "; color: var(--soft); }
}
@media (max-width: 36rem) {  /* a measure becomes a list of its sources */
  .summary, .summary tbody, .summary tr { display: block; }
  .summary .head, .summary td:empty { display: none; }
  .summary tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .summary td { display: flex; flex-wrap: wrap; column-gap: .6rem; border: 0;
    padding: .1rem 0; }
  .summary td:first-child { display: block; font-weight: 600; }
  .summary td:first-child small { font-weight: 400; }
  .summary td[data-label]::before { content: attr(data-label); flex: 1 0 9rem;
    white-space: normal; color: var(--soft); font-size: .85rem; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; }
  img.plot { filter: none; }
  html { font-size: 9pt; }
  body { max-width: none; padding: 0; }
  section { margin-top: 1.5rem; }
  .summary { font-size: 8pt; }
  .summary td { white-space: normal; }
  .summary td:first-child { min-width: 0; }
  tr, p { break-inside: avoid; }
  h2, section > p { break-after: avoid; }
  .scroll { overflow: visible; }
}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page: head, title and the parts in order."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(parts)}</body>
</html>
"""


def remarks(lines: Iterable[str]) -> str:
    """Paragraphs on what a reader must know before the numbers."""
    return "".join(f'<p class="note">{escape(line)}</p>\n' for line in lines)


def notes(lines: Iterable[str]) -> str:
    """Paragraphs, in a softer voice, on how something was measured; "" has none."""
    return "".join(f'<p class="note soft">{escape(n)}</p>\n' for n in lines if n)


def section(heading: str, note: str, body: str) -> str:
    """A heading, a sentence on what to look for (or none), and the content."""
    lead = f'<p class="soft">{escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{lead}{body}\n</section>\n"


def table(rows: str, style: str = "") -> str:
    """Rows of HTML as a table, which scrolls by itself on a narrow screen."""
    return f'<div class="scroll"><table class="{style}">{rows}</table></div>'


def head(corner: str, labels: Iterable[str]) -> str:
    """The first row of a table, which stays in sight."""
    cells = "".join(f"<th>{escape(label)}</th>" for label in labels)
    return f'<tr class="head"><th>{escape(corner)}</th>{cells}</tr>\n'


def labelled_cells(labels: Mapping[str, str], cells: Mapping[str, str]) -> str:
    """A cell of each column; narrow screens show the column's label in it.

    Args:
      labels: of the columns, as text.
      cells: HTML by column; an absent one is empty.
    """
    return "".join(
        f'<td data-label="{escape(label)}">{cells.get(column, "")}</td>'
        for column, label in labels.items()
    )


def named_values(values: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values; "" without any."""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(value)}</td></tr>\n"
        for name, value in values
    )
    return table(rows) if rows else ""


def grid(figures: Iterable[str], style: str = "") -> str:
    """Figures side by side, as many per row as the screen has room for."""
    return f'<div class="grid {style}">\n{"".join(figures)}</div>'


def figure(png: bytes, style: str, alt: str, caption: str) -> str:
    """A PNG with its caption; `style` is "plot" (inverted in the dark) or "pixels"."""
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size  # the browser keeps the place before it decodes
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<figure><img class="{style}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}" src="{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def escape(value: Any) -> str:
    """The value as text that no browser takes for markup.

    Bytes of a file's name that are no UTF-8 are shown by their numbers, and so are
    halves of a character that stand alone.
    """
    text = str(value)
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        content = text.encode("utf-8", "backslashreplace")
    return html.escape(content.decode("utf-8", "backslashreplace"))
