"""`priors_page.py`: a row per prior by gain, with what is known of its density."""

import json
import re

import pytest
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.pages import priors_page


def metric(value, stderr=0.1, n=50):
    return {"value": value, "stderr": stderr, "n": n, "unit": "nats"}


def prior(density, spreads=None, **metrics):
    costs = {
        "fit_seconds": metric(12.0, None),
        "sampling_seconds": metric(0.005, None),
        "num_bytes": metric(3e6, None),
        "num_parameters": metric(1234.0, None),
    }
    found = {
        name: m if isinstance(m, dict) else metric(m) for name, m in metrics.items()
    }
    metrics = {**found, **costs}
    return {
        "density": density,
        "metrics": metrics,
        "spreads": spreads or {},
        "of_fits": [],
    }


PRIORS = {
    "low": prior(
        "exact", {"gain": 0.034}, gain=0.25, nll=80.0, fd_lenet=5.5, mmd_p=0.2
    ),
    "bounded": prior("lower bound", gain=1.5, nll=79.0),
    "unsure": prior("up to log Z", gain=metric(2.5, None), nll=metric(7.0, None)),
    "silent": prior("none", fd_lenet=3.25),
}
ABOUT = {"split": "valid", "num_examples": 2_000, "num_samples": 300, "num_fits": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    content = {
        "about": {**ABOUT, "note": "FD <of> what."},
        "nll_base": metric(80.25),
        "floor": {"fd_lenet": metric(1.125)},
        "priors": PRIORS,
    }
    run = {"device": "a device", "git_commit": "abc"}
    results = {"metrics": {}, "run": run, "priors": content}
    (path / "results.json").write_text(json.dumps(results))
    (path / "priors").mkdir()
    Image.new("L", (8, 8)).save(path / "priors" / "low.png")
    return path


@pytest.fixture(scope="module")
def html(folder):
    return priors_page.write(folder).read_text()


def rows(html, section):
    """{first cell: the others} of a section's table."""
    part = html.split(f"<h2>{section}</h2>")[1].split("</section>")[0]
    found = {}
    for row in part.split("<tr>")[1:]:
        name, *cells = row.split("<td")[1:]
        name = name.removeprefix(">").partition("<")[0]
        name = re.sub(rf"^{len(found) + 1}\. ", "", name)  # its rank
        found[name] = [c.partition(">")[2].split("</td>")[0] for c in cells]
    return found


def test_the_highest_gain_is_first_and_no_gain_last(html):
    found = rows(html, "Likelihood and cost")
    assert list(found) == ["unsure", "bounded", "low", "silent"]
    assert found["low"][:2] == ["0.25 ± 0.20<small>sd 0.034</small>", "80.00 ± 0.20"]
    assert found["bounded"][0] == "≥ 1.50 ± 0.20"
    assert found["unsure"][:2] == ["no interval", "no interval"]
    assert found["silent"][:2] == ["", ""]
    assert found["low"][2:] == ["12 s", "5 ms", "3.0 MB", "1,234"]


def test_samples_have_the_floor_below_them(html):
    found = rows(html, "Samples")
    assert list(found) == ["unsure", "bounded", "low", "silent", "Posterior draws"]
    assert found["Posterior draws"] == ["1.12 ± 0.20"]
    assert [found[name] for name in ("bounded", "low")] == [[""], ["5.50 ± 0.20"]]
    assert "FD &lt;of&gt; what." in html and "p-value" not in html


def test_it_says_of_what_the_numbers_are(html):
    assert "the same 2,000 valid examples" in html and "80.25 ± 0.20 nats" in html
    assert "a device · abc" in html and "over 3 fits" in html
    assert html.count("<img") == 2  # the plot, and the only pictures that are there
    assert "<code>num_samples</code>" in html


def page_of(folder, path, **stages):
    """The page of the same comparison with records of stages."""
    results = json.loads((folder / "results.json").read_text())
    results["run"]["stages"] = stages
    (path / "results.json").write_text(json.dumps(results))
    return priors_page.write(path).read_text()


def test_it_names_the_machine_that_compared_not_that_of_a_later_call(folder, tmp_path):
    there = {"device": "its device", "git_commit": "def"}
    html = page_of(folder, tmp_path, compare={"environment": there})
    assert "its device · def" in html and "a device · abc" not in html


def test_a_comparison_that_was_begun_again_is_named(folder, tmp_path, html):
    begun = "Stage compare was begun again and has not ended"
    assert begun in page_of(folder, tmp_path, compare={})
    assert begun not in page_of(folder, tmp_path, compare={"fingerprint": "01"})
    assert begun not in html  # of `ncp_jax.compare`, which records no stages


def test_a_comparison_on_an_earlier_stage_1_is_named(folder, tmp_path):
    def record(version):
        weights = {"vae": {"step": 9, "fingerprint": version}}
        return {"fingerprint": "01", "weights": weights}

    earlier = "compare are of earlier weights of vae: run --stage=compare."
    compare = record("a")
    assert earlier in page_of(folder, tmp_path, vae=record("b"), compare=compare)
    assert earlier not in page_of(folder, tmp_path, vae=record("a"), compare=compare)


def test_no_gain_with_an_interval_means_no_plot(folder, tmp_path):
    results = json.loads((folder / "results.json").read_text())
    for name in ("low", "bounded"):
        del results["priors"]["priors"][name]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "<img" not in priors_page.write(tmp_path).read_text()


def test_without_likelihoods_it_says_why_and_ranks_by_the_distance(folder, tmp_path):
    results = json.loads((folder / "results.json").read_text())
    content = results["priors"]
    content["nll_base"] = None
    content["about"] |= {"num_examples": 0, "likelihoods": "None: <a point>."}
    for each in content["priors"].values():
        for name in ("gain", "nll"):
            each["metrics"].pop(name, None)
    (tmp_path / "results.json").write_text(json.dumps(results))
    html = priors_page.write(tmp_path).read_text()
    assert "None: &lt;a point&gt;." in html and "NLL is" not in html
    assert "Lowest FD-LeNet first" in html and "Highest gain" not in html
    assert list(rows(html, "Cost"))[:2] == ["silent", "low"]
    assert "Likelihood and cost" not in html


def test_a_run_without_a_comparison_says_what_to_run(tmp_path):
    (tmp_path / "results.json").write_text('{"metrics": {}}')
    assert not priors_page.is_compared(tmp_path)
    with pytest.raises(InputError, match="--stage=compare"):
        priors_page.write(tmp_path)


def test_the_docs_table_has_the_order_and_the_cells_of_the_page(folder):
    compared = json.loads((folder / "results.json").read_text())["priors"]
    assert priors_page.markdown(compared, "gain", "fd_lenet", "fit_seconds") == (
        "| prior | density | Gain (nats) | FD-LeNet | Fit |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `unsure` | up to log Z | no interval |  | 12 s |\n"
        "| `bounded` | lower bound | ≥ 1.50 ± 0.20 |  | 12 s |\n"
        "| `low` | exact | 0.25 ± 0.20 (sd 0.034) | 5.50 ± 0.20 | 12 s |\n"
        "| `silent` | none |  | 3.25 ± 0.20 | 12 s |\n"
        "| posterior draws |  |  | 1.12 ± 0.20 |  |"
    )


def test_the_table_of_a_terminal_is_short_and_aligned(folder):
    compared = json.loads((folder / "results.json").read_text())["priors"]
    assert priors_page.plain(compared) == (
        "prior    density      Gain (nats)             Fit   1,000 draws\n"
        "unsure   up to log Z  no interval             12 s  5 ms\n"
        "bounded  lower bound  ≥ 1.50 ± 0.20           12 s  5 ms\n"
        "low      exact        0.25 ± 0.20 (sd 0.034)  12 s  5 ms\n"
        "silent   none                                 12 s  5 ms"
    )
    alone = {"priors": {"silent": PRIORS["silent"]}}  # no likelihoods: by distance
    assert priors_page.plain(alone).splitlines()[0].split()[2] == "FD-LeNet"
