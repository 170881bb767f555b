"""What a run's numbers are of: weights and data that are sealed, and damage told."""

import json
import shutil

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.training.checkpoints import best_weights
from tests import tiny
from tests.training.test_checkpoints import damage_arrays, empty

# tensorstore reports to an event loop that Orbax has closed after an error.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


def settings(**changed):
    config = tiny.config(**changed)
    config.sample.update(num_images=4, num_proposals=10, samplers=("sir",))
    config.evaluate.update(max_examples=20, num_mmd_samples=0, num_log_z_draws=2_000)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all its stages, never to be written to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    stages.run(settings(), workdir, "all")
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def best_of(run, stage):
    return best_weights(run / stage / "checkpoints")


# --- weights


def test_a_record_says_which_weights_its_numbers_are_of(whole):
    records = results_of(whole)["run"]["stages"]
    vae, ncp = (best_of(whole, stage)._asdict() for stage in ("vae", "ncp"))
    assert records["vae"]["weights"] == {"vae": vae}
    for stage in ("ncp", "sample", "evaluate"):
        assert records[stage]["weights"] == {"vae": vae, "ncp": ncp}


DAMAGES = {
    "metadata": lambda best: (best / "metadata" / "metadata").unlink(),
    "arrays": damage_arrays,
    "all": empty,
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("damaged", "stage"), [("vae", "ncp"), ("ncp", "sample"), ("ncp", "evaluate")]
)
def test_a_stage_that_reads_names_the_damage(run, kind, damaged, stage):
    best = run / damaged / "checkpoints" / str(best_of(run, damaged).step)
    before = results_of(run)["metrics"]
    DAMAGES[kind](best)
    with pytest.raises(InputError, match=rf"{best} .*run --stage={damaged}"):
        stages.run(settings(), run, stage)
    assert results_of(run)["metrics"] == before


def test_a_damaged_newest_is_trained_again_and_nothing_else_changes(run, whole, caplog):
    damage_arrays(run / "ncp" / "checkpoints" / "20")
    stages.run(settings(), run, "all")
    assert "checkpoints/20" in caplog.text and "moved to" in caplog.text
    assert best_of(run, "ncp") == best_of(whole, "ncp")
    assert results_of(run)["metrics"] == results_of(whole)["metrics"]


def test_what_was_measured_on_other_weights_is_measured_again(run):
    """The best checkpoint is lost after the measurements; the newest serves now."""
    path = run / "results.json"
    results = results_of(run)
    for stage in ("ncp", "sample", "evaluate"):
        results["run"]["stages"][stage]["weights"]["ncp"]["step"] = 10
    right = results["metrics"]["nll_base"]["value"]
    results["metrics"]["nll_base"]["value"] = -1.0
    path.write_text(json.dumps(results))
    with pytest.raises(InputError, match="not of the weights that are there now"):
        stages.run(settings(), run, "evaluate")
    stages.run(settings(), run, "all")
    assert results_of(run)["metrics"]["nll_base"]["value"] == right
    steps = [r["weights"]["ncp"]["step"] for r in records_of_ncp(run)]
    assert steps == [best_of(run, "ncp").step] * 3


def records_of_ncp(run):
    records = results_of(run)["run"]["stages"]
    return [records[stage] for stage in ("ncp", "sample", "evaluate")]


def test_records_without_weights_last_until_a_stage_is_trained_again(run):
    """Runs from before the seals need no new measurements."""
    results = results_of(run)
    for record in results["run"]["stages"].values():
        del record["weights"]
    results["metrics"]["nll_base"]["value"] = -1.0
    (run / "results.json").write_text(json.dumps(results))
    stages.run(settings(), run, "all")
    assert results_of(run)["metrics"]["nll_base"]["value"] == -1.0
    damage_arrays(run / "ncp" / "checkpoints" / "20")
    stages.run(settings(), run, "all")
    assert np.abs(results_of(run)["metrics"]["nll_base"]["value"] + 1.0) > 1e-3
