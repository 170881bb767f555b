"""`stages.run`: every config, smoke-sized, through all stages."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ncp_jax.errors import InputError
from ncp_jax.experiment import sample_stage, stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import wiring
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.models.base import Block
from ncp_jax.pages import run_page
from ncp_jax.pages.parts import pictures
from ncp_jax.training import loop
from ncp_jax.training.run_log import read_metrics
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(
    path.stem
    for path in CONFIGS.glob("[!_]*.py")
    if not path.stem.endswith("_nvae")  # those: test_nvae_configs.py
    and not path.stem.endswith("_rae")  # those: test_rae_configs.py
    and path.stem != "mnist_vaebm"  # that: test_vaebm_runs.py
    and not path.stem.startswith("priors_")  # those: test_compare_stage.py
    and path.stem not in ("static_mlp", "fashion_mlp")  # mnist_mlp on other data
)
DRAWN = ("base", "sir", "langevin")
WITHOUT_FILES = ("digits", "toy25")  # data sets that need none
METRICS = (
    "elbo_base",
    "nll_base",
    "log_z",
    "nll_ncp",
    "nll_snis",
    "nce_loss",
    "jsd",
    "ess_fraction",
    "gain_nats",
)


def load(name, variant):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def contents(workdir):
    """The bytes of all files that a stage has written, without the report."""
    skipped = ("report", ".lock", "environment.json")
    return {
        path.relative_to(workdir): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.relative_to(workdir).parts[0] not in skipped
    }


@pytest.fixture(scope="module", params=NAMES)
def run(request, tmp_path_factory):
    """(config, workdir) of a whole smoke run."""
    config = load(request.param, "smoke")
    if config.data.name not in WITHOUT_FILES and not os.environ.get("NCP_JAX_DATA"):
        pytest.skip(f"{config.data.name} needs files; NCP_JAX_DATA names no folder")
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    stages.run(config, workdir, "all")
    return config, workdir


@pytest.mark.parametrize("name", ["static_mlp", "fashion_mlp"])
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_some_configs_are_mnist_mlp_on_other_data(name, variant):
    here, there = (load(n, variant).to_dict() for n in (name, "mnist_mlp"))
    assert here.pop("data")["name"] != there.pop("data")["name"]
    assert here == there


def test_every_required_metric_is_there_and_whole(run):
    _, workdir = run
    results = results_of(workdir)
    by_name = {}  # those of several groups are called "name/k"
    for name, metric in results["metrics"].items():
        by_name.setdefault(name.partition("/")[0], []).append(metric)
    for metric in (m for name in METRICS for m in by_name[name]):
        assert metric.keys() == {"value", "stderr", "n", "unit"}
        assert np.isfinite(metric["value"]) and metric["n"] >= 1 and metric["unit"]
        assert metric["stderr"] is None or metric["stderr"] >= 0
    assert all(np.isfinite(m["value"]) for m in results["metrics"].values())
    assert results["run"]["wall_seconds"].keys() == {"vae", "ncp", "sample", "evaluate"}
    assert all(seconds > 0 for seconds in results["run"]["wall_seconds"].values())
    assert {"config", "seed", "device", "git_commit", "jax"} <= results["run"].keys()


def test_the_metrics_agree_with_one_another(run):
    metrics = {n: m["value"] for n, m in results_of(run[1])["metrics"].items()}
    assert metrics["nll_base"] <= -metrics["elbo_base"] + 1e-3  # a tighter bound
    gain = metrics["nll_base"] - metrics["nll_ncp"]
    assert metrics["gain_nats"] == pytest.approx(gain, abs=1e-3)
    assert 0 < metrics["ess_fraction"] <= 1 + 1e-6


def test_every_stage_writes_its_files(run):
    config, workdir = run
    assert json.loads((workdir / "config.json").read_text()) == config_lib.as_json(
        config
    )
    for name in DRAWN:
        drawn = np.load(workdir / "samples" / f"{name}.npz")["images"]
        assert drawn.shape == (config.sample.num_images, *config.data.shape)
        assert np.isfinite(drawn).all()
        with Image.open(workdir / "samples" / f"{name}.png") as picture:
            assert min(picture.size) >= 8
    assert (workdir / "evaluation" / "arrays.npz").exists()
    assert "<html" in (workdir / "report" / "index.html").read_text()
    for stage in ("vae", "ncp"):
        assert list((workdir / "events" / stage).iterdir())
        newest = workdir / stage / "checkpoints" / str(config[stage].num_steps)
        assert newest.is_dir()


def test_all_again_changes_nothing(run, capsys):
    config, workdir = run
    before = contents(workdir)
    stages.run(config, workdir, "all")
    assert contents(workdir) == before
    shown = capsys.readouterr().out
    assert "vae: complete" in shown and "ncp: complete" in shown


# --- stages alone, on one small run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A workdir with both stages trained, in twenty steps each."""
    workdir = tmp_path_factory.mktemp("small") / "run"
    for stage in ("vae", "ncp"):
        stages.run(tiny.config(), workdir, stage)
    return workdir


