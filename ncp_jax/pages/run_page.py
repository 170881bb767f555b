"""One self-contained HTML page about one run: numbers, pictures, settings.

Reads only files below the run's workdir, so it can be made again at any time and
anywhere; imports no JAX.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncp_jax.errors import InputError
from ncp_jax.nested import flatten
from ncp_jax.pages import galleries, stage_settings, summary, tables
from ncp_jax.pages.galleries import REMEDY
from ncp_jax.pages.parts import (
    distance_plots,
    figure_arrays,
    group_curves,
    group_plots,
    page,
    plots,
    quantities,
    signal_plots,
)
from ncp_jax.records import array_files, run_records, whole_file

PRIORS = """ under two priors: its own base prior p(z), and the
noise contrastive prior p<sub>NCP</sub>(z) = r(z) p(z) / Z"""
OF_NCP = "NCP by "  # what the names of its samplers begin with
BESIDE = ' <a href="priors.html">Priors fitted to it, side by side</a>.'
RESOLUTION = 1e-5  # nats; a smaller gain is float32's rounding, as where r = 1
FIGURES = (  # heading, what to look for, panels
    (
        "Latent space",
        "Where posterior draws lie and where each prior puts its mass, on shared axes. "
        "Each density is scaled to its own maximum.",
        plots.plane,
    ),
    ("Data space", "Data beside decoded draws, on shared axes.", plots.points),
    (
        "Log-ratio",
        "log r on draws from the posterior q and from the base prior p: the farther "
        "apart, the worse the base prior fits. "
        f"Of more than {group_plots.MAX_GROUPS} groups, {group_plots.MAX_GROUPS} are "
        "drawn.",
        group_plots.log_ratios,
    ),
    (
        "Calibration",
        "Held-out draws by the discriminator's D, in bins of equally many: on the "
        "diagonal, log r can be taken at its word. Bars are 95 % binomial intervals.",
        group_plots.reliability,
    ),
    (
        "Overlap of q and p",
        "The smaller the loss, the farther apart q and p, and the fewer proposals of "
        "SIR count.",
        group_plots.overlap,
    ),
    (
        "Signal directions",
        "How far the posterior mean moves along each direction of a group, the prior's "
        "variance being 1: what lies above the dashed floor is signal, what lies left "
        "of the line is what the discriminator reads, and points that are still high "
        "right of the line ask for a larger ncp.directions.cap or share.",
        signal_plots.spectra,
    ),
    (
        "Audit: is there a hole?",
        "How well pictures of z from q are told from those whose first j groups are "
        "from q and the others from p. Where this lies above zero and the NCE losses "
        "of the groups from j on are near 2 log 2 = 1.386, the classifiers of z are "
        "blind: there is a hole, and stage 2 has not found it.",
        distance_plots.audit,
    ),
    ("Normaliser", "The estimate of log Z as its draws grow.", plots.log_z),
    ("Langevin", "A slope at the end means too few steps.", plots.langevin),
)


def write(workdir: str | Path) -> Path:
    """Writes `workdir/report/index.html` from the artefacts of a run.

    Sections whose input is absent are left out.  The page is replaced in one step: a
    reader never sees half of it.

    Args:
      workdir: folder of the run; `config.json` and `results.json` must exist.

    Returns:
      Path of the page.

    Raises:
      InputError: a needed file is missing, or a present one cannot be read.
    """
    workdir = Path(workdir)
    config, results = read_run(workdir)
    run, metrics = results.get("run", {}), results.get("metrics", {})
    stages = run.get("stages", {})
    environments = {name: stages[name].get("environment", {}) for name in stages}
    measured = stage_settings.of("evaluate", config, results)
    data_name = config.get("data", {}).get("name", workdir.resolve().name)
    title = f"NCP-VAE on {data_name}"
    arrays = _arrays(workdir / "evaluation" / "arrays.npz")
    kinds = ("scores", "audit", "neighbours")
    notes = [str(arrays.get(f"note_{kind}", "")) for kind in kinds]
    html = page.document(
        title,
        [
            _lead(stages, (workdir / "report" / "priors.html").exists()),
            _headline(results, str(arrays.get("note_likelihood", ""))),
            _byline(run, environments.values()),
            page.remarks(stage_settings.remarks(config, results)),
            summary.measures(metrics, measured, notes),
            *galleries.sections(workdir / "samples", arrays, measured),
            tables.numbers(results),
            tables.per_group(results),
            summary.mmd(metrics, arrays, str(arrays.get("note_mmd", ""))),
            *_figures(workdir, arrays, config),
            _settings(
                **stage_settings.tables(config, results), Environment=environments
            ),
        ],
    )
    return replace_page(workdir / "report" / "index.html", html)


def read_run(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the contents of `config.json` and `results.json`.

    Raises:
      InputError: one is missing, or not one of ours.
    """
    config = run_records.read_config(workdir / "config.json")
    results = run_records.read_results(workdir / "results.json")
    for name, content in (("config.json", config), ("results.json", results)):
        if content is None:
            raise InputError(f"the report needs {workdir / name}: {REMEDY}")
    return config or {}, results or {}


