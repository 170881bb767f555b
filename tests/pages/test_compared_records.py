"""A comparison in results.json that somebody has edited is named, or shown."""

import json

import pytest

from ncp_jax.errors import InputError
from ncp_jax.pages import priors_page


def write(folder, **changes):
    nll = {"value": 1.0, "stderr": 0.1, "n": 9, "unit": "nats"}
    costs = {"value": 1.0, "stderr": None, "n": 1, "unit": "s"}
    metrics = {"gain": nll, "nll": nll, "sampling_seconds": costs}
    prior = {"density": "exact", "metrics": metrics, "spreads": {}}
    about = {"num_examples": 9, "num_fits": 1, "split": "test"}
    compared = {"about": about, "nll_base": nll, "floor": {}, "priors": {"ncp": prior}}
    content = {priors_page.KEY: compared | changes}
    (folder / "results.json").write_text(json.dumps(content))
    return priors_page.write(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"priors": {"ncp": {"density": "exact", "metrics": {"gain": {"value": "x"}}}}},
        {"priors": []},
        {"nll_base": 3},
        {"floor": None},
        {"about": "x"},
    ],
)
def test_wrong_types_are_named(tmp_path, changes):
    with pytest.raises(InputError, match=r"results\.json is not one of ours \(priors"):
        write(tmp_path, **changes)


def test_one_example_has_no_interval(tmp_path):
    nll = {"value": 1.5, "stderr": None, "n": 1, "unit": "nats"}
    assert "NLL is 1.5 nats" in write(tmp_path, nll_base=nll).read_text()
