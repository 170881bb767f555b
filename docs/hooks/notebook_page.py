"""A notebook is a page: its cells, with the outputs that are saved in it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds NAME.md for every NAME.ipynb."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        cells = json.loads(Path(file.abs_src_path or "").read_text())["cells"]
        text = "\n\n".join(part for cell in cells for part in _parts(cell))
        name = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a notebook, which a forge shows, lead to its page here."""
    return markdown.replace(".ipynb)", ".md)")


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            yield f"![](data:image/png;base64,{data['image/png'].strip()})"
        else:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
