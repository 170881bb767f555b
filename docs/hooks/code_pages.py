"""Notebooks and recipes are pages: the cells with their saved outputs, the code."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"(\]\([\w./-]+)\.(?:ipynb|py)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds NAME.md for every NAME.ipynb and every NAME.py."""
    for file in list(files):
        name, _, kind = file.src_uri.rpartition(".")
        if kind not in ("ipynb", "py") or not file.inclusion.is_included():
            continue
        text = Path(file.abs_src_path or "").read_text()
        page = _notebook(text) if kind == "ipynb" else _recipe(Path(name).name, text)
        files.append(File.generated(config, f"{name}.md", content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to such a file, which a forge shows, lead to its page here."""
    return _LINK.sub(r"\1.md)", markdown)


def _recipe(name: str, text: str) -> str:
    return f"# {name}.py\n\n```python\n{text.rstrip()}\n```\n"


def _notebook(text: str) -> str:
    cells = json.loads(text)["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            png = "".join(data["image/png"]).replace("\n", "")
            yield f"![](data:image/png;base64,{png})"
        else:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
