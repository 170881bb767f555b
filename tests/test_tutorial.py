"""The tutorial runs from top to bottom, and what is saved in it is what it prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CELLS = [
    cell
    for cell in json.loads((ROOT / "docs/tutorial.ipynb").read_text())["cells"]
    if cell["cell_type"] == "code"
]
RUN = "import sys, matplotlib; matplotlib.use('Agg'); exec(sys.stdin.read())"
NUMBER = re.compile(r"-?\d[\d,.]*")


def _texts(cells):
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            yield "".join(output.get("text", ""))


def _said(text, words):
    """The number that is printed after some words, the last time."""
    return float(re.findall(rf"{words}:?\s+(-?[\d.]+)", text)[-1])


def test_every_cell_was_executed_in_order():
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    pictures = [
        o for c in CELLS for o in c["outputs"] if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 4


@pytest.mark.slow
def test_the_hole_is_there_and_is_repaired():
    code = "\n".join("".join(cell["source"]) for cell in CELLS)
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", RUN],
        input=code,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},  # as a reader
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    saved = "".join(_texts(CELLS))
    assert NUMBER.sub("#", done.stdout).split() == NUMBER.sub("#", saved).split()
    for text in (done.stdout, saved):
        floor = _said(text, "decoded encodings")  # in per cent, as the others
        assert _said(text, "off every mode, base prior") > 60 > 20 * floor
        assert _said(text, "off every mode, SIR") < 2 * floor
        assert _said(text, "off every mode, Langevin") < 3 * floor
        assert _said(text, "gain_nats") > 1.5
