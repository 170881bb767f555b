"""One self-contained HTML page about several runs, side by side; imports no JAX."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.pages import galleries, run_page, stage_settings
from ncp_jax.pages.parts import page, quantities

Run = tuple[Mapping[str, Any], Mapping[str, Any]]  # config.json, results.json

LEAD = """<p>Runs side by side: value ± half a 95 % interval, and n. A number without
an interval is not printed.</p>
"""


def write(workdirs: Sequence[str | Path], folder: str | Path) -> Path:
    """Writes `folder/report/comparison.html` from the artefacts of several runs.

    Args:
      workdirs: two runs or more, each of them evaluated; they lend their names.
      folder: where the page goes; made if missing.

    Returns:
      Path of the page.

    Raises:
      InputError: there are fewer than two, or one was not evaluated.
    """
    paths = [Path(workdir) for workdir in workdirs]
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise InputError(
            "config.report.workdirs takes two different workdirs or more, divided by "
            f"commas; got {[str(path) for path in paths]}"
        )
    runs = {str(path): _evaluated(path) for path in paths}
    html = page.document(
        "NCP-VAE: runs side by side",
        [
            LEAD,
            page.remarks(_remarks(runs)),
            _measures(runs),
            _differences(runs),
            *_samples(paths),
        ],
    )
    return run_page.replace_page(Path(folder) / "report" / "comparison.html", html)


def _evaluated(path: Path) -> Run:
    """The records of a run, which has numbers to compare."""
    config, results = run_page.read_run(path)
    if "evaluate" not in results.get("run", {}).get("stages", {}):
        raise InputError(
            f"config.report.workdirs: {path} has not been evaluated: run "
            f"--stage=evaluate with --workdir={path} first"
        )
    return config, results


def _remarks(runs: Mapping[str, Run]) -> Iterator[str]:
    for name, run in runs.items():
        yield from (f"{name}: {line}" for line in stage_settings.remarks(*run))


def _measures(runs: Mapping[str, Run]) -> str:
    """A row per metric, a column per run."""
    found: dict[tuple[str, int | None], dict[str, quantities.Quantity]] = {}
    for name, (_, results) in runs.items():
        for q in quantities.printable(results):
            found.setdefault((q.name, q.group), {})[name] = q
    rows = []
    for (metric, group), of_run in found.items():
        first = next(iter(of_run.values()))
        label = first.meaning.label + (f", group {group}" if group is not None else "")
        cells = "".join(_cell(of_run.get(name)) for name in runs)
        rows.append(
            f"<tr><td>{page.escape(label)} ({page.escape(first.unit or 'no unit')})"
            f"<small><code>{page.escape(metric)}</code></small></td>{cells}</tr>\n"
        )
    return page.section("Numbers", "", _table(runs, "Quantity", rows))


def _cell(q: quantities.Quantity | None) -> str:
    if q is None:
        return "<td></td>"
    return f"<td>{q.value} {q.interval}<small>n = {q.n}</small></td>"


def _differences(runs: Mapping[str, Run]) -> str:
    """The settings that are not the same in all runs."""
    flat = {name: stage_settings.flat(*run) for name, run in runs.items()}
    fields = dict.fromkeys(field for settings in flat.values() for field in settings)
    rows = []
    for field in fields:
        values = [settings.get(field, "") for settings in flat.values()]
        if any(value != values[0] for value in values):
            cells = "".join(f"<td>{page.escape(value)}</td>" for value in values)
            rows.append(f"<tr><td><code>{page.escape(field)}</code></td>{cells}</tr>\n")
    note = "" if rows else "There are none."
    body = _table(runs, "Setting", rows) if rows else ""
    return page.section("Settings that differ", note, body)


def _samples(paths: Sequence[Path]) -> Iterator[str]:
    """The same sampler's pictures of every run in one row."""
    for sampler, caption in quantities.SAMPLERS.items():
        files = {path: path / "samples" / f"{sampler}.png" for path in paths}
        figures = [
            galleries.grid_image(file, str(path))
            for path, file in files.items()
            if file.exists()
        ]
        if figures:
            yield page.section(caption, "", page.grid(figures))


def _table(runs: Mapping[str, Run], corner: str, rows: Sequence[str]) -> str:
    return page.table(page.head(corner, runs) + "".join(rows))
