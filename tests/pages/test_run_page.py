"""`run_page.py`: what a run left behind, as one page that needs nothing else."""

import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.pages import run_page
from ncp_jax.pages.parts import plots, quantities
from tests.experiment.test_stages import load
from tests.pages import browser

REPOSITORY = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=x>'


def metric(value, stderr, n=10_000, unit="nats"):
    return {"value": value, "stderr": stderr, "n": n, "unit": unit}


METRICS = {
    "nce_loss": metric(0.9312, 0.0021),
    "elbo_base": metric(-88.912, 0.251),
    "nll_base": metric(84.821, 0.2493),
    "nll_ncp": metric(82.809, 0.2471),
    "gain_nats": metric(2.0123, 0.05102),
    "log_z": metric(-0.0213, 0.0102, n=100_000),
    "jsd": metric(0.2276, 0.00105),
    "sir_ess": metric(412.3, 7.71, n=256, unit="proposals"),
    "off_mode_sir": metric(0.0312, 0.0017, unit=""),
    "nll_point": metric(123.4567, None),
}


class Page(HTMLParser):
    """The page as a browser reads it: tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def save_png(path, height=56, width=84):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)
    Image.fromarray(pixels).save(path)


def save_arrays(workdir, **arrays):
    (workdir / "evaluation").mkdir(exist_ok=True)
    np.savez(workdir / "evaluation" / "arrays.npz", **arrays)


def save_results(workdir, metrics, **run):
    (workdir / "results.json").write_text(json.dumps({"metrics": metrics, "run": run}))


def page_of(workdir):
    html = run_page.write(workdir).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture
def minimal(tmp_path):
    config = {"data": {"name": "mnist"}, "ncp": {"learning_rate": 0.001}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_results(tmp_path, METRICS, seed=7)
    return tmp_path


@pytest.fixture
def full(minimal):
    """A run on images with one latent group, as an evaluation leaves it."""
    rng = np.random.default_rng(0)
    save_results(
        minimal,
        METRICS,
        seed=7,
        wall_seconds={"vae": 3600.4, "ncp": 512.0},
        stages={
            "vae": {"environment": {"device": "NVIDIA H200", "jax": "0.7.2"}},
            "ncp": {"environment": {"device": "cpu", "git_commit": "0123456789abc"}},
        },
    )
    for name in ("base", "sir", "langevin", "reconstructions"):
        save_png(minimal / "samples" / f"{name}.png")
    rows = [
        {"stage": stage, "split": split, "step": step, "loss": loss + 9 / (1 + step)}
        for stage, loss in (("vae", 88.0), ("ncp", 0.93))
        for split, every in (("train", 10), ("valid", 500))
        for step in range(0, 2_000, every)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (minimal / "metrics.jsonl").write_text(lines + '\n{"stage": "unfinished", "spl')
    draws = np.geomspace(10, 1e5, 20)
    save_arrays(
        minimal,
        log_r_q=rng.normal(1, 1, (1, 2_000)),
        log_r_p=rng.normal(-1, 1, (1, 2_000)),
        log_z_curve=np.stack([draws, rng.normal(size=20) / draws**0.5, draws**-0.5], 1),
        langevin_log_density=-np.exp(-np.arange(50) / 9.0)[None],
        langevin_gradient_norm=np.exp(-np.arange(50) / 9.0)[None],
    )
    return minimal


@pytest.fixture
def toy(minimal):
    """Two-dimensional latents and data."""
    rng = np.random.default_rng(0)
    x, y = np.linspace(-4, 4, 40), np.linspace(-3, 3, 30)
    log_p = -0.5 * (x[None] ** 2 + y[:, None] ** 2)
    names = ("plane_z_q", "plane_z_p", "plane_z_sir", "plane_z_langevin")
    names += ("points_data", "points_base", "points_sir", "points_langevin")
    save_arrays(
        minimal,
        plane_grid_x=x,
        plane_grid_y=y,
        plane_log_p=log_p,
        plane_log_ncp=np.where(np.abs(x) < 0.5, -np.inf, log_p),
        **{name: rng.normal(size=(5_000, 2)) for name in (*names, "points_floor")},
    )
    return minimal


# ---- numbers


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (2.0123, 0.05102, "2.01 ± 0.10"),
        (82.809, 0.2471, "82.81 ± 0.48"),
        (-88.912, 0.00251, "-88.9120 ± 0.0049"),
        (412.3, 7.71, "412 ± 15"),
        (12345.6, 700.0, "12,346 ± 1,372"),
        (3.0, 0.0, "3 ± 0"),
        (math.nan, 0.1, "nan ± 0.2"),
        (1.25, math.nan, "1.25 ± nan"),
        (-0.0001, 0.1, "0.00 ± 0.20"),
        (-math.inf, math.inf, "-inf ± inf"),
        (None, 0.1, "nan ± 0.2"),
    ],
)
def test_an_estimate_has_the_digits_of_its_interval(value, stderr, expected):
    assert " ".join(quantities.estimate(metric(value, stderr))) == expected


def test_numbers_are_labelled_grouped_and_have_intervals(minimal):
    _, page = page_of(minimal)
    for fragment in ("82.81± 0.48", "NLL, NCP prior", "nll_ncp", "10,000", "412± 15"):
        assert fragment in page.text
    places = [page.text.index(s) for s in ("Likelihood", "Stage 2", "Samples")]
    assert places == sorted(places)
    summary = page.text[page.text.index("Summary") : page.text.index("Numbers")]
    assert re.search(r"Off-mode share.*0.0312 ± 0.0033n = 10,000", summary)


def test_a_number_without_an_interval_is_not_printed(minimal):
    html, page = page_of(minimal)
    assert "123.4" not in html
    assert "only in results.json: nll_point." in page.text


@pytest.mark.parametrize(
    ("gain", "claim"),
    [
        (
            metric(2.0123, 0.05102),
            "gains 2.01 ± 0.10 nats over the base prior on 10,000",
        ),
        (
            metric(-2.0123, 0.05102),
            "loses 2.01 ± 0.10 nats to the base prior on 10,000",
        ),
        (
            metric(0.05, 0.05102),
            "level with the base prior: a gain of 0.05 ± 0.10 nats",
        ),
        (metric(-1.77636e-15, 0.0), "The NCP prior is the base prior: no likelihood"),
        (metric(2e-4, 1e-6), "gains 0.0002000 ± 0.0000020 nats over the base prior"),
    ],
)
def test_the_headline_claims_what_the_interval_allows(minimal, gain, claim):
    save_results(minimal, {"gain_nats": gain})
    assert claim in page_of(minimal)[1].text


def test_a_gain_that_is_not_known_is_not_passed_over(minimal):
    few = {"log_z": metric(-1.29, None, 1_000), "ess_fraction": metric(0.008, None)}
    save_results(minimal, {"nll_base": METRICS["nll_base"], **few})
    text = page_of(minimal)[1].text
    assert "log Z rests on 8 effective draws of 1,000, too few" in text
    assert "only in results.json: log_z, ess_fraction." in text


def test_a_point_has_no_gain_and_its_loss_no_unit(minimal):
    why = "No likelihoods: z is a function of x."
    assert why in run_page._headline({"metrics": METRICS}, why)
    assert why not in run_page._headline({"metrics": METRICS})
    for kind, unit in (("vae", "nats"), ("rae_l2", "")):
        config = {"vae": {"model": {"name": "rae", "kind": kind}}}
        assert run_page._unit("vae", config) == unit
        assert run_page._unit("ncp", config) == "nats"
    curves = {"train": np.array([[1.0, 2.0], [2.0, 1.5]])}
    (panel,) = plots.loss("vae", curves, unit="")
    assert panel.caption == "Stage 1: autoencoder loss; last values: train 1.5"


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_failed_metric_is_shown_as_failed(minimal, value):
    save_results(minimal, {"gain_nats": metric(value, 0.1), "log_z": metric(1.0, 0.1)})
    _, page = page_of(minimal)
    assert f"{math.nan if value is None else value}± 0.2" in page.text
    assert "The NCP prior gains" not in page.text


def test_unknown_metrics_keep_their_names(minimal):
    save_results(minimal, {"my_measure": metric(0.5, 0.01), **METRICS})
    _, page = page_of(minimal)
    assert page.text.index("my_measure") > page.text.index("Off-mode")


def test_metrics_of_groups_have_their_own_table(minimal):
    groups = {f"nce_loss/{k}": metric(1 + k / 100, 0.001) for k in range(12)}
    save_results(minimal, METRICS | groups | {"log_z/3": metric(-0.31, 0.01)})
    _, page = page_of(minimal)
    table = page.text[page.text.index("Groups") :]
    assert re.search(r"9\s*1.0900± 0.0020\s*10\s*1.1000± 0.0020", table)
    assert re.search(r"3\s*-0.310± 0.0201.0300± 0.0020", table)
    assert "nce_loss/" not in page.text


def test_summary_table_lines_up():
    results = {"metrics": METRICS | {"nce_loss/0": metric(1.0, 0.1)}}
    lines = run_page.summary_table(results).splitlines()
    columns = {line.index("±") for line in lines if "±" in line}
    assert len(columns) == 1
    ncp = next(line for line in lines if line.startswith("nll_ncp"))
    assert ncp.split() == ["nll_ncp", "82.81", "±", "0.48", "10,000", "nats"]
    assert not any(line.startswith("nll_point") for line in lines)
    assert lines[-2:] == [
        "(1 more per group: results.json)",
        "(too few for an interval, so in results.json: nll_point)",
    ]


def test_summary_table_of_nothing_is_its_header():
    assert run_page.summary_table({"metrics": {}}).split()[0] == "metric"


# ---- the page


def test_a_minimal_run_has_no_pictures_and_its_settings(minimal):
    _, page = page_of(minimal)
    assert page.all("img") == []
    assert "NCP-VAE on mnist" in page.text and "seed 7" in page.text
    assert re.search(r"ncp\.learning_rate\s*0\.001", page.text)
    for absent in ("Latent space", "Training", "Environment", "Normaliser"):
        assert absent not in page.text


def lead_of(workdir, **run):
    save_results(workdir, METRICS, **run)
    _, page = page_of(workdir)
    return " ".join(page.text.partition("One frozen VAE")[2].split(".")[0].split())


def test_the_lead_says_which_samplers_were_run(minimal):
    both = "under two priors: its own base prior p(z), and the noise contrastive prior"
    both += " pNCP(z) = r(z) p(z) / Z"
    assert lead_of(minimal) == lead_of(minimal, stages={"ncp": {}}) == both
    samplers = ["langevin", "sirmala", "vaebm", "unknown"]
    stages = {"sample": {"config": {"sample": {"samplers": samplers}}}}
    drawn = "drawn from by Langevin and by SIR, then MALA"
    assert lead_of(minimal, stages=stages) == f"{both}, {drawn}"
    assert lead_of(minimal, stages={"vae": {}, "compare": {}}) == ""


def test_the_lead_links_to_priors_side_by_side(minimal):
    link = {"href": "priors.html"}
    assert link not in page_of(minimal)[1].all("a")
    (minimal / "report" / "priors.html").touch()
    assert link in page_of(minimal)[1].all("a")


def test_a_full_run_has_every_picture_once(full):
    _, page = page_of(full)
    # Three grids, reconstructions, histogram, log Z, two of Langevin, two losses.
    assert len(page.all("img")) == 10
    assert sum(image["class"] == "pixels" for image in page.all("img")) == 4
    assert "over the base prior on 10,000 held-out examples" in page.text
    for fact in ("NVIDIA H200", "cpu", "vae 3,600 s", "commit 0123456789", "vae.jax"):
        assert fact in page.text


def test_the_toy_shows_the_plane_and_the_data(toy):
    _, page = page_of(toy)
    # q, p, NCP, SIR, Langevin (the density of p stands for its draws), five of data.
    alts = [image["alt"] for image in page.all("img")]
    assert len(alts) == 10
    assert "Aggregate posterior" in alts[0] and "Base prior" in alts[1]
    assert sum(alt.startswith("Density") for alt in alts) == 2


def test_draws_of_the_base_prior_stand_in_for_its_density(minimal):
    save_arrays(minimal, plane_z_p=np.zeros((9, 2)), plane_z_q=np.ones((9, 2)))
    assert len(page_of(minimal)[1].all("img")) == 2


def test_temperatures_are_shown_in_their_order(full):
    for temperature in ("1", "0.7", "0.85", f"{1e-5:g}"):
        save_png(full / "samples" / f"base_at_{temperature}.png")
    save_png(full / "samples" / "base_at_home.png")  # not one of ours
    text = page_of(full)[1].text
    shown = re.findall(r"Temperature ([0-9.e-]+)", text)
    assert shown == ["1e-05", "0.7", "0.85", "1"]
    assert len(page_of(full)[1].all("img")) == 14


def test_neighbours_stand_beside_their_distances(full):
    save_png(full / "samples" / "neighbours.png")
    generator = np.random.default_rng(0)
    save_arrays(
        full,
        note_neighbours=np.array("Among 9 training pictures."),
        **{f"nearest_{name}": generator.random(20) for name in ("sir", "held_out")},
    )
    config = {"sample": {"samplers": ["langevin", "sir"]}}
    (full / "config.json").write_text(json.dumps(config))
    _, page = page_of(full)
    assert "Left: draws, NCP by Langevin; right of each" in page.text
    (alt,) = (i["alt"] for i in page.all("img") if "Medians" in i["alt"])
    assert re.search(r"NCP by SIR 0\.\d\d; held-out pictures 0\.\d\d", alt)


def test_mmd_and_the_measures_of_samples_have_tables_of_their_own(full):
    extra = {"mmd_base/1": metric(0.5, 0.01), "mmd_base/0": metric(0.25, 0.01)}
    extra |= {"fd_lenet_sir": metric(12.5, 0.1, n=777), "sir_ess/0": metric(9.0, 0.1)}
    save_results(full, METRICS | extra)
    save_arrays(full, note_mmd=np.array("A note on MMD."), note_scores=np.array("How."))
    _, page = page_of(full)
    for once in ("0.250 ± 0.020", "12.50 ± 0.20", "n = 777", "A note on MMD.", "How."):
        assert page.text.count(once) == 1
    assert "fd_lenet_sir" not in page.text and "mmd_base" not in page.text


@pytest.mark.parametrize(("num_groups", "panels"), [(4, 4), (30, 12)])
def test_groups_have_panels_up_to_twelve(minimal, num_groups, panels):
    log_r = np.random.default_rng(0).normal(size=(num_groups, 200))
    save_arrays(minimal, log_r_q=log_r + 1, log_r_p=log_r - 1)
    _, page = page_of(minimal)
    assert len(page.all("img")) == panels
    assert "Group 0. Mean" in page.text
    assert f"Group {num_groups - 1}. Mean" in page.text


def test_a_subset_of_groups_keeps_its_numbers(minimal):
    log_r = np.random.default_rng(0).normal(size=(2, 200))
    save_arrays(minimal, log_r_q=log_r + 1, log_r_p=log_r - 1, groups=[3, 5])
    _, page = page_of(minimal)
    assert "Group 3. Mean" in page.text and "Group 5. Mean" in page.text
    assert "Group 0" not in page.text


def test_reliability_curves_say_how_often_they_hold_and_leave_out_empty_bins(minimal):
    predicted = np.array([[0.1, 0.5, np.nan], [0.2, 0.6, 0.9]])
    save_arrays(
        minimal,
        reliability_predicted=predicted,
        reliability_observed=predicted,
        reliability_low=predicted - 0.05,
        reliability_high=predicted + np.array([[0.05], [-0.01]]),
        groups=[0, 4],
    )
    _, page = page_of(minimal)
    assert (
        "Group 0. The prediction lies in the 95 % interval of 2 of 2 bins" in page.text
    )
    assert (
        "Group 4. The prediction lies in the 95 % interval of 0 of 3 bins" in page.text
    )
    assert len(page.all("img")) == 2
    nothing = np.full((1, 3), np.nan)
    fields = ("predicted", "observed", "low", "high")
    save_arrays(minimal, **{f"reliability_{name}": nothing for name in fields})
    assert not page_of(minimal)[1].all("img")


def test_figure_5_of_the_paper_needs_two_groups(minimal):
    loss = np.array([[1.38, 0.01], [0.5, 0.01], [0.3, 0.02]])
    ess = np.array([[99.0, 0.1], [20.0, 2.0], [3.0, np.nan]])
    save_arrays(minimal, nce_loss=loss, sir_ess=ess, groups=[1, 2, 7])
    _, page = page_of(minimal)
    assert len(page.all("img")) == 2
    assert "2 of 3 groups have a loss of 0.4 or more" in page.text
    save_arrays(minimal, nce_loss=loss)  # without SIR
    assert len(page_of(minimal)[1].all("img")) == 1
    save_arrays(minimal, nce_loss=loss[:1], sir_ess=ess[:1])
    assert not page_of(minimal)[1].all("img")


def test_every_group_shows_its_spectrum_and_how_many_directions_are_read(minimal):
    spectrum = np.array([[0.5, 0.2, 0.1, -0.01], [0.01, 0.002, np.nan, np.nan]])
    arrays = {
        "signal_spectrum": spectrum,
        "signal_floor": [0.05, 0.015],
        "signal_widths": [2, 0],
        "signal_total": [0.79, 0.012],
    }
    save_arrays(minimal, **arrays)
    numbers = {
        "num_directions/0": metric(2, 0.0, n=500, unit="directions"),
        "signal_total/0": metric(0.79, 0.05, n=500, unit="prior variances"),
    }
    save_results(minimal, METRICS | numbers)
    _, page = page_of(minimal)
    first, second = page.all("img")
    assert "Group 0. 2 directions hold 0.7 of a signal of 0.79" in first["alt"]
    assert "Group 1. No direction is above the floor of 0.015" in second["alt"]
    assert "points that are still high right of the line" in page.text
    table = page.text[page.text.index("Groups") :]
    assert "Signal directions (directions)" in table and "0.790± 0.098" in table
    save_arrays(minimal, **{name: a[:1] for name, a in arrays.items()})
    (image,) = page_of(minimal)[1].all("img")
    assert image["alt"].startswith("Eigenvalues. 2 directions")
    del arrays["signal_floor"]
    save_arrays(minimal, **arrays)
    assert not page_of(minimal)[1].all("img")


def test_the_audit_is_a_curve_a_column_and_a_row(minimal):
    curve = np.array([[0.2, 0.01], [0.1, 0.01], [0.01, 0.01]])
    arrays = {"audit_curve": curve, "audit_groups": [0, 1, 5]}
    of_sir = {"audit_sir": [[0.05, 0.02]], "note_audit": np.array("How audited.")}
    save_arrays(minimal, **arrays, **of_sir)
    found = {"audit_jsd_base": metric(0.2, 0.01), "audit_jsd_sir": metric(0.05, 0.02)}
    found |= {"audit_jsd_hybrid/0": metric(0.2, 0.01), "nce_loss/0": metric(1.4, 0.01)}
    save_results(minimal, METRICS | found)
    _, page = page_of(minimal)
    (image,) = page.all("img")
    assert "At least 0.200 nats from the base prior; seen down to j = 1" in image["alt"]
    assert "the classifiers of z are blind: there is a hole" in page.text
    assert page.text.count("How audited.") == 1
    row = page.text[page.text.index("JSD of pictures") :]
    assert row.index("0.200 ± 0.020") < row.index("0.050 ± 0.039")
    table = page.text[page.text.index("Groups") :]
    assert "JSD of pictures, from here on p (nats)" in table
    assert re.search(r"0.200± 0.020", table) and "audit_jsd" not in page.text
    curve[:, 0] = -0.01
    save_arrays(minimal, **arrays)
    assert "base prior; none is seen" in page_of(minimal)[1].all("img")[0]["alt"]
    save_arrays(minimal, audit_curve=curve[:1], audit_groups=[0])
    assert not page_of(minimal)[1].all("img")


def test_langevin_curves_of_several_groups_share_a_panel(minimal):
    save_arrays(minimal, langevin_log_density=np.zeros((4, 20)))
    assert len(page_of(minimal)[1].all("img")) == 1


def test_arrays_that_are_not_finite_do_not_stop_the_page(minimal):
    bad = np.full((2, 50), np.nan)
    bad[1, :40] = [-np.inf, 0.5] * 20
    save_arrays(
        minimal,
        log_r_q=bad,
        log_r_p=bad,
        log_z_curve=np.full((3, 3), np.nan),
        langevin_log_density=bad,
        points_sir=bad.T,
        plane_grid_x=np.arange(3.0),
        plane_grid_y=np.arange(2.0),
        plane_log_p=np.full((2, 3), -np.inf),
    )
    assert len(page_of(minimal)[1].all("img")) == 4  # group 1, Langevin, SIR, p(z)


def test_the_page_needs_nothing_but_itself(full):
    html, page = page_of(full)
    assert page.all("script") == []
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", html)
    assert all(image["alt"] for image in page.all("img"))
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_text_from_files_cannot_become_markup(full):
    save_results(
        full,
        {HOSTILE: metric(1.0, 0.1, unit=HOSTILE), f"{HOSTILE}/1": metric(1.0, 0.1)},
        wall_seconds={HOSTILE: 1},
        stages={HOSTILE: {"environment": {"device": HOSTILE, HOSTILE: HOSTILE}}},
    )
    (full / "config.json").write_text(json.dumps({HOSTILE: {HOSTILE: [HOSTILE]}}))
    (full / "metrics.jsonl").write_text(
        json.dumps({"stage": HOSTILE, "split": "train", "step": 1, "loss": 1.0})
    )
    html, page = page_of(full)
    assert page.all("script") == [] and "<script" not in html
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert page.text.count(HOSTILE) > 6


def test_it_is_written_in_one_step_and_can_be_made_again(full):
    path = run_page.write(str(full))
    assert path == full / "report" / "index.html"
    first = path.read_bytes()
    assert run_page.write(full).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_run_that_was_not_evaluated_is_told_so(minimal, name):
    (minimal / name).unlink()
    with pytest.raises(InputError, match=f"{name}: run .* --stage=evaluate"):
        run_page.write(minimal)


@pytest.mark.parametrize(
    "name", ["results.json", "evaluation/arrays.npz", "samples/sir.png"]
)
def test_a_damaged_file_is_named(full, name):
    content = (full / name).read_bytes()
    (full / name).write_bytes(content[: len(content) // 2].replace(b"PNG", b"xxx"))
    with pytest.raises(InputError, match=f"{name} is .*--stage=evaluate"):
        run_page.write(full)


# ---- training curves


def test_curves_skip_cut_lines_and_keep_the_last_word_on_a_step(minimal):
    row = '{"stage": "ncp", "split": "train", "step": %d, "loss": %s}\n'
    (minimal / "metrics.jsonl").write_text(
        row % (1, 1.5)
        + row % (2, 1.4)
        + '{"stage": "ncp", "spl'  # killed here, resumed on the same line
        + row % (9, 0.1)
        + row.replace("ncp", "vae") % (1, "[1.0, 2.0]")
        + "3\n"
        + row % (2, 1.3)
        + row % (3, "NaN")
        + '{"stage": "ncp", "split": "train", "step": 4, "loss": 0.9'
    )
    curves = run_page.read_losses(minimal / "metrics.jsonl")
    np.testing.assert_array_equal(
        curves["ncp"]["train"], [[1, 1.5], [2, 1.3], [3, np.nan]]
    )
    assert "last values: train 1.3 nats" in page_of(minimal)[1].text


def test_the_report_does_not_load_jax():
    loaded = "{'jax', 'flax'} & {*sys.modules}"
    code = f"import sys, ncp_jax.pages.run_page; assert not {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# ---- as a browser shows it


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    """A tab of a browser, and the folder of a finished smoke run."""
    path = browser.find()
    if path is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    workdir = tmp_path_factory.mktemp("digits") / "run"
    stages.run(load("digits", "smoke"), workdir, "all")
    with browser.tab(path, tmp_path_factory.mktemp("browser")) as tab:
        yield tab, workdir / "report" / "index.html"


def shown(tab):
    """The page as an array of grey pixels."""
    return np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height", "media"),
    [(1280, 900, "screen"), (390, 844, "screen"), (794, 1123, "print")],
)
def test_a_browser_shows_the_page(browsed, width, height, media):
    tab, page = browsed
    tab.open(page.as_uri(), width, height, media)
    images = "[...document.images]"
    # Samples, temperatures, reconstructions, neighbours and distances, plots.
    assert tab.evaluate(f"{images}.length") >= 3 + 3 + 1 + 2 + 4
    assert tab.evaluate(f"{images}.every(i => i.complete && i.naturalWidth > 0)")
    # Nothing sticks out sideways, though what is wide may scroll in itself.
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.logged == []
    pixels = shown(tab)
    assert pixels.shape[1] == width and pixels.shape[0] > height
    inked = pixels != np.bincount(pixels.ravel()).argmax()
    assert inked.mean() > 0.02  # text and pictures, not a blank sheet


@pytest.mark.slow
def test_the_browser_would_notice(browsed, tmp_path):
    """What the test before holds the page to can be missed."""
    tab, _ = browsed
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'>"
        "<div style='width: 900px'>wide</div><img src='data:image/png;base64,AAAA'>"
        "<script>console.error('no'); missing()</script>"
    )
    tab.open(bad.as_uri(), 390, 844)
    assert not tab.evaluate("document.images[0].naturalWidth > 0")
    assert tab.evaluate("document.documentElement.scrollWidth") > 390
    assert len(tab.logged) >= 2
    tab.logged.clear()
    inked = shown(tab) < 255
    assert inked.mean() < 0.02
