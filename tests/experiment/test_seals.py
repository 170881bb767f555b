"""What a run's numbers are of: weights and data that are sealed, and damage told."""

import json
import shutil

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import wiring
from ncp_jax.training.checkpoint_records import best_weights
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


# --- data


def test_a_run_seals_its_data_once(whole):
    seal = json.loads((whole / "data.json").read_text())
    counts = {split: part["count"] for split, part in seal["splits"].items()}
    assert seal["name"] == "digits"
    assert counts == {"train": 1297, "valid": 250, "test": 250}


@pytest.fixture
def load_instead(monkeypatch):
    """Makes `wiring.load_data` change what it has loaded."""

    def patch(change):
        load = wiring.load_data
        monkeypatch.setattr(wiring, "load_data", lambda config: change(load(config)))

    return patch


def one_more(data):
    """A picture more, which moves the end of the validation part into the test part."""
    together = np.concatenate([data.test[:1] ^ 1, *data])
    return type(data)(*np.split(together, [1298, 1548]))


def one_bit(data):
    train = data.train.copy()
    train[5, 3, 3] ^= 1
    return data._replace(train=train)


DRIFTS = {
    "one more": (
        one_more,
        r"train: 1,297 examples uint8 \(8, 8, 1\) -> 1,298 .*, 1 are new\n",
    ),
    "one bit": (one_bit, r"train: 1,297 .*, of other content .*, 1 are new\n"),
    "leak": (
        lambda data: data._replace(test=np.concatenate([data.test, data.train[:3]])),
        r"test: 250 .* -> 253 .*, 3 were in train\n",
    ),
    "order": (
        lambda data: data._replace(valid=data.valid[::-1]),
        r"valid: 250 examples .*, of other content or in another order\n",
    ),
}


@pytest.mark.parametrize("stage", ["vae", "ncp", "sample", "evaluate", "all"])
@pytest.mark.parametrize("kind", DRIFTS)
def test_other_data_in_the_same_place_are_refused(run, load_instead, kind, stage):
    change, message = DRIFTS[kind]
    load_instead(change)
    before = (run / "data.json").read_bytes()
    with pytest.raises(InputError, match=rf"(?s)made with other data:.*{message}"):
        stages.run(settings(), run, stage)
    assert (run / "data.json").read_bytes() == before


def test_a_run_without_a_seal_is_sealed_by_the_next_call(run, load_instead):
    before = (run / "data.json").read_bytes()
    (run / "data.json").unlink()
    stages.run(settings(), run, "ncp")
    assert (run / "data.json").read_bytes() == before
    load_instead(one_bit)
    with pytest.raises(InputError, match="other data"):
        stages.run(settings(), run, "ncp")


def test_before_anything_is_trained_the_data_are_free(tmp_path, load_instead):
    with pytest.raises(InputError, match="stage vae has not"):
        stages.run(settings(), tmp_path, "ncp")
    load_instead(one_bit)
    with pytest.raises(InputError, match="stage vae has not"):
        stages.run(settings(), tmp_path, "ncp")


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "{", '{"name": "x", "splits": {"": 1}}']
)
def test_a_damaged_seal_is_named_with_a_cure(run, content):
    (run / "data.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.json is .*: delete it"):
        stages.run(settings(), run, "sample")


# --- the stage 1 of another run


def test_a_stage_1_that_is_there_must_be_that_of_the_source(run, tmp_path, capsys):
    nowhere = settings(vae={"workdir": str(tmp_path / "nowhere")})
    for stage in ("vae", "ncp", "evaluate"):
        with pytest.raises(InputError, match=r"nowhere has no stage 1, and .*/run/vae"):
            stages.run(nowhere, run, stage)
    other, source = tmp_path / "other", tmp_path / "source"
    for seed, path in ((3, other), (0, source)):
        stages.run(settings(seed=seed), path, "vae")
    with pytest.raises(InputError, match=r"other has another stage 1 than .*/run/vae"):
        stages.run(settings(vae={"workdir": str(other)}), run, "ncp")
    taken = settings(vae={"workdir": str(source)})
    stages.run(taken, run, "ncp")  # trained here, to the same bits
    stages.run(taken, tmp_path / "second", "vae")
    shutil.rmtree(source)
    capsys.readouterr()
    stages.run(taken, tmp_path / "second", "vae")
    assert "which is no longer there" in capsys.readouterr().out
    with pytest.raises(InputError, match="has no stage 1"):
        stages.run(taken, run, "ncp")


def damage_json(name, content):
    return lambda source: (source / name).write_bytes(content)


SOURCES = {
    "no config": (lambda source: (source / "config.json").unlink(), "has no config"),
    "config": (damage_json("config.json", b"{"), r"config\.json is damaged"),
    "config list": (damage_json("config.json", b"[]"), r"config\.json is not a JSON"),
    "results": (damage_json("results.json", b"{"), r"results\.json is damaged"),
    "arrays": (
        lambda source: damage_arrays(source / "vae" / "checkpoints" / "20"),
        "source/vae/checkpoints/20 .*run --stage=vae",
    ),
    "metadata": (
        lambda source: (source / "vae/checkpoints/10/metadata/metadata").unlink(),
        "source/vae/checkpoints/10 has damaged metadata",
    ),
    "emptied": (
        lambda source: empty(source / "vae" / "checkpoints" / "20"),
        "source/vae/checkpoints/20 has damaged metadata",
    ),
    "other data": (
        lambda source: change_seal(source / "data.json"),
        "(?s)other data:.*train: 1,297 .*, of other content",
    ),
}


def change_seal(path):
    seal = json.loads(path.read_text())
    seal["splits"]["train"]["sha256"] = "0"
    path.write_text(json.dumps(seal))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_damaged_source_is_named_and_nothing_is_taken(run, tmp_path, kind):
    damage, message = SOURCES[kind]
    source, here = run.rename(tmp_path / "source"), tmp_path / "here"
    damage(source)
    config = settings(vae={"workdir": str(source)})
    with pytest.raises(InputError, match=message):
        stages.run(config, here, "vae")
    assert not (here / "vae").exists()


@pytest.mark.parametrize(
    "results",
    [{}, {"run": []}, {"run": {"stages": []}}, {"run": {"wall_seconds": {"vae": "x"}}}],
)
def test_a_source_without_records_is_taken_over_whole(run, tmp_path, results):
    (run / "results.json").write_text(json.dumps(results))
    config = settings(vae={"workdir": str(run)})
    stages.run(config, tmp_path / "here", "vae")
    weights = results_of(tmp_path / "here")["run"]["stages"]["vae"]["weights"]
    assert weights["vae"]["step"] == best_of(run, "vae").step
