"""`picture_audit.py` on a small run, digits of 8x8 and points of the plane."""

import contextlib

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import evaluate_stage, picture_audit, stages
from ncp_jax.report import run_page
from tests import tiny

SMALL = {
    "sample.num_images": 12,
    "sample.batch_size": 8,
    "sample.num_proposals": 10,
    "sample.langevin_num_steps": 2,
    "sample.temperatures": (1.0,),
    "evaluate.max_examples": 30,
    "evaluate.num_mmd_samples": 0,
    "evaluate.num_neighbour_queries": 10,
    "evaluate.audit_num_images": 60,
    "evaluate.audit_num_steps": 20,
    "evaluate.audit_num_draws": 30,
    "evaluate.audit_samplers": ("sir",),
}


def small(**settings):
    config = tiny.config()
    config.update_from_flattened_dict(SMALL)
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "run"
    for stage in ("vae", "ncp", "sample"):
        stages.run(small(), path, stage)
    return path


@pytest.fixture
def opened(workdir):
    """Opens the run with other settings of its evaluation."""
    with contextlib.ExitStack() as stack:

        def open_with(**settings):
            run = tiny.experiment(workdir, small(**settings))
            stack.enter_context(contextlib.closing(run.workdir))
            return run

        yield open_with


def test_evaluate_audits_the_base_prior_and_what_samplers_leave(workdir):
    stages.run(small(), workdir, "evaluate")
    html = run_page.write(workdir).read_text()
    assert "60 decoded encodings of training examples" in html
    assert "30 of sir" in html and "JSD of pictures" in html
    run = tiny.experiment(workdir, small())
    with contextlib.closing(run.workdir):
        metrics = run.workdir.results()["metrics"]
    audited = {name: m for name, m in metrics.items() if name.startswith("audit")}
    assert audited.keys() == {"audit_jsd_base", "audit_jsd_sir"}
    assert [m["n"] for m in audited.values()] == [12, 6]  # a fifth
    assert all(m["unit"] == "nats" for m in audited.values())
    arrays = np.load(workdir / "evaluation" / "arrays.npz")
    row = [audited["audit_jsd_base"][field] for field in ("value", "stderr")]
    np.testing.assert_array_equal(arrays["audit_base"], [row])


def test_it_is_the_same_again_and_costs_nothing_by_default(opened, capsys):
    run = opened()
    vae = run.load_vae()
    drawn = {"sir": np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)}
    first, _ = picture_audit.measure(run, vae, drawn)
    assert first == picture_audit.measure(run, vae, drawn)[0]
    assert "audits 2 kinds of pictures, 60 of each" in capsys.readouterr().out
    assert first["audit_jsd_sir"].value > 0.1  # noise is told from digits
    run = opened(**{"evaluate.audit_num_images": 0, "evaluate.audit_num_draws": 0})
    assert not [n for n in evaluate_stage.evaluate(run) if n.startswith("audit")]
    assert "audits" not in capsys.readouterr().out


def test_groups_that_the_model_has_not_are_refused(opened):
    run = opened(**{"evaluate.audit_groups": (0, 1)})
    with pytest.raises(InputError, match=r"audit_groups = \(0, 1\): .* groups 0 to 0"):
        picture_audit.measure(run, run.load_vae(), {})
