"""`summary.py` and `published.py`: which number stands where."""

import json
import re

import numpy as np
import pytest

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.pages import summary
from ncp_jax.pages.parts import published, quantities
from tests.experiment.test_stages import CONFIGS, load
from tests.pages.test_run_page import HOSTILE, Page, metric

PAPER = {  # as the configs' own docstrings have them
    "mnist_mlp": ("nll", 84.82, 82.82),
    "mnist_nvae": ("nll", 78.67, 78.10),
    "cifar10_nvae": ("fid", 51.71, 24.08),
    "celeba64_nvae": ("fid", 13.48, 5.25),
    "celebahq256_nvae": ("fid", 40.26, 24.79),
}
METRICS = {
    "nll_base": metric(84.8, 0.25),
    "nll_ncp": metric(82.8, 0.25),
    "nll_snis": metric(83.1, 0.25),
    "fid_base": metric(51.3, 0.5, n=50_000),
    "fid_langevin": metric(26.1, 0.5, n=50_000),
    "fid_real": metric(3.1, 0.1),
    "kid_sir": metric(0.012, None),
    "nearer_than_held_out_floor": metric(0.61, 0.02, n=999),
    "mmd_base": metric(0.031, 0.002, n=5_000),
    "mmd_p_base": metric(0.002, 0.002, n=500),
}


def config_of(name, variant=""):
    return json.loads(load(name, variant).to_json())


def cells(html):
    """{measure: {column: text}} of a table of the page."""
    found = {}
    for row in re.findall(r"<tr><td>.*?</tr>", html, re.DOTALL):
        label = re.match(r"<tr><td>(.*?)(<small>|</td>)", row)[1]
        pairs = re.findall(r'<td data-label="(.*?)">(.*?)</td>', row, re.DOTALL)
        found[label] = {column: Page(text).text for column, text in pairs if text}
    return found


def test_a_measure_is_a_row_and_its_source_a_column():
    table = cells(summary.measures(METRICS, {}, []))
    assert table["FID"] == {
        "Base prior p(z)": "51.30 ± 0.98n = 50,000",
        "NCP by Langevin": "26.10 ± 0.98n = 50,000",
        "Real": "3.10 ± 0.20n = 10,000",
    }
    assert table["Test NLL (nats)"] == {
        "Base prior p(z)": "84.80 ± 0.49n = 10,000",
        "NCP prior r p / Z": "82.80 ± 0.49n = 10,000",
        "NCP by SIR": "83.10 ± 0.49n = 10,000",
    }
    assert table["Nearer than held-out pictures"]["Floor"] == "0.610 ± 0.039n = 999"
    assert "KID" not in table  # without an interval
    assert len(table) == 3  # MMD has its own table


def test_columns_without_a_number_are_left_out():
    html = summary.measures({"fid_sir": metric(1.0, 0.1)}, {}, [])
    assert re.findall("<th>(.*?)</th>", html) == ["Measure", "NCP by SIR"]
    assert summary.measures({"log_z": metric(0.0, 0.1)}, {}, ["a note"]) == ""
    assert summary.measures({"fid_sir": metric(1.0, None)}, {}, []) == ""


def test_the_papers_number_stands_beside_what_it_is_of():
    for name, (measure, base, ncp) in PAPER.items():
        table = cells(summary.measures(METRICS, config_of(name), []))
        row = {"nll": "Test NLL (nats)", "fid": "FID"}[measure]
        assert table[row]["Paper"].startswith(f"{base:.2f} → {ncp:.2f}base → NCP, ")
        assert sum("Paper" in of_row for of_row in table.values()) == 1
    only_nll = {name: m for name, m in METRICS.items() if name.startswith("nll")}
    html = summary.measures(only_nll, config_of("cifar10_nvae"), [])
    assert "Paper" not in html and "51.71" not in html


def test_only_the_papers_experiments_have_its_numbers():
    for path in CONFIGS.glob("*.py"):
        found = published.of(config_of(path.stem))
        model = dict.fromkeys(("priors_mnist", "mnist_vaebm"), "mnist_mlp").get(
            path.stem, path.stem
        )
        assert (found[:3] if found else None) == PAPER.get(model)
    assert published.of(config_of("mnist_mlp", "smoke"))  # shorter, but the same
    config = config_of("mnist_mlp")
    for section, name, value in (
        ("data", "binarization", "fixed"),
        ("data", "name", "fashion_mnist"),
        ("data", "shape", [32, 32, 1]),
    ):
        other = json.loads(json.dumps(config))
        other[section][name] = value
        assert published.of(other) is None
    config["vae"]["model"]["latent_dim"] = 16
    assert published.of(config) is None
    for broken in ({}, {"data": []}, {"data": {}, "vae": {"model": {"name": "mlp"}}}):
        assert published.of(broken) is None


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers_are_those_of_the_configs_docstrings(name):
    text = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    for value in PAPER[name][1:]:
        assert f"{value:.2f}" in text


def test_every_family_is_shown_and_nothing_else():
    for name in ("fid_base", "kid_resnet56_real", "mmd_p_sir", "off_mode_floor"):
        assert summary.is_shown(name)
    for name in ("sir_ess", "nll_base", "fid", "fid_other", "log_z"):
        assert not summary.is_shown(name)


def test_the_families_of_feature_networks_have_meanings():
    from ncp_jax.evaluation.metrics import feature_nets
    from ncp_jax.evaluation.metrics.extractor import FeatureNet
    from ncp_jax.evaluation.metrics.feature_scores import families

    for label in ("FID", *(kind.label for kind in feature_nets.KINDS.values())):
        distance, kernel = families(FeatureNet(label, None, {}, "", (None,) * 3))
        assert quantities.FAMILIES[distance][0] == label
        assert quantities.FAMILIES[kernel][0].startswith("KID")


# ---- MMD


def test_every_group_has_a_row_of_mmd():
    metrics = {
        f"mmd_{p}{source}/{k}": metric(0.01 * k + 0.1 * (source == "sir"), 0.001)
        for p in ("", "p_")
        for source in ("base", "sir")
        for k in range(12)
    }
    arrays = {
        "mmd_null_base": np.linspace(-0.01, 0.01, 24).reshape(12, 2),
        "mmd_kernel": np.tile([3.25, 0.875], (12, 1)),
    }
    html = summary.mmd(metrics, arrays, "how it was measured")
    rows = re.findall(r"<tr><td>(Group \d+)</td>(.*?)</tr>", html)
    assert [name for name, _ in rows] == [f"Group {k}" for k in range(12)]
    last = re.findall(r">([^<]*)</td>", rows[11][1])
    assert last == [
        *("0.1100 ± 0.0020", "0.0091, 0.01", "0.1100 ± 0.0020"),
        *("0.2100 ± 0.0020", "", "0.2100 ± 0.0020"),
        "3.2, 0.88",
    ]
    assert "how it was measured" in html


def test_one_group_has_one_row_and_none_has_no_table():
    html = summary.mmd(METRICS, {}, "")
    assert list(cells(html)) == ["Group 0"] and "SIR" not in html
    assert summary.mmd({"fid_base": metric(1.0, 0.1)}, {}, "a note") == ""


def test_notes_and_labels_cannot_become_markup():
    html = summary.measures(METRICS, {}, [HOSTILE])
    assert "<script" not in html and HOSTILE in Page(html).text
    assert "<script" not in summary.mmd(METRICS, {}, HOSTILE)


def test_the_defaults_are_no_experiment_of_the_paper():
    assert published.of(config_lib.as_json(config_lib.default())) is None