def test_samples_may_be_drawn_again_with_other_settings(small):
    for num_images, num_proposals in ((4, 10), (6, 20)):
        config = tiny.config()
        config.sample.update(
            num_images=num_images,
            batch_size=4,
            num_proposals=num_proposals,
            langevin_num_steps=2,
        )
        stages.run(config, small, "sample")
        images = np.load(small / "samples" / "sir.npz")["images"]
        assert images.shape == (num_images, 8, 8, 1)
        assert results_of(small)["metrics"]["sir_ess"]["value"] <= num_proposals


def test_an_export_begins_with_the_samples(small):
    config = tiny.config()
    config.sample.update(num_images=4, batch_size=4, num_proposals=10)
    config.sample.samplers = ("sir",)
    config.export.update(num_images=6, format="npz")
    for stage in ("sample", "export"):
        stages.run(config, small, stage)
    exported = np.load(small / "export" / "sir" / "images.npz")["arr_0"]
    samples = np.load(small / "samples" / "sir.npz")["images"]
    np.testing.assert_array_equal(exported[:4], pictures.to_uint8(samples))
    assert len(exported) == 6


def test_every_sampler_draws_if_it_is_asked_to(small):
    config = tiny.config()
    names = ("mala", "isir", "sirmala")
    config.sample.update(
        samplers=names,
        dtype="bfloat16",
        num_images=4,
        batch_size=4,
        num_proposals=8,
        num_iterations=2,
        mala_num_steps=4,
        memory_mib=1,
    )
    stages.run(config, small, "sample")
    drawn = {path.stem for path in (small / "samples").glob("*.npz")}
    assert drawn == {"base", *names}  # nothing of an earlier call
    found = results_of(small)["metrics"]
    for name in ("mala_acceptance", "isir_acceptance", "sirmala_acceptance"):
        assert 0 <= found[name]["value"] <= 1
    assert found["isir_ess"]["value"] <= 4 and found["sirmala_ess"]["value"] <= 8


def test_every_group_may_have_a_langevin_step_of_its_own(small):
    config = tiny.config()
    config.sample.update(num_images=2, langevin_num_steps=2, samplers=("langevin",))
    config.sample.langevin_step_sizes = (0.1, 0.2)
    with pytest.raises(InputError, match="langevin_step_sizes holds 2 numbers for 1"):
        stages.run(config, small, "sample")
    config.sample.langevin_step_sizes = (0.1,)
    stages.run(config, small, "sample")


def test_an_nll_that_was_given_does_not_outlive_its_refusal(small, capsys):
    config = tiny.config()
    config.sample.update(num_proposals=10, langevin_num_steps=2, num_images=4)
    config.evaluate.max_examples = 20
    stages.run(config, small, "sample")
    stages.run(config, small, "evaluate")
    assert {"nll_ncp", "gain_nats"} <= results_of(small)["metrics"].keys()
    arrays = np.load(small / "evaluation" / "arrays.npz")
    metrics = results_of(small)["metrics"]
    for name in ("nce_loss", "sir_ess"):
        row = [metrics[name]["value"], metrics[name]["stderr"]]
        np.testing.assert_array_equal(arrays[name], [row])
    capsys.readouterr()
    config.evaluate.max_log_z_stderr = 1e-5
    stages.run(config, small, "evaluate")
    metrics, shown = results_of(small)["metrics"], capsys.readouterr().out
    assert not {"nll_ncp", "gain_nats"} & metrics.keys()
    assert {"log_z", "nll_base", "nll_snis", "sir_ess"} <= metrics.keys()
    assert f"about {metrics['log_z_draws_missing']['value']:,.0f} more draws" in shown
    assert "<html" in run_page.write(small).read_text()


def test_training_again_with_other_settings_is_refused(small):
    config = tiny.config()
    config.ncp.learning_rate = 0.5
    for stage in ("ncp", "sample", "all"):
        with pytest.raises(InputError, match=r"config\.ncp\.learning_rate: .* -> 0\.5"):
            stages.run(config, small, stage)


