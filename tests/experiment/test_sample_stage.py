"""`sample_stage.py`: whose draws the base prior's are."""

import types

import jax
import jax.numpy as jnp
import pytest

from ncp_jax.errors import InputError
from ncp_jax.experiment import sample_stage
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.priors import ncp_prior


@pytest.fixture
def experiment():
    config = config_lib.default(vae="nvae")
    config.sample.update(temperature=0.6, num_readjust_iterations=7)
    return types.SimpleNamespace(config=config, key=lambda name: jax.random.key(3))


def ncp_on(variables):
    vae = FrozenVAE(NVAE((8, 8, 1), dtype=jnp.bfloat16), variables)
    return ncp_prior.NCPPrior(vae, MLPDiscriminator(), ())


def test_base_draws_come_from_the_readjusted_model_in_float32(experiment, monkeypatch):
    asked = []

    def readjust(module, variables, key, temperature, num_iterations):
        asked.append((temperature, num_iterations))
        return {**variables, "batch_stats": "new"}

    monkeypatch.setattr(sample_stage, "readjust_batch_norm", readjust)
    before = {"params": "as they were", "batch_stats": "old"}
    after = sample_stage.readjusted(experiment, ncp_on(before)).vae
    assert asked == [(0.6, 7)]
    assert after.variables == {"params": "as they were", "batch_stats": "new"}
    assert after.module.dtype == jnp.float32


def test_a_model_without_batch_norm_is_refused(experiment):
    with pytest.raises(InputError, match=r"num_readjust_iterations.*'nvae' has none"):
        sample_stage.readjusted(experiment, ncp_on({"params": {}}))
