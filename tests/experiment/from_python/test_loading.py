"""`loading.py`: what a run of `main.py` has trained, from Python."""

import json
import shutil

import jax
import numpy as np
import pytest

import ncp_jax
from ncp_jax.errors import InputError
from ncp_jax.experiment import stages
from ncp_jax.priors.signal_space import SignalVAE
from tests import tiny
from tests.experiment import test_signal_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run without directions, sampled."""
    workdir = tmp_path_factory.mktemp("loading") / "run"
    settings = tiny.config()
    settings.sample.samplers = ("sir",)
    for stage in ("vae", "ncp", "sample"):
        stages.run(settings, workdir, stage)
    return workdir


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def test_a_run_s_prior_is_that_of_its_samples(run, monkeypatch):
    monkeypatch.setenv("NCP_JAX_DATA", "/nowhere")
    before = contents(run)
    prior = ncp_jax.load(run)
    assert contents(run) == before
    out = ncp_jax.sample(prior, jax.random.key(0), 4, ncp_jax.SIR(20, 20))
    assert out.images.shape == (4, 8, 8, 1)
    with np.load(run / "samples/base.npz") as saved:
        images, z = saved["images"], saved["latents_0"][:, 0]
    decoded = prior.vae.decode(prior.vae.absorb(0, 0, prior.vae.root(len(z)), z)).mean
    np.testing.assert_allclose(decoded, images, atol=1e-5)


def test_a_training_that_is_at_work_in_the_folder_is_left_alone(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / ".lock").unlink()
    for stage in ("vae", "ncp"):
        path = copy / stage / "checkpoints" / "90.orbax-checkpoint-tmp"
        path.mkdir()
        (path / "half").write_text("written by another process")
    before = contents(copy)
    ncp_jax.load(copy)
    assert contents(copy) == before


def test_a_run_from_before_a_setting_came_is_loaded(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "config.json"
    content = json.loads(path.read_text())
    del content["vaebm"], content["ncp"]["select_by"]
    path.write_text(json.dumps(content))
    ncp_jax.load(copy)


def test_the_vae_alone_can_be_compared(run):
    vae = ncp_jax.load(str(run), "vae")
    assert isinstance(vae, ncp_jax.FrozenVAE)
    ncp_jax.check(vae, np.zeros((1, 8, 8, 1), np.float32))


def test_directions_are_those_of_the_run(tmp_path):
    settings = test_signal_runs.config()
    for stage in ("vae", "ncp"):
        stages.run(settings, tmp_path, stage)
    prior = ncp_jax.load(tmp_path)
    (path,) = (tmp_path / "ncp").glob("directions-*.npz")
    assert isinstance(prior.vae, SignalVAE)
    path.unlink()
    with pytest.raises(InputError, match="holds the signal directions"):
        ncp_jax.load(tmp_path)
    assert not path.exists()


def test_what_is_no_finished_run_is_named(run, tmp_path):
    with pytest.raises(InputError, match=r"no workdir of main\.py"):
        ncp_jax.load(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(InputError, match='stage must be "vae" or "ncp"'):
        ncp_jax.load(run, "all")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "ncp")
    ncp_jax.load(copy, "vae")
    with pytest.raises(InputError, match="stage ncp has not reached its 20 steps"):
        ncp_jax.load(copy)