@pytest.mark.parametrize("stage", ["all", "vae", "ncp"])
def test_a_length_that_no_stage_of_this_call_trains_is_refused(small, stage):
    """And is not written: the old length would be the one that is refused next."""
    before = (small / "config.json").read_bytes()
    source = "" if stage == "ncp" else "another_run"  # from where stage 1 would come
    config = tiny.config(vae={"workdir": source, "num_steps": 1_000})
    with pytest.raises(InputError, match=r"config\.vae\.num_steps: \d+ -> 1000\n"):
        stages.run(config, small, stage)
    assert (small / "config.json").read_bytes() == before


def test_groups_that_the_model_lacks_are_refused(small):
    config = tiny.config()
    config.sample.groups = (0, 1)
    with pytest.raises(InputError, match=r"config\.sample\.groups = \(0, 1\).* 0 to 0"):
        stages.run(config, small, "sample")


def test_a_stage_whose_groups_have_all_stopped_is_complete(small, tmp_path, capsys):
    """With a learning rate of nothing the second validation is not better."""
    shutil.copytree(small / "vae", tmp_path / "vae")
    config = tiny.config()
    config.ncp.update(patience=1, learning_rate=1e-30, steps_per_eval=5)
    stages.run(config, tmp_path, "ncp")
    steps = {r["step"]: r for r in read_metrics(tmp_path / "metrics.jsonl")}
    assert list(steps) == [5, 10]
    assert newest_step(tmp_path / "ncp") == 20 == config.ncp.num_steps
    before = contents(tmp_path)
    said = capsys.readouterr().out
    assert "log r of group 0 is constant" in said and "ncp.weight_decay" in said
    stages.run(config, tmp_path, "ncp")
    assert "ncp: complete, 20 steps" in capsys.readouterr().out
    assert contents(tmp_path) == before
    with contextlib.closing(
        Workdir(tmp_path, config_lib.as_json(config), {})
    ) as folder:
        here = wiring.Experiment(config, folder, wiring.load_data(config))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(here.load_ncp()))


def test_stage_2_may_be_trained_again_on_the_stage_1_of_another_run(small, tmp_path):
    """Other draws and weights from another `ncp.seed`, on the same frozen model."""
    source, tmp_path = tmp_path / "source", tmp_path / "run"
    shutil.copytree(small, source)
    results, elsewhere = results_of(source), {"git_commit": "another"}
    results["run"]["stages"]["vae"]["environment"] = elsewhere
    (source / "results.json").write_text(json.dumps(results))
    config = tiny.config(vae={"workdir": str(source)}, ncp={"seed": 1})
    for stage in ("vae", "ncp"):
        stages.run(config, tmp_path, stage)
    first, second = (read_metrics(path / "metrics.jsonl") for path in (small, tmp_path))
    assert [r["step"] for r in second] == [r["step"] for r in first]
    for before, after in zip(first, second, strict=True):
        assert (before == after) == (before["stage"] == "vae")
    of = results_of(tmp_path)["run"]["stages"]
    assert of["vae"]["environment"] == elsewhere != of["ncp"]["environment"]
    (tmp_path / "metrics.jsonl").unlink()
    stages.run(config, tmp_path, "vae")  # taken over once, not again
    assert not (tmp_path / "metrics.jsonl").exists()


def test_stage_2_may_weigh_its_negatives_and_keep_what_gains_most(small, tmp_path):
    shutil.copytree(small / "vae", tmp_path / "vae")
    config = tiny.config()
    config.ncp.update(
        negative_weight=30.0,
        select_by="gain",
        weight_decays=(0.1,),
        learning_rate=0.01,
        steps_per_eval=5,
    )
    stages.run(config, tmp_path, "ncp")
    by_split = {"train": [], "valid": []}
    for record in read_metrics(tmp_path / "metrics.jsonl"):
        by_split[record["split"]].append(record)
    gains = [r["gain"][0] for r in by_split["valid"]]
    assert by_split["valid"][-1]["best_loss"] == [-max(gains)]
    for r in by_split["train"] + by_split["valid"]:
        assert r["gain"][0] == pytest.approx(r["log_r_q"][0] - r["log_z"][0], abs=1e-5)
        assert r["loss"][0] == pytest.approx(np.log(31) + 30 * np.log1p(1 / 30), abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learning_rate": 1e30},
            r"stage ncp: the .* is (inf|nan) at step \d+, group 0.*\n.*\n"
            r".*config\.ncp\.learning_rate",
        ),
        ({"weight_decays": (0.1, 0.2)}, r"ncp\.weight_decays holds 2 .* for 1 groups"),
    ],
)
def test_settings_that_cannot_work_in_stage_2_are_named(
    small, tmp_path, settings, message
):
    shutil.copytree(small / "vae", tmp_path / "vae")
    config = tiny.config()
    config.ncp.update(settings)
    with pytest.raises(InputError, match=message):
        stages.run(config, tmp_path, "ncp")


