"""Every recipe of the docs runs, where the package that it is about is installed."""

import runpy
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "recipes"
NEEDS = {
    "own_densities": "ncp_jax",
    "nnx_vae": "flax.nnx",
    "equinox_vae": "equinox",
    "torch_vae": "torch",
    "blackjax_sampler": "blackjax",
}


@pytest.fixture
def lenient():
    """The packages of others were not written for what our tests ask of ours."""
    with (
        warnings.catch_warnings(),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        warnings.simplefilter("ignore")
        yield


def test_every_recipe_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_a_recipe_runs_and_its_discriminator_learns(name, lenient):
    pytest.importorskip(NEEDS[name], exc_type=ImportError)
    found = runpy.run_path(str(FOLDER / f"{name}.py"))
    if name == "blackjax_sampler":
        z = np.asarray(found["draws"][0])
        assert z.shape == (200, 1, 2) and np.isfinite(z).all()
        assert 0.5 < found["acceptance"].mean() < 1.0
        return
    loss = found["numbers"]["nce_loss"]  # an untrained VAE's prior is far from its q
    assert loss.value + 5 * loss.stderr < 2 * np.log(2)
    assert np.isfinite(found["numbers"]["gain_nats"].value)
    assert all(np.isfinite(z).all() for z in found["draws"].latents)