def replace_page(path: Path, html: str) -> Path:
    """Writes a page in one step and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of a file that is no Unicode is shown with its bytes.
    whole_file.write(path, html.encode(errors="backslashreplace"))
    return path


def summary_table(results: Mapping[str, Any]) -> str:
    """The metrics as plain text, for the terminal at the end of a run.

    Args:
      results: the content of `results.json`.

    Returns:
      Lines of name, value, ± 1.96 stderr, n and unit, in the order of the page.
    """
    printable = quantities.printable(results)
    whole = [q for q in printable if q.group is None]
    rows = [("metric", "value", "± 1.96 stderr", "n", "unit")]
    rows += [(q.name, q.value, q.interval, q.n, q.unit) for q in whole]
    a, b, c, d, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{name:{a}}  {value:>{b}} {half:{c}}  {n:>{d}}  {unit}".rstrip()
        for name, value, half, n, unit in rows
    ]
    if len(printable) > len(whole):
        lines.append(f"({len(printable) - len(whole)} more per group: results.json)")
    if hidden := quantities.without_interval(results):
        lines.append(f"(too few for an interval, so in results.json: {hidden})")
    return "\n".join(lines)


def _lead(stages: Mapping[str, Any], has_comparison: bool) -> str:
    """What the page is about: one VAE, and as much of stage 2 as the run has had.

    Args:
      stages: their records; without any the page is of an older run, of both stages.
      has_comparison: of priors, on a page beside this one.
    """
    text = "One frozen VAE"
    if not stages or stages.keys() & {"ncp", "sample"}:
        sampled = stages.get("sample", {}).get("config", {}).get("sample", {})
        names = (quantities.SAMPLERS.get(n, "") for n in sampled.get("samplers", ()))
        by = [f"by {n.removeprefix(OF_NCP)}" for n in names if n.startswith(OF_NCP)]
        text += PRIORS + (f", drawn from {' and '.join(by)}" if by else "")
    return f"<p>{text}.{BESIDE if has_comparison else ''}</p>\n"


def _headline(results: Mapping[str, Any], why_none: str = "") -> str:
    """The gain in one sentence, which claims no more than its interval allows.

    Args:
      results: the content of `results.json`.
      why_none: why there can be no gain, in a sentence; "" where there can.
    """
    if why_none:
        return f'<p class="headline">{page.escape(why_none)}</p>\n'
    metrics = results.get("metrics", {})
    gain = metrics.get("gain_nats")
    if not gain or gain.get("value") is None or gain.get("stderr") is None:
        return _why_no_gain(metrics)
    value, half = gain["value"], quantities.Z95 * gain["stderr"]
    if not math.isfinite(value + half):
        return ""
    if max(abs(value), half) < RESOLUTION:
        return (
            '<p class="headline">The NCP prior is the base prior: no likelihood '
            f"changes by as much as {RESOLUTION:g} nats.</p>\n"
        )
    on = f"on {gain['n']:,} held-out examples" if gain.get("n") else "on held-out data"
    if value > half:
        claim = "gains {} nats over the base prior {}."
    elif value < -half:
        claim, gain = "loses {} nats to the base prior {}.", {**gain, "value": -value}
    else:
        claim = "is level with the base prior: a gain of {} nats {}."
    claim = claim.format(" ".join(quantities.estimate(gain)), on)
    return f'<p class="headline">{page.escape("The NCP prior " + claim)}</p>\n'


def _why_no_gain(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence where log Z was measured and is not known."""
    log_z, fraction = metrics.get("log_z", {}), metrics.get("ess_fraction", {})
    n, value = log_z.get("n"), fraction.get("value")
    if log_z.get("stderr") is not None or not n or value is None:
        return ""
    return (
        '<p class="headline">No gain is known: log Z rests on '
        f"{value * n:,.3g} effective draws of {n:,}, too few for an interval.</p>\n"
    )