def test_ranking_may_join_the_loss_of_stage_2(small, tmp_path):
    settings = {"num_negatives": 3, "ranking_weight": 1.0, "learning_rate": 0.01}
    config = tiny.config(vae={"workdir": str(small)}, ncp=settings)
    (tmp_path / "vae" / "checkpoints").mkdir(parents=True)  # what a refused run leaves
    stages.run(config, tmp_path, "ncp")  # takes stage 1 over, too
    *_, record = (
        r for r in read_metrics(tmp_path / "metrics.jsonl") if r["split"] == "train"
    )
    (ranking,), (loss,) = record["ranking_loss"], record["loss"]
    assert np.isfinite([ranking, loss]).all() and ranking != 0
    assert list(tmp_path.glob("ncp/checkpoints/20"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"config\.vae\.learning_rate: .* -> 0\.5"),
        ({"num_steps": 30}, "no stage 1 of 30 steps"),
    ],
)
def test_a_stage_1_that_does_not_fit_is_not_taken_over(
    small, tmp_path, changed, message
):
    config = tiny.config(vae={"workdir": str(small), **changed})
    with pytest.raises(InputError, match=message):
        stages.run(config, tmp_path, "all")
    assert not (tmp_path / "vae").exists()


def test_a_checkpoint_that_was_cut_off_is_no_stage_1(small, tmp_path, capsys):
    cut_off = tmp_path / "vae" / "checkpoints" / "20.orbax-checkpoint-tmp"
    cut_off.mkdir(parents=True)
    stages.run(tiny.config(vae={"workdir": str(small)}), tmp_path, "vae")
    assert f"vae: taken over from {small}" in capsys.readouterr().out


