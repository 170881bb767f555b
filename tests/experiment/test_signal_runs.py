"""Runs of a config whose stage 2 reads signal directions, or standardised noise."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import StandardizedVAE
from ncp_jax.training import loop
from ncp_jax.training.checkpoints import digests
from ncp_jax.training.ncp import encodings
from ncp_jax.training.ncp.signal import SignalSettings
from ncp_jax.training.run_log import RunLog
from tests import tiny

DIRECTIONS = {"cap": 2, "context_size": 1, "num_examples": 200, "num_encodings": 2}


def config(directions=None, **ncp):
    """A ladder of two groups on digits; stage 2 on directions if there are any."""
    small = presets.variant(config_lib.default(vae="ladder"), "smoke")
    settings = {n: v for n, v in tiny.SETTINGS.items() if "latent_dim" not in n}
    small.update_from_flattened_dict(
        settings | {"vae.model.latent_dims": (2, 3), "vae.model.hidden_dims": (16,)}
    )
    small.data.update(name="digits", shape=(8, 8, 1))
    small.ncp.directions.update(DIRECTIONS if directions is None else directions)
    small.ncp.update(ncp)
    small.sample.samplers = ("sir",)
    small.evaluate.max_examples = 40
    return small


def test_defaults_of_configs_are_those_of_fit():
    assert dataclasses.asdict(SignalSettings()) == config_lib.DIRECTIONS | {"cap": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir) of all stages."""
    workdir = tmp_path_factory.mktemp("signal") / "run"
    settings = config()
    stages.run(settings, workdir, "all")
    return settings, workdir


def found_in(workdir):
    (path,) = (workdir / "ncp").glob("directions-*.npz")
    return path, Directions.load(path)


def test_results_and_page_name_the_directions_of_every_group(run):
    _, workdir = run
    _, directions = found_in(workdir)
    metrics = json.loads((workdir / "results.json").read_text())["metrics"]
    for k, width in enumerate(directions.widths):
        assert metrics[f"num_directions/{k}"]["value"] == width
        total = metrics[f"signal_total/{k}"]
        assert total["stderr"] > 0 and total["n"] == 200
    html = (workdir / "report" / "index.html").read_text()
    assert ">Signal directions<" in html
    for width in directions.widths:
        assert f"{width} direction" in html
    with np.load(workdir / "evaluation" / "arrays.npz") as arrays:
        assert arrays["signal_spectrum"].shape == (2, 3)
        np.testing.assert_array_equal(arrays["signal_widths"], directions.widths)


def test_samples_and_their_mmd_are_of_the_vae_s_own_groups(run):
    _, workdir = run
    with np.load(workdir / "samples" / "sir.npz") as drawn:
        shapes = [drawn[name].shape for name in ("latents_0", "latents_1")]
        assert shapes == [(16, 1, 2), (16, 1, 3)] and "latents_2" not in drawn
    metrics = json.loads((workdir / "results.json").read_text())["metrics"]
    assert {"mmd_base/0", "mmd_base/1"} <= metrics.keys()
    assert "mmd_base/2" not in metrics


def test_samples_in_other_latents_are_named(run, tmp_path):
    settings, workdir = run
    path = workdir / "samples" / "base.npz"
    whole = path.read_bytes()
    with np.load(path) as drawn:
        arrays = dict(drawn)
    np.savez(path, **(arrays | {"latents_0": arrays["latents_0"][..., :1]}))
    with pytest.raises(
        InputError, match=r"base\.npz .*latents_0 .*must be 2.*stage=sample"
    ):
        stages.run(settings, workdir, "evaluate")
    path.write_bytes(whole)


def test_a_complete_stage_makes_no_encodings_again(run, monkeypatch, capsys):
    monkeypatch.delattr(encodings, "pool")
    stages.run(*run, "ncp")
    assert "ncp: complete, 20 steps" in capsys.readouterr().out


def test_damaged_directions_are_named(run):
    settings, workdir = run
    path, _ = found_in(workdir)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{path.name}.*delete it and fit them again"):
        stages.run(settings, workdir, "sample")
    path.write_bytes(whole)


# --- stage 2 in pieces


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stage_1") / "run"
    stages.run(config(), workdir, "vae")
    return workdir


@contextlib.contextmanager
def opened(path, settings):
    experiment = tiny.experiment(path, settings)
    with contextlib.closing(experiment.workdir):
        yield experiment


