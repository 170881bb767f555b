"""`architectures.py`: every name builds, with the defaults that its module has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.experiment.setup import architectures, validation
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.models.distributions import WHITE

DISCRIMINATORS, VAES = config_lib.DISCRIMINATORS, config_lib.VAES
NOT_OF_THE_MODEL = {"data_shape", "num_bits"}  # but of the data
NEVER_SET = {"axis_name", "parent", "name"}


def build_vae(name, **settings):
    model = config_lib.default(vae=name).vae.model
    model.update(settings)
    return architectures.build_vae(model, (32, 32, 3), 5)


def build_discriminator(name, **settings):
    section = config_lib.default(discriminator=name).ncp.discriminator
    section.update(settings)
    return architectures.build_discriminator(section)


def fields(module):
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in NEVER_SET
    }


@pytest.mark.parametrize("name", VAES)
def test_every_vae_builds_with_the_defaults_of_its_module(name):
    module = build_vae(name)
    expected = fields(module)
    assert VAES[name].keys() == expected.keys() - NOT_OF_THE_MODEL
    for field in VAES[name]:
        assert getattr(module, field) == expected[field], field
    assert module.data_shape == (32, 32, 3)
    assert sum(block.num_groups for block in module.blocks) >= 1


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_every_discriminator_builds_with_the_defaults_of_its_module(name):
    module = build_discriminator(name)
    expected = fields(module)
    assert DISCRIMINATORS[name].keys() == expected.keys()
    for field in DISCRIMINATORS[name]:
        assert getattr(module, field) == expected[field], field
    z = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    context = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    log_r, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), z, context
    )
    assert log_r.shape == (2,) and log_r.dtype == jnp.float32
    assert variables.keys() == {"params"}


def test_settings_reach_the_module():
    nvae = build_vae("nvae", groups_per_scale=(2, 3), likelihood="logistic_mixture")
    assert (nvae.groups_per_scale, nvae.num_bits, nvae.white) == ((2, 3), 5, WHITE)
    assert [block.num_groups for block in nvae.blocks] == [1, 1, 3]
    assert build_vae("mlp", latent_dim=7).blocks[0].latent_shape == (7,)
    ladder = build_vae("ladder", latent_dims=(2, 3), is_residual_posterior=False)
    assert [block.latent_shape for block in ladder.blocks] == [(2,), (3,)]
    assert [block.context_shape for block in ladder.blocks] == [(0,), (2,)]
    assert not ladder.is_residual_posterior
    assert build_vae("conv_hvae", latent_dim=7).blocks[1] == (1, (7,), (7,))
    assert build_discriminator("residual", blocks="AB").blocks == "AB"
    assert build_discriminator("mlp", hidden_dims=(3,)).hidden_dims == (3,)


@pytest.mark.parametrize("name", validation.DTYPES)
def test_names_of_dtypes_become_dtypes(name):
    for module in (
        build_vae("nvae", dtype=name),
        build_discriminator("residual", dtype=name),
    ):
        assert module.dtype == jnp.dtype(name)
        assert not isinstance(module.dtype, str)


def settings(**changes):
    section = config_lib.default(vae="nvae").vae
    section.update(changes)
    return section


@pytest.mark.parametrize("groups_per_scale", [(3,), (1, 4), (2, 3, 5)])
def test_kl_balancing_knows_the_groups_of_each_scale(groups_per_scale):
    """The first group, a block of its own, belongs to the coarsest scale."""
    blocks = build_vae("nvae", groups_per_scale=groups_per_scale).blocks
    section = settings(num_steps=70, kl_warmup_fraction=0.3, kl_constant_fraction=0.1)
    warmup = architectures.build_warmup(section, blocks)
    scales = [np.full(n, 4.0**s / n) for s, n in enumerate(groups_per_scale)]
    alphas = np.concatenate(scales)
    np.testing.assert_allclose(warmup.alphas, alphas / alphas.min(), rtol=1e-6)
    assert (warmup.num_steps, warmup.warmup_fraction) == (70, 0.3)
    assert warmup.constant_fraction == 0.1
    section.is_kl_balanced = False
    assert architectures.build_warmup(section, blocks).alphas is None


def test_penalty_and_optimiser_follow_their_settings():
    section = settings(penalty_weight=0.1, initial_penalty_weight=10.0)
    penalty = architectures.build_penalty(section)
    assert (penalty.weight, penalty.initial_weight) == (0.1, 10.0)
    assert architectures.build_penalty(settings()).weight == 0.0
    section = settings(
        optimizer="adamax",
        num_steps=10,
        learning_rate=0.5,
        final_learning_rate=0.1,
        schedule="cosine",
        weight_decay=2.0,
    )
    optimizer, w = architectures.build_optimizer(section), jnp.array([1.0, -1.0])
    state = optimizer.init(w)
    with jax.numpy_dtype_promotion("standard"):  # Adamax counts its steps in int32
        for rate in (0.5, 0.5 - 0.4 * (1 - np.cos(np.pi / 10)) / 2):
            updates, state = optimizer.update(jnp.zeros(2), state, w)
            # All of the gradient is decay, 2 w, against eps 1e-3.
            np.testing.assert_allclose(updates, -rate * w * 2 / 2.001, rtol=1e-5)


@pytest.mark.parametrize("name", VAES)
def test_initial_variables_are_those_of_the_module(name):
    """Whatever generator makes them."""
    small = {"nvae": {"groups_per_scale": (1,), "num_preprocess_blocks": 1}}
    module = build_vae(name, **small.get(name, {}))
    key, x = jax.random.key(1), jnp.zeros((1, 32, 32, 3))
    found = jax.eval_shape(lambda: architectures.init_vae(module, x.shape[1:], key))
    assert found == jax.eval_shape(module.init, key, x, key)
