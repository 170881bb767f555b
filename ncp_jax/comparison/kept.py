"""What a comparison has measured already, so that one that was stopped goes on."""

import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ncp_jax.records import whole_file
from ncp_jax.training.checkpoint_records import short_hash

Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Numbers by prior, each found again by all that it depends on.

    Attributes:
      folder: of the files; None keeps nothing.
      basis: what all numbers depend on: JSON values.
      contents: what the numbers of one prior depend on besides, by its name: a hash of
        the prior.  One without is measured anew.
    """

    folder: Path | None = None
    basis: Any = None
    contents: Mapping[Any, str] = dataclasses.field(default_factory=dict)

    def on(self, *parts: Any) -> "Kept":
        """Returns the same for numbers that depend on `parts`, JSON values, too."""
        return dataclasses.replace(self, basis=[self.basis, *parts])

    def each(
        self,
        what: str,
        names: Sequence[Name],
        measure: Callable[[Sequence[Name]], Mapping[Name, Any]],
    ) -> dict[Name, Any]:
        """Measures several priors, but those that are kept.

        Args:
          what: is measured; begins the file's name.
          names: of the priors.
          measure: those names that it is given -> JSON values by name.
        """
        if self.folder is None:
            return dict(measure(names))
        path = self.folder / f"{what}-{short_hash(self.basis)}.json"
        kept = _read(path)
        missing = [name for name in names if self.contents.get(name) not in kept]
        found = dict(measure(missing)) if missing else {}
        new = {self.contents[n]: v for n, v in found.items() if n in self.contents}
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole_file.write_json(path, kept | new)
        return {n: found[n] if n in found else kept[self.contents[n]] for n in names}

    def file(
        self, what: str, name: Hashable, suffix: str, make: Callable[[], bytes]
    ) -> bytes:
        """The content of one prior's file, made if that is not kept."""
        content = self.contents.get(name)
        if self.folder is None or content is None:
            return make()
        path = self.folder / f"{what}-{short_hash([self.basis, content])}{suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            whole_file.write(path, make())
        return path.read_bytes()

    def one(self, what: str, name: Hashable, measure: Callable[[], Any]) -> Any:
        """Measures one prior, if that is not kept."""
        return self.each(what, [name], lambda _: {name: measure()})[name]


NOTHING = Kept()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # not there, or not to be read: all is measured
    return found if isinstance(found, dict) else {}
