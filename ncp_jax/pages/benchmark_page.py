"""The benchmark's rows as lines of a terminal and as one HTML page; imports no JAX."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from ncp_jax.pages.parts import page, plots, scaling_plots

Row = Mapping[str, Any]
OURS, THEIRS = plots.NCP, plots.MUTED
NAMES = {
    "sir": "SIR",
    "langevin": "Langevin",
    "asir": "adaptive SIR",
    "isir": "iterated SIR",
    "mala": "MALA",
    "sirmala": "SIR, then MALA",
    "hmc": "HMC",
    "nuts": "NUTS",
    "stage_two": "stage 2's update",
}
MAX_OFF = 5.0  # standard errors: beyond it a chain is not at the target
ALONE = {  # the other versions of one group's sampler
    "at_once": "all proposals at once",
    "loop_of_compiled_steps": "Python loop, compiled steps",
    "loop_of_eager_steps": "Python loop, eager steps",
    "torch_eager": "PyTorch, eager",
    "torch_compile": "PyTorch, compiled",
    "torch_channels_last": "PyTorch, compiled, channels last",
}


def line(row: Row) -> str:
    """One row in one line."""
    return ", ".join(f"{name} {value}" for name, value in _cells(row) if value)


def advice(found: Mapping[str, Any]) -> list[str]:
    """What to draw each group with, and what bfloat16 does, a line per group."""
    lines = []
    for row in found["recommendations"]:
        rate = row["mala_acceptance"]
        mala = "" if rate is None else f", MALA accepts {rate:.2f}"
        lines.append(
            f"group {row['group']}: ESS {row['ess']:.4g} of {row['num_proposals']:,}"
            f"{mala}: {row['sampler']}"
        )
    lines += [
        f"group {row['group']} in bfloat16: |change of log r| at most "
        f"{row['max_difference']:.2g} (log r deviates by "
        f"{row['deviation_of_log_r']:.2g}), ESS {row['ess_float32']:.4g} -> "
        f"{row['ess_bfloat16']:.4g}"
        for row in found["bfloat16"]
    ]
    return lines


def markdown(found: Mapping[str, Any], *omitted: str) -> str:
    """The rows of one part as a table for the docs, of the largest batch alone.

    Args:
      found: one part of benchmark.json.
      *omitted: columns to leave out.
    """
    rows = found["rows"]
    most = max((row.get("num_images", 0) for row in rows), default=0)
    cells = [dict(_cells(r)) for r in rows if r.get("num_images", most) == most]
    columns = list(dict.fromkeys(c for row in cells for c in row if c not in omitted))
    lines = [columns, ["---"] * len(columns)]
    lines += [[row.get(c, "").replace("|", r"\|") for c in columns] for row in cells]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def html(results: Mapping[str, Any]) -> str:
    """The whole page, from the content of benchmark.json."""
    environment = results["environment"]
    facts = [
        f"{environment.get('num_devices', 1)} x {environment.get('device', '?')}",
        f"{environment.get('num_cpus', '?')} CPUs",
        environment["date"],
        *(
            f"{name} {environment[name]}"
            for name in ("jax", "git_commit")
            if name in environment
        ),
    ]
    byline = page.escape(" · ".join(facts))
    return page.document(
        f"Benchmark: {results['data']}",
        [f'<p class="byline soft">{byline}</p>\n', *_sections(results)],
    )


def _sections(results: Mapping[str, Any]) -> Iterable[str]:
    if found := results.get("samplers"):
        ceiling = found["ceiling_flops_per_second"] / 1e9
        note = (
            f"Seconds of a whole batch, decoding included; {found['weights']} weights. "
            f"The ceiling: a large matrix product in {found['dtype']}, {ceiling:,.0f} "
            "GFLOP/s. The plain version, as a multiple of ours: all proposals at once, "
            "Python loops over groups and steps, every part compiled."
        )
        yield page.section(
            "Samplers",
            note,
            _table(found["rows"])
            + _curves(found["rows"])
            + _grid(scaling_plots.roofline(found, NAMES), "wide"),
        )
        lines = "".join(f"<li>{page.escape(text)}</li>\n" for text in advice(found))
        note = (
            "SIR where the proposals are worth ten independent draws or more, with as "
            "many as are worth ten; elsewhere SIR to begin with and MALA to go on."
        )
        yield page.section("Which sampler for which group", note, f"<ul>{lines}</ul>")
    if found := results.get("alone"):
        shape = "x".join(map(str, found["latent_shape"]))
        note = (
            f"One group of {shape}, {found['num_chains']} chains, no VAE and no "
            "context: seconds, and other versions as multiples of ours: the median "
            "over rounds in which all versions take turns, and the quartiles."
        )
        yield page.section("One group alone", note, _table(found["rows"]))
    if found := results.get("chains"):
        yield page.section("Chains", _chains_note(found), _table(found["rows"]))
    if found := results.get("stage_two"):
        note = (
            "One update of K stacked discriminators; the cost of a group is a step's "
            "over K times that of a step of one."
        )
        yield page.section(
            "Stage 2", note, _table(found["rows"]) + _steps(found["rows"])
        )
    if found := results.get("scaling"):
        shape = "x".join(map(str, found["latent_shape"]))
        note = (
            f"One group of {shape}, no VAE and no context, random weights: seconds as "
            "one size grows and the others stay. The slope is that of log seconds "
            "against log size, in the table from the size before, in the plots by "
            "least squares over the upper half of the sizes: 1 is linear, and against "
            "devices -1 is all that can be had. FLOP per byte counts what XLA moves "
            "between operations; the roof is what the machine allows for so many."
        )
        panels = scaling_plots.curves(found, NAMES)
        body = _grid(panels, "pair")
        body += _grid(scaling_plots.roofline(found, NAMES), "wide")
        yield page.section("How costs grow", note, body + _table(found["rows"]))
    if found := results.get("training"):
        note = "Stage 1's whole loop against one bare scan over the same updates."
        yield page.section("Training loop", note, _table(found["rows"]))


def _table(rows: Sequence[Row]) -> str:
    cells = [dict(_cells(row)) for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    head = "".join(f'<th class="right">{page.escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="right">{page.escape(row.get(c, ""))}</td>' for c in columns
        )
        + "</tr>\n"
        for row in cells
    )
    return page.table(f"<tr>{head}</tr>\n{body}")


def _cells(row: Row) -> list[tuple[str, str]]:
    """(column, text) of one row, whatever part it is of."""
    if "loop_over_bare_scan" in row:
        ratio = row["loop_over_bare_scan"]
        low, high = ratio["min"], ratio["max"]
        return [
            ("loop / bare scan", f"{ratio['median']:.3f}"),
            ("lowest to highest", f"{low:.3f} to {high:.3f}"),
            ("pairs", str(ratio["n"])),
        ]
    if "curve" in row:
        return _scaling_cells(row)
    if "num_groups" in row:
        return _stage_two_cells(row)
    if "means_off" in row:
        return _chain_cells(row)
    cells = [("sampler", NAMES[row["sampler"]]), ("M or steps", f"{row['size']:,}")]
    if "num_images" not in row:
        others = [(t, _multiple(row, name)) for name, t in ALONE.items() if name in row]
        return [*cells, ("ours", _seconds(row["seconds"])), *others]
    cells.append(("images", str(row["num_images"])))
    if "skipped" in row:
        return [*cells, ("seconds", f"not run: {row['skipped']}")]
    low, high = _seconds(row["min_seconds"]), _seconds(row["max_seconds"])
    plain = row.get("plain") or {}
    if "weighed" in row:  # of M at most, by a sampler that ends by itself
        cells.append(("weighed", f"{row['weighed']:,.0f}"))
    return [
        *cells,
        ("seconds", _seconds(row["seconds"])),
        ("lowest to highest", f"{low} to {high}"),
        ("first call", _seconds(row["first_seconds"])),
        ("memory", _bytes(row["num_bytes"])),
        ("draws/s", f"{row['draws_per_second']:.4g}"),
        ("ESS/s", f"{row['ess_per_second']:.3g}" if "ess_per_second" in row else ""),
        ("GFLOP/s", f"{row['flops_per_second'] / 1e9:.3g}"),
        ("of the ceiling", f"{100 * row['share_of_ceiling']:.2g} %"),
        *_roofline_cells(row),
        ("plain", plain.get("skipped") or (f"{plain['ratio']:.2f} x" if plain else "")),
        (
            "its memory",
            _bytes(plain["num_bytes"]) if "num_bytes" in plain else "",
        ),
    ]


def _multiple(row: Row, name: str) -> str:
    """What another version takes, in units of ours; and its quartiles over rounds."""
    low, median, high = row["quartiles"][name]
    return f"{median:.3g} x ({low:.3g} to {high:.3g})"


def _roofline_cells(row: Row) -> list[tuple[str, str]]:
    if "intensity" not in row:  # of a record from before they were counted
        return []
    return [
        ("FLOP/byte", f"{row['intensity']:.3g}"),
        ("of the bandwidth", f"{100 * row['share_of_bandwidth']:.2g} %"),
        ("of the roofline", f"{100 * row['share_of_roofline']:.2g} %"),
    ]


def _scaling_cells(row: Row) -> list[tuple[str, str]]:
    cells = [
        ("sampler", NAMES[row["sampler"]]),
        ("against", row["curve"]),
        ("size", f"{row['size']:,}"),
    ]
    if "skipped" in row:
        return [*cells, ("seconds", f"not run: {row['skipped']}")]
    low, high = _seconds(row["min_seconds"]), _seconds(row["max_seconds"])
    rate = row.get("flops_per_second")
    return [
        *cells,
        ("seconds", _seconds(row["seconds"])),
        ("lowest to highest", f"{low} to {high}"),
        ("slope", f"{row['slope']:.2f}" if "slope" in row else ""),
        ("GFLOP/s", f"{rate / 1e9:.3g}" if rate else ""),
        *_roofline_cells(row),
    ]


def _stage_two_cells(row: Row) -> list[tuple[str, str]]:
    cells = [
        ("K", str(row["num_groups"])),
        ("devices", str(row["num_devices"])),
        ("steps/s", f"{row['steps_per_second']:.4g}"),
        ("formulation", row["formulation"]),
    ]
    if "map" not in row:
        return cells
    return [
        *cells,
        ("cost of a group, map", f"{row['map']['cost_of_a_group']:.2f}"),
        ("vmap", f"{row['vmap']['cost_of_a_group']:.2f}"),
        (
            "Python loop over groups",
            f"{row['loop_over_groups'] / row['seconds']:.2f} x",
        ),
    ]


def _chains_note(found: Mapping[str, Any]) -> str:
    shape = "x".join(map(str, found["latent_shape"]))
    return (
        f"One group of {shape}, {found['num_chains']} chains from the same points, "
        "after warm-up and compilation. Effective draws are those of the function that "
        "has the fewest, of log r, |z|^2 and coordinates. The means of all of them are "
        "compared with those of weighted proposals: the largest deviation "
        f"is in standard errors, and beyond {MAX_OFF:.0f} the speed does not count. "
        "SIR, then MALA and adaptive SIR start anew at every draw."
    )


def _chain_cells(row: Row) -> list[tuple[str, str]]:
    is_there = row["means_off"] <= MAX_OFF
    rate, warm_up = row["acceptance"], row["warmup_seconds"]
    ratio = row["of_our_mala"]
    return [
        ("sampler", NAMES[row["sampler"]]),
        ("by", row["by"]),
        ("steps", f"{row['num_steps']:,}"),
        ("warm-up", _seconds(warm_up) if warm_up else "none"),
        ("seconds", _seconds(row["seconds"])),
        ("log r per step", f"{row['evaluations']:.3g}"),
        ("accepts", "" if rate is None else f"{rate:.2f}"),
        ("effective draws", f"{row['ess']:,.0f} ({row['slowest']})"),
        ("per second", _with_error(row["effective_per_second"], row["stderr"], ",.0f")),
        ("of our MALA", _with_error(ratio["value"], ratio["stderr"], ".2f") + " x"),
        (
            "means off by",
            f"{row['means_off']:.1f}" + ("" if is_there else ": not the target"),
        ),
    ]


def _with_error(value: float, stderr: float | None, form: str) -> str:
    return f"{value:{form}}" + ("" if stderr is None else f" +- {stderr:{form}}")


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e9:,.1f} GB"


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{1e6 * value:.3g} us"
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


@matplotlib.rc_context(plots.STYLE)
def _curves(rows: Sequence[Row]) -> str:
    """Seconds, bytes and ESS/s of SIR and Langevin against their size."""
    timed = [row for row in rows if "seconds" in row]
    panels = []
    for sampler, xlabel in (("sir", "proposals"), ("langevin", "steps")):
        of_one = [row for row in timed if row["sampler"] == sampler]
        for name, ylabel in (
            ("seconds", "seconds"),
            ("num_bytes", "memory (bytes)"),
            ("ess_per_second", "ESS/s"),
        ):
            axes = plots.new_axes(4.8, 2.8)
            _lines(axes, of_one, name)
            axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
            axes.legend(fontsize=7)
            caption = f"{NAMES[sampler]}: {ylabel} against {xlabel}"
            panels.append(plots.Panel(plots.to_png(axes), caption, caption))
    return _grid(panels)


def _grid(panels: Sequence[plots.Panel], style: str = "") -> str:
    figures = [page.figure(p.png, "plot", p.alt, p.caption) for p in panels]
    return page.grid(figures, style) if figures else ""


def _lines(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """One line per batch size, solid; and dashed for the plain version."""
    for images in sorted({row["num_images"] for row in rows}):
        alpha = 1.0 if images == 1 else 0.5
        ours = [
            (r["size"], r[name])
            for r in rows
            if r["num_images"] == images and name in r
        ]
        plain = [
            (r["size"], r["plain"][name])
            for r in rows
            if r["num_images"] == images and name in (r["plain"] or {})
        ]
        for points, style, colour, label in (
            (ours, "-", OURS, "ours"),
            (plain, "--", THEIRS, "plain"),
        ):
            if points:
                text = f"{label}, {images} image{'s' * (images > 1)}"
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    color=colour,
                    alpha=alpha,
                    marker=".",
                    label=text,
                )


@matplotlib.rc_context(plots.STYLE)
def _steps(rows: Sequence[Row]) -> str:
    """Steps per second of stage 2 against K."""
    axes = plots.new_axes(4.8, 2.8)
    on_one = [row for row in rows if "map" in row]
    for name, colour in (("map", OURS), ("vmap", THEIRS)):
        points = [(row["num_groups"], 1 / row[name]["seconds"]) for row in on_one]
        axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=name)
    axes.set(xlabel="K", ylabel="steps/s", xscale="log", yscale="log")
    axes.legend()
    caption = "Stage 2: steps per second against K, one device"
    return _grid([plots.Panel(plots.to_png(axes), caption, caption)], "wide")
