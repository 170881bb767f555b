"""One self-contained HTML page that sets priors side by side; imports no JAX."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ncp_jax.errors import InputError
from ncp_jax.pages import galleries, run_page, stage_settings
from ncp_jax.pages.parts import page, plots, quantities
from ncp_jax.records import run_records

Metrics = Mapping[str, Mapping[str, Any]]
Prior = Mapping[str, Any]  # density, metrics, spreads, of_fits

KEY = "priors"  # of results.json
FLOOR = "Posterior draws"
DENSITIES = {  # what they are, and their colour
    "exact": ("the density itself", plots.BASE),
    "up to log Z": ("all but log Z, whose error is in the interval", plots.NCP),
    "lower bound": ("an unbiased estimate: the gain is at least this", plots.LANGEVIN),
    "none": ("no density, samples only", plots.MUTED),
}
LIKELIHOODS = {
    "gain": ("Gain (nats)", "over the base prior, on the same examples and draws"),
    "gain_valid": ("Gain of encodings (nats)", "validation: to choose settings by"),
    "gain_train": ("The same of training", "by how much it is higher: over-fitting"),
    "nll": ("NLL (nats)", "bound on -log p(x); lower is better"),
    "log_z": ("log Z (nats)", "where the density is known but for it"),
}
GAINS = ("gain", "gain_valid", "gain_train")
COSTS = {
    "fit_seconds": ("Fit", "seconds, compilation included"),
    "sampling_seconds": ("1,000 draws", "seconds of z, decoding left out"),
    "num_bytes": ("Memory", "of these draws"),
    "num_parameters": ("Numbers", "that the prior holds"),
}


def write(folder: str | Path) -> Path:
    """Writes `folder/report/priors.html` from results.json and priors/*.png.

    Args:
      folder: of the run.

    Returns:
      Path of the page.

    Raises:
      InputError: nothing was compared in this folder.
    """
    folder = Path(folder)
    results = _results(folder)
    if not isinstance(results.get(KEY), Mapping):
        raise InputError(
            f"{folder / 'results.json'} holds no comparison of priors: run "
            "--stage=compare on this workdir first"
        )
    html = page.document(
        "Priors side by side",
        [
            _lead(results[KEY], results.get("run", {})),
            page.remarks(_remarks(results)),
            *_sections(results[KEY]),
            *_samples(folder / "priors", ranked(results[KEY]["priors"])),
            _settings(results[KEY]["about"]),
        ],
    )
    return run_page.replace_page(folder / "report" / "priors.html", html)


def is_compared(folder: str | Path) -> bool:
    """Whether a run has compared priors."""
    return KEY in _results(Path(folder))


def _results(folder: Path) -> dict[str, Any]:
    return run_records.read_results(folder / "results.json") or {}


def ranked(priors: Mapping[str, Prior]) -> list[str]:
    """Their names in the order of `ranked_by`, those without that measure last."""
    measure = ranked_by(priors)
    sign = -1.0 if measure == "gain" else 1.0

    def rank(name: str) -> float:
        found = priors[name]["metrics"].get(measure) or {}
        value = found.get("value")
        return sign * value if value is not None else math.inf

    return sorted(priors, key=rank)


def ranked_by(priors: Mapping[str, Prior]) -> str:
    """The highest gain is first; without gains, the lowest distance of the draws."""
    for measure in ("gain", *quantities.FAMILIES):
        if any(measure in each["metrics"] for each in priors.values()):
            return measure
    return "gain"


def markdown(compared: Mapping[str, Any], *names: str) -> str:
    """The comparison as a table for the docs, in the order of the page.

    Args:
      compared: the part `priors` of results.json.
      *names: of the measures that are columns; the floor has a row if it has any.
    """
    (head, *rows), floor = _cells(compared["priors"], names), compared["floor"]
    lines = [head, ["---"] * len(head)]
    lines += [[f"`{title}`", *cells] for title, *cells in rows]
    of_floor = [_text({"metrics": floor}, name) for name in names]
    if any(of_floor):
        lines.append([FLOOR.lower(), "", *of_floor])
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def plain(compared: Mapping[str, Any]) -> str:
    """The comparison as a short table for a terminal, in the order of the page.

    Args:
      compared: the part `priors` of results.json.
    """
    priors = compared["priors"]
    names = ("gain_valid", ranked_by(priors), "fit_seconds", "sampling_seconds")
    found = [n for n in names if any(n in each["metrics"] for each in priors.values())]
    lines = _cells(priors, found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines
    )


def _cells(priors: Mapping[str, Prior], names: Sequence[str]) -> list[list[str]]:
    """A line of headings, then one for each prior in the order of the page."""
    labels = LIKELIHOODS | quantities.FAMILIES | COSTS
    lines = [["prior", "density", *(labels[name][0] for name in names)]]
    for title in ranked(priors):
        each = priors[title]
        lines.append([title, each["density"], *(_text(each, n) for n in names)])
    return lines


def _lead(compared: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    record = run.get("stages", {}).get("compare", {})
    there = record.get("environment", run)  # run: of the last call, whatever it did
    facts = [there[name] for name in ("device", "git_commit") if name in there]
    byline = page.escape(" · ".join(map(str, facts)))
    return (
        f"<p>{page.escape(_of_what(compared))}</p>\n"
        + (f'<p class="byline soft">{byline}</p>\n' if facts else "")
        + "<ul>"
        + "".join(
            f"<li><b>{page.escape(name)}</b>: {page.escape(text)}</li>\n"
            for name, (text, _) in DENSITIES.items()
        )
        + "</ul>\n"
    )


def _remarks(results: Mapping[str, Any]) -> Iterator[str]:
    """Where pictures, numbers and stage 1 are not of one call."""
    record = results.get("run", {}).get("stages", {}).get("compare")
    if record is not None and "fingerprint" not in record:  # none of `ncp_jax.compare`
        yield (
            "Stage compare was begun again and has not ended: the numbers are of the "
            "call before, and pictures may be of the later one. Run --stage=compare."
        )
    if line := stage_settings.of_earlier_weights(results, "compare"):
        yield line


def _of_what(compared: Mapping[str, Any]) -> str:
    """What the numbers are of, in words."""
    about, found = compared["about"], compared["nll_base"]
    if found is None:  # z is a function of x
        return (
            "Every prior was fitted to the encodings of one frozen model and measured "
            f"by its draws. {about.get('likelihoods', 'There are no likelihoods.')}"
        )
    base = f"{found['value']:.4g}"  # of one example
    if found.get("stderr") is not None:
        base = " ".join(quantities.estimate(found))
    split = about.get("split", "held-out")
    return (
        "Every prior was fitted to the encodings of one frozen VAE and measured on "
        f"the same {about['num_examples']:,} {split} examples. Under its own prior "
        f"their NLL is {base} nats."
    )


def _sections(compared: Mapping[str, Any]) -> Iterable[str]:
    priors, floor, about = compared["priors"], compared["floor"], compared["about"]
    names, measure = ranked(priors), ranked_by(priors)
    first = "Highest gain first."
    if measure != "gain":
        first = f"Lowest {quantities.FAMILIES[measure][0]} first."
    note = (
        f"{first} Value ± half a 95 % interval over "
        "examples or draws; below it the standard deviation over "
        f"{about['num_fits']} fits."
    )
    if about["num_fits"] == 1:
        note = f"{first} Value ± half a 95 % interval; one fit of each."
    likelihoods = _table(priors, names, {**LIKELIHOODS, **COSTS})
    title = "Cost" if compared["nll_base"] is None else "Likelihood and cost"
    yield page.section(title, note, likelihoods + _scatter(priors))
    measures = {
        family: meaning
        for family, meaning in quantities.FAMILIES.items()
        if any(family in each["metrics"] for each in priors.values())
        and family != "mmd_p"
    }
    if measures:
        text = (
            f"{about['num_samples']:,} draws of each prior, decoded. {FLOOR}: decoded "
            "encodings of training examples, which no prior can beat."
        )
        with_floor = {**priors, FLOOR: {"density": "", "metrics": floor, "spreads": {}}}
        table = _table(with_floor, [*names, FLOOR], measures)
        yield page.section("Samples", text, table + page.notes([about.get("note", "")]))


def _table(
    priors: Mapping[str, Prior],
    names: Sequence[str],
    columns: Mapping[str, tuple[str, str]],
) -> str:
    """A row per prior, a column per measure that any of them has."""
    found = {
        key: label
        for key, label in columns.items()
        if any(key in priors[name]["metrics"] for name in names)
    }
    head = "".join(
        f"<th>{page.escape(label)}<br><small>{page.escape(text)}</small></th>"
        for label, text in found.values()
    )
    labels, body = {key: label for key, (label, _) in found.items()}, ""
    for rank, name in enumerate(names, 1):
        each = priors[name]
        title = name if name == FLOOR else f"{rank}. {name}"
        cells = page.labelled_cells(labels, {key: _cell(each, key) for key in found})
        body += (
            f"<tr><td>{page.escape(title)}<small>{page.escape(each['density'])}"
            f"</small></td>{cells}</tr>\n"
        )
    return page.table(f'<tr class="head"><th>Prior</th>{head}</tr>\n{body}', "summary")


def _cell(prior: Prior, name: str) -> str:
    text, _, spread = _text(prior, name).partition(" (")
    return page.escape(text) + (f"<small>{spread[:-1]}</small>" if spread else "")


def _text(prior: Prior, name: str) -> str:
    """A measure in one line: value and half an interval, (sd over the fits)."""
    metric = prior["metrics"].get(name)
    if metric is None or metric.get("value") is None:
        return ""
    if name in COSTS:
        return _cost(name, metric["value"])
    if metric.get("stderr") is None:
        return "no interval" if name in LIKELIHOODS else ""
    is_bound = name in GAINS and prior["density"] == "lower bound"
    text = ("≥ " if is_bound else "") + " ".join(quantities.estimate(metric))
    spread = prior.get("spreads", {}).get(name)
    return text + (f" (sd {spread:.2g})" if spread is not None else "")


def _cost(name: str, value: float) -> str:
    if name == "num_bytes":
        return f"{value / 1e6:,.1f} MB"
    if name == "num_parameters":
        return f"{value:,.0f}"
    if value >= 1_000:
        return f"{value:,.0f} s"
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


@matplotlib.rc_context(plots.STYLE)
def _scatter(priors: Mapping[str, Prior]) -> str:
    """Gain against the seconds of 1,000 draws; "" without gains."""
    axes, labels = plots.new_axes(6.4, 4.0), set()
    for rank, name in enumerate(ranked(priors), 1):
        each = priors[name]
        gain = each["metrics"].get("gain")
        seconds = each["metrics"].get("sampling_seconds")
        if not gain or not seconds or gain.get("stderr") is None:
            continue
        kind = each["density"]
        x, y = seconds["value"], gain["value"]
        axes.errorbar(
            [x],
            [y],
            yerr=[quantities.Z95 * gain["stderr"]],
            fmt="o",
            color=DENSITIES[kind][1],
            label=None if kind in labels else kind,
        )
        axes.annotate(str(rank), (x, y), xytext=(5, 3), textcoords="offset points")
        labels.add(kind)
    if not labels:
        return ""
    axes.set(xlabel="seconds per 1,000 draws", ylabel="gain (nats)", xscale="log")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(DENSITIES))
    caption = (
        "Gain against what draws cost; numbers as in the table, bars are 95 % intervals"
    )
    panel = page.figure(plots.to_png(axes), "plot", caption, caption)
    return page.grid([panel], "wide")


def _samples(folder: Path, names: Sequence[str]) -> Iterable[str]:
    figures = [
        galleries.grid_image(folder / f"{name}.png", name)
        for name in names
        if (folder / f"{name}.png").exists()
    ]
    if figures:
        text = "Unselected, of the first fit of each; the same decoder throughout."
        yield page.section("Pictures", text, page.grid(figures))


def _settings(about: Mapping[str, Any]) -> str:
    fits = about.get("fitted_by", {})  # earlier results have none
    left_out = ("note", "fitted_by")
    values = ((name, value) for name, value in about.items() if name not in left_out)
    measured = page.section("How it was measured", "", page.named_values(values))
    if not fits:
        return measured
    return measured + page.section("Settings", "", page.named_values(fits.items()))