def train(path, settings, stops):
    """Trains stage 2 in pieces that end at `stops`; digests of the state, the model."""
    with opened(path, settings) as experiment:
        for stop in stops:
            vae = experiment.load_vae()
            with experiment.checkpoints("ncp", vae) as checkpoints:
                task, state = experiment.ncp_task(vae)
                if restored := checkpoints.restore_latest(experiment.state_shapes(vae)):
                    state = restored.state
                log = RunLog(path, "ncp", int(state.step), 20)
                with contextlib.closing(log):
                    state = loop.fit(
                        task,
                        state,
                        checkpoints,
                        log,
                        num_steps=stop,
                        steps_per_dispatch=5,
                        steps_per_eval=10,
                    )
        return digests(task.collect(state)), experiment.in_signal_space(vae)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"context": "none"}, SignalVAE),
        ({"is_joint": True, "context_size": 0}, SignalVAE),
        pytest.param({"context": "features"}, DirectedVAE, marks=pytest.mark.slow),
    ],
    ids=["none", "joint", "features"],
)
def test_stage_2_resumes_bit_for_bit(stage_1, tmp_path, changes, kind):
    settings = config(DIRECTIONS | changes)
    settings.vae.workdir = str(stage_1)
    ends = []
    for name, stops in (("a", [20]), ("b", [10, 20])):
        stages.run(settings, tmp_path / name, "vae")
        ends.append(train(tmp_path / name, settings, stops))
    (unbroken, model), (resumed, other) = ends
    assert unbroken == resumed
    assert isinstance(model, kind)
    assert model.directions.digest() == other.directions.digest()
    has_context = any(0 not in block.context_shape for block in model.blocks)
    assert has_context == (kind is DirectedVAE)
    if kind is SignalVAE:
        assert model.is_joint == changes.get("is_joint", False)
        return
    stages.run(settings, tmp_path / "b", "sample")
    with np.load(tmp_path / "b" / "samples" / "sir.npz") as drawn:
        assert drawn["latents_1"].shape == (16, 1, 3)


def test_another_stage_1_has_directions_of_its_own(stage_1, tmp_path):
    """In the same folder, under another name; and no use for the old checkpoints."""
    settings = config()
    settings.vae.workdir = str(stage_1)
    stages.run(settings, tmp_path, "vae")
    with opened(tmp_path, settings) as here:
        vae = here.load_vae()
        first = here.in_signal_space(vae)
        moved = jax.tree.map(lambda leaf: 1.1 * leaf, vae)
        second = here.in_signal_space(moved)
        assert first.directions.digest() != second.directions.digest()
        assert len([*(tmp_path / "ncp").glob("directions-*.npz")]) == 2
        again = here.in_signal_space(vae)
        assert again.directions.digest() == first.directions.digest()
        with here.checkpoints("ncp", vae) as checkpoints:
            state = here.ncp_task(vae)[1]
            checkpoints.save(0, state, None)
        for path in (tmp_path / "ncp").glob("directions-*.npz"):
            if Directions.load(path).digest() == first.directions.digest():
                second.directions.save(path)
        with (
            here.checkpoints("ncp", vae) as checkpoints,
            pytest.raises(InputError, match="with another directions "),
        ):
            checkpoints.restore_latest(state)


# --- standardised noise


def test_discriminators_may_read_standardised_noise(stage_1, tmp_path):
    settings = config({"cap": 0}, standardize=True)
    settings.vae.workdir = str(stage_1)
    for stage in ("vae", "ncp", "sample"):
        stages.run(settings, tmp_path, stage)
    with opened(tmp_path, settings) as here:
        assert isinstance(here.load_ncp().vae, StandardizedVAE)
    with np.load(tmp_path / "samples" / "sir.npz") as drawn:
        assert drawn["latents_1"].shape == (16, 1, 3)


def test_both_at_once_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"standardize.*one or the other"):
        stages.run(config(standardize=True), tmp_path / "run", "vae")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": "all"}, r"directions\.context must be one of"),
        ({"context": "features", "is_joint": True}, "is_joint is one ratio"),
        ({"context": "features", "cap": 0}, r"give config\.ncp\.directions\.cap"),
        ({"with_maps": True}, "context='features' or 'none'"),
        ({"with_maps": True, "context": "none"}, r"maps .*one of shape \(2,\)"),
    ],
)
def test_what_a_ratio_cannot_read_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        stages.run(config(DIRECTIONS | changes), tmp_path / "run", "vae")
    assert not (tmp_path / "run").exists()


def test_one_joint_ratio_has_no_groups_to_choose(tmp_path):
    settings = config(DIRECTIONS | {"is_joint": True})
    settings.sample.groups = (0,)
    with pytest.raises(InputError, match=r"sample\.groups.*is_joint there is one"):
        stages.run(settings, tmp_path / "run", "vae")
    settings.sample.groups = ()
    settings.ncp.weight_decays = (0.1, 0.2)
    with pytest.raises(InputError, match="holds 2 numbers for 1 groups"):
        stages.run(settings, tmp_path / "run", "vae")
