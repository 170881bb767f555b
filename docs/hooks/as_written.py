"""Docstrings show as they are written: [B, ...] is a shape, not a link, z_<k no tag."""

import re
from typing import Any

import griffe

_KEPT = re.compile(r"(`[^`]*`|^ *\*+\w+:)", re.MULTILINE)  # code, and names as *args:
_MARKS = str.maketrans({"*": r"\*", "[": r"\[", "<": "&lt;"})


class AsWritten(griffe.Extension):
    """Escapes what Markdown would take for marks, outside of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one module, class, function or attribute."""
        if obj.docstring:
            parts = _KEPT.split(obj.docstring.value)
            parts[::2] = [part.translate(_MARKS) for part in parts[::2]]
            obj.docstring.value = "".join(parts)
