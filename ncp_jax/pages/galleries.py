"""The page's sections of pictures, from the files of a run; imports no JAX."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from ncp_jax.errors import InputError
from ncp_jax.pages.parts import distance_plots, page, quantities
from ncp_jax.pages.parts.plots import Arrays, Panel

REMEDY = "run main.py on this workdir first, without --stage or with --stage=evaluate"
TEMPERATURE = re.compile(r"base_at_([0-9.]+(?:e[+-][0-9]+)?)\.png")  # of f"{t:g}"


def sections(folder: Path, arrays: Arrays, config: Mapping[str, Any]) -> Iterable[str]:
    """Yields the sections: samples, temperatures, reconstructions, neighbours.

    Args:
      folder: of the samples; what is not in it is left out.
      arrays: that the evaluation left.
      config: the content of `config.json`.

    Raises:
      InputError: a picture cannot be read.
    """
    is_plane = any(name.startswith("points_") for name in arrays)  # drawn elsewhere
    names = quantities.SAMPLERS.items()
    grids = [(folder / f"{name}.png", caption) for name, caption in names]
    figures = [grid_image(path, caption) for path, caption in grids if path.exists()]
    if figures and not is_plane:
        text = "Unselected; the same decoder throughout."
        yield page.section("Samples", text, page.grid(figures))
    found = [(path, TEMPERATURE.fullmatch(path.name)) for path in folder.glob("*.png")]
    tempered = sorted((float(match[1]), path) for path, match in found if match)
    if tempered:
        text = "The base prior with its standard deviation scaled, from the same noise."
        figures = [grid_image(path, f"Temperature {t:g}") for t, path in tempered]
        yield page.section("Temperatures", text, page.grid(figures))
    path = folder / "reconstructions.png"
    if path.exists():
        caption = "Rows alternate: held-out examples, then their reconstructions"
        yield page.section(
            "Reconstructions", "", page.grid([grid_image(path, caption)], "wide")
        )
    path, panels = folder / "neighbours.png", distance_plots.nearest(arrays)
    if path.exists():
        drawn = (*config.get("sample", {}).get("samplers", ()), "base")[0]
        caption = (
            f"Left: draws, {quantities.SAMPLERS.get(drawn, drawn)}; right of each its "
            "nearest training pictures, nearest first"
        )
        figures = [grid_image(path, caption), *map(plot, panels)]
        text = "Are samples copies? Share of each kind nearer than a distance."
        yield page.section("Nearest neighbours", text, page.grid(figures, "pair"))


def plot(panel: Panel) -> str:
    """A plot with its caption."""
    return page.figure(panel.png, "plot", panel.alt, panel.caption)


def grid_image(path: Path, caption: str) -> str:
    """A picture of many small ones with its caption, as HTML."""
    alt = f"Image grid: {caption}."
    try:
        return page.figure(path.read_bytes(), "pixels", alt, caption)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image: {REMEDY}") from None