def test_settings_may_be_chosen_by_the_validation_set(small, tmp_path):
    """Nothing of the test set is read: other numbers, of as many examples as it has."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    config = tiny.config(evaluate={"split": "valid", "max_examples": 0})
    for stage in ("sample", "evaluate"):
        stages.run(config, tmp_path, stage)
    metrics = results_of(tmp_path)["metrics"]
    here = wiring.Experiment(config, None, wiring.load_data(config))
    assert metrics["gain_nats"]["n"] == len(here.dataset.valid)
    assert here.held_out is here.dataset.valid


def newest_step(stage):
    return max(int(path.name) for path in (stage / "checkpoints").iterdir())


def test_batches_may_be_sent_to_the_device_one_by_one():
    """Then the inputs of a step are the examples that the indices name."""
    found = []
    for on_device in (True, False):
        config = tiny.config()
        config.data.on_device = on_device
        here = wiring.Experiment(config, None, wiring.load_data(config))
        found.append((here._train_data("vae")["train"], here._batches("vae")(3, 4)))
    (stored, indices), (nothing, examples) = found
    assert nothing is None
    assert indices.shape == (4, 32) and examples.shape == (4, 32, 8, 8, 1)
    for rows, batch in zip(indices, examples, strict=True):
        np.testing.assert_array_equal(
            loop.take(stored, rows), loop.take(nothing, batch)
        )


def test_a_run_depends_on_its_seed_alone(small, tmp_path):
    """The same settings give the same bytes; another seed gives others."""
    stages.run(tiny.config(), tmp_path / "same", "vae")
    stages.run(tiny.config(seed=1), tmp_path / "other", "vae")
    first = (small / "metrics.jsonl").read_text().splitlines()
    same, other = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("same", "other")
    )
    assert same == first[: len(same)] and len(same) > 0
    assert not set(other) & set(first)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vae.num_steps", 0, "config.vae.num_steps must be"),
        ("ncp.batch_size", 5_000, "1297 training examples"),
        ("data.name", "digitz", "Did you mean 'digits'"),
        ("data.shape", (28, 28, 1), "(8, 8, 1)"),
        ("ncp.discriminator.hidden_dims", (), "must hold positive integers"),
        ("vae.model.likelihood", "normal", "no likelihood of zeros and ones"),
        ("data.binarization", "none", "no likelihood of real numbers"),
        ("vae.model.name", "nvae", "must be one of ('mlp',)"),
        ("sample.groups", (-1,), "integers from 0 on"),
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_made(
    tmp_path, name, value, message
):
    config = tiny.config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(InputError) as refused:
        stages.run(config, tmp_path / "run", "all")
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_is_refused_with_the_stages(tmp_path):
    with pytest.raises(
        InputError, match="vae, import, ncp, vaebm, sample, evaluate, compare"
    ):
        stages.run(tiny.config(), tmp_path / "run", "train")


def test_a_sampler_that_leaves_the_finite_numbers_is_told(small):
    config = tiny.config()
    config.sample.update(num_images=2, batch_size=2, num_proposals=2)
    config.sample.update(langevin_num_steps=50, langevin_step_size=1e30)
    with (
        contextlib.suppress(RuntimeWarning),
        pytest.raises(InputError, match="langevin_step_size"),
    ):
        stages.run(config, small, "sample")


SAMPLES = {  # of three pictures of two groups, as `sample` leaves them
    "images": np.zeros((3, 8, 8, 1), np.float32),
    "latents_0": np.zeros((3, 2, 5), np.float32),
}
OF_CHAINS = {name: np.zeros((2, 9)) for name in sample_stage.LANGEVIN_FIELDS}


def changed(**arrays):
    """Writes samples of which some arrays are others, or lacking where None."""
    kept = {name: a for name, a in (SAMPLES | arrays).items() if a is not None}
    return lambda path: np.savez(path, **kept)


def rewritten(path, change):
    content = path.read_bytes()
    path.write_bytes(change(content))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("sir", lambda path: rewritten(path, lambda old: old[:300]), "not a zip file"),
        ("base", lambda path: rewritten(path, lambda old: b""), "not a zip file"),
        ("langevin", changed(), "lacks .*'gradient_norm', 'log_density'"),
        (
            "langevin",
            changed(**OF_CHAINS, images=np.zeros(3)),
            r"images is float64 \[3",
        ),
        (
            "langevin",
            changed(**OF_CHAINS | {"log_density": np.zeros((3, 9))}),
            "as of log_density, it must be 3|as of gradient_norm, it must be 2",
        ),
        ("sir", changed(images=None), "lacks .*'images'"),
        ("sir", changed(latents_0=None), "lacks .*'latents_0'"),
        ("sir", changed(latents_0=np.float32(1)), r"latents_0 is float32 \[\]"),
        ("sir", changed(latents_0=np.zeros((3, 2, 4))), "4 stands, it must be 5"),
        ("sir", changed(images=np.zeros((2, 8, 8, 1))), "2 stands, it must be 3"),
        ("sir", changed(latents_0=np.zeros((2, 2, 5))), "2 stands, it must be 3"),
        ("sir", changed(images=np.full((3, 8, 8, 1), "x")), "images is <U1"),
        ("sir", changed(images=np.full((3, 8, 8, 1), np.nan)), "images is not finite"),
        ("sir", lambda path: path.write_bytes(npy(np.zeros(3))), r"one array, \.npy"),
    ],
)
def test_damaged_samples_are_named(tmp_path, name, damage, reason):
    folder = tmp_path / "samples"
    folder.mkdir()
    for sampler in DRAWN:
        arrays = SAMPLES | (OF_CHAINS if sampler == "langevin" else {})
        np.savez(folder / f"{sampler}.npz", **arrays)
    config = config_lib.default()
    config.sample.num_images = 3
    here = types.SimpleNamespace(
        path=tmp_path, config=config, vae_blocks=(Block(2, (5,), (0,)),)
    )
    assert sample_stage.load_samples(here).keys() == {*DRAWN}
    damage(folder / f"{name}.npz")
    message = rf"{name}\.npz is damaged \(.*({reason}).*\): run --stage=sample again"
    with pytest.raises(InputError, match=message):
        sample_stage.load_samples(here)


def npy(array):
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_samples_of_other_settings_are_not_measured(small):
    config = tiny.config()
    config.sample.num_images = 7
    with pytest.raises(InputError, match="--stage=sample first"):
        stages.run(config, small, "evaluate")


def test_a_report_needs_neither_the_data_nor_the_lock(run):
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.data.update(name="mnist", shape=(28, 28, 1), dir="nowhere")
    page = workdir / "report" / "index.html"
    page.unlink()
    with contextlib.closing(Workdir(workdir, json.loads(run[0].to_json()), {})):
        stages.run(config, workdir, "report")
    assert page.exists()


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    assert stages._git_commit(tmp_path) == "unknown"
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert stages._git_commit(tmp_path) == "unknown"