def _byline(run: Mapping[str, Any], environments: Iterable[Mapping[str, Any]]) -> str:
    """Seed, times, and every device and commit that a stage ran on."""
    environments = list(environments)
    facts = [f"seed {run['seed']}"] if "seed" in run else []
    facts += sorted({str(e["device"]) for e in environments if "device" in e})
    seconds = run.get("wall_seconds") or {}
    facts += [f"{stage} {s:,.0f} s" for stage, s in seconds.items()]
    commits = {str(e["git_commit"])[:10] for e in environments if "git_commit" in e}
    facts += [f"commit {commit}" for commit in sorted(commits)]
    line = page.escape(" · ".join(facts))
    return f'<p class="byline soft">{line}</p>\n' if facts else ""


def _figures(
    workdir: Path, arrays: plots.Arrays, config: Mapping[str, Any]
) -> Iterable[str]:
    """Sections of plots, training last."""
    for heading, text, draw in FIGURES:
        panels = draw(arrays)
        if panels:
            yield page.section(heading, text, _plots(panels))
    gains = group_curves.read(workdir / "metrics.jsonl", "gain")
    if panels := group_plots.gains(gains):
        text = (
            "E_q[log r] - log E_p[r] of each group as stage 2 trains: what its ratio "
            "adds in likelihood. Where the held-out curve falls and the other rises, "
            "the discriminator learns its training examples by heart."
        )
        yield page.section("Gain of the groups", text, _plots(panels))
    curves, weight = read_losses(workdir / "metrics.jsonl"), _negative_weight(config)
    panels = [
        panel
        for stage in curves
        for panel in plots.loss(stage, curves[stage], weight, _unit(stage, config))
    ]
    if panels:
        text = "The first steps may lie above the frame."
        yield page.section("Training", text, _plots(panels))


def _unit(stage: str, config: Mapping[str, Any]) -> str:
    """That of a stage's loss; "" of a model that no evidence bound trains."""
    section = config.get("vae")
    model = section.get("model") if isinstance(section, Mapping) else None
    kind = model.get("kind", "vae") if isinstance(model, Mapping) else "vae"
    return "" if stage == "vae" and kind != "vae" else "nats"


def _negative_weight(config: Mapping[str, Any]) -> float:
    """M of the NCE loss; runs from before the setting have the paper's."""
    section = config.get("ncp")
    value = section.get("negative_weight", 1.0) if isinstance(section, Mapping) else 1.0
    return value if isinstance(value, int | float) and value >= 1.0 else 1.0


def read_losses(path: Path) -> dict[str, dict[str, NDArray[np.float64]]]:
    """{stage: {split: [n, 2] step and loss}}, the mean over the groups."""
    return {
        stage: {
            split: np.array([(step, np.mean(loss)) for step, loss in points.items()])
            for split, points in splits.items()
        }
        for stage, splits in group_curves.by_step(path, "loss").items()
    }


def _settings(**tables: Mapping[str, Any]) -> str:
    body = ""
    for heading, table in tables.items():
        if values := page.named_values(flatten(table)):
            body += f"<details><summary>{heading}</summary>{values}</details>\n"
    return page.section("Settings", "", body) if body else ""


def _plots(panels: list[plots.Panel]) -> str:
    figures = [galleries.plot(panel) for panel in panels]
    return page.grid(figures, {1: "wide", 2: "pair"}.get(len(figures), ""))


def _arrays(path: Path) -> plots.Arrays:
    if not path.exists():
        return {}
    arrays = array_files.read(path, REMEDY)
    figure_arrays.check(path, REMEDY, arrays)
    return arrays
