"""`vae_stage.py`: the loss by hand, its warm-up, and validation under padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax import rng, training, vae_stage
from ncp_jax.models.base import ElboTerms
from ncp_jax.models.mlp_vae import MLPVAE

MODULE = MLPVAE((3,), 2, (8,), likelihood="normal", likelihood_std=0.5)
TRAIN = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)


def start(optimizer):
    init = jax.jit(MODULE.init)
    variables = init(jax.random.key(1), jnp.zeros((1, 3)), jax.random.key(2))
    params = variables.pop("params")
    return training.init_state(params, variables, optimizer, 0.0)


def as_it_is(key, stored):
    del key
    return stored


def terms_at(state, x, key):
    variables = {"params": state.params, **state.model_state}
    return MODULE.apply(variables, x, key, method="elbo_terms")


@pytest.mark.parametrize("kl_weight", [0.0, 0.25, 1.0])
def test_elbo_loss_by_hand(kl_weight):
    terms = ElboTerms(jnp.array([-3.0, -5.0]), jnp.array([[1.0, 2.0], [0.0, 4.0]]))
    loss = vae_stage.elbo_loss(terms, kl_weight)
    np.testing.assert_allclose(loss, [3 + 3 * kl_weight, 5 + 4 * kl_weight])


def test_the_kl_weight_rises_to_one(key):
    """With a zero learning rate only the weight and the noise change."""
    optimizer = optax.sgd(0.0)
    update = jax.jit(
        vae_stage.make_update(MODULE, optimizer, as_it_is, key, kl_warmup_steps=4)
    )
    state, data = start(optimizer), {"train": jnp.asarray(TRAIN)}
    posterior_key, indices = rng.stream(key, "posterior"), jnp.arange(8)
    terms_of = jax.jit(terms_at)
    for step, weight in enumerate([0.25, 0.5, 0.75, 1.0, 1.0]):
        terms = terms_of(state, TRAIN[:8], rng.at_step(posterior_key, step))
        kl = float(terms.kl.sum(1).mean())
        expected = weight * kl - float(terms.log_likelihood.mean())
        state, metrics = update(state, data, indices)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    assert update._cache_size() == 1
    assert int(state.step) == 5


def test_updates_lower_the_loss_with_finite_gradients(key):
    optimizer = optax.sgd(1e-2)
    update = vae_stage.make_update(MODULE, optimizer, as_it_is, key)
    data, indices = {"train": jnp.asarray(TRAIN)}, jnp.tile(jnp.arange(16), (100, 1))
    run = jax.jit(
        lambda state: jax.lax.scan(lambda s, i: update(s, data, i), state, indices)
    )
    before = start(optimizer)
    after, metrics = run(before)
    assert np.isfinite(metrics["gradient_norm"]).all()
    assert (metrics["gradient_norm"] > 0).all()
    assert metrics["loss"][-20:].mean() < 0.8 * metrics["loss"][:5].mean()
    assert np.unique(metrics["loss"]).size == 100  # fresh noise at every step
    for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True):
        assert not np.array_equal(a, b)
    np.testing.assert_array_equal(  # a constant, not a weight
        *(s.model_state["statistics"]["data_mean"] for s in (before, after))
    )


def test_one_update_is_the_gradient_of_the_elbo(key):
    optimizer = optax.sgd(0.1)
    state, x = start(optimizer), jnp.asarray(TRAIN[:4])
    noise = rng.at_step(rng.stream(key, "posterior"), 0)

    def loss(params):
        terms = terms_at(state.replace(params=params), x, noise)
        return jnp.mean(jnp.sum(terms.kl, 1) - terms.log_likelihood)

    gradients = jax.jit(jax.grad(loss))(state.params)
    update = jax.jit(vae_stage.make_update(MODULE, optimizer, as_it_is, key))
    after, metrics = update(state, {"train": jnp.asarray(TRAIN)}, jnp.arange(4))
    for new, old, g in zip(
        *map(jax.tree.leaves, (after.params, state.params, gradients)), strict=True
    ):
        np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-4, atol=1e-6)
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics["gradient_norm"], squares**0.5, rtol=1e-5)


def test_validation_ignores_padding_and_uses_its_key(key):
    state = start(optax.sgd(0.1))

    def noisy(key, stored):
        return stored + jax.random.normal(key, stored.shape)

    rows = jnp.asarray(TRAIN[:8].reshape(2, 4, 3))
    mask = jnp.array([[True] * 4, [True, False, False, False]])

    validate = jax.jit(vae_stage.make_validate(MODULE, noisy, key))

    def value(rows, mask=mask):
        data = {"valid": rows, "valid_mask": mask}
        return float(validate(state, data)["loss"])

    expected = value(rows)
    assert value(rows) == expected
    assert value(rows.at[1, 1:].set(99.0)) == expected
    assert value(rows.at[1, 0].set(99.0)) != expected
    # By hand: the sum over the five examples, at the noise of their batch.
    total = 0.0
    for i, count in enumerate([4, 1]):
        batch_key = rng.at_step(key, i)
        x = noisy(rng.stream(batch_key, "prepare"), rows[i])
        terms = terms_at(state, x, rng.stream(batch_key, "posterior"))
        total += float((terms.kl.sum(1) - terms.log_likelihood)[:count].sum())
    np.testing.assert_allclose(expected, total / 5, rtol=1e-5)


def test_validation_measures_the_averaged_weights(key):
    state = start(optax.sgd(0.1))
    validate = jax.jit(vae_stage.make_validate(MODULE, as_it_is, key))
    data = {"valid": jnp.asarray(TRAIN[None]), "valid_mask": jnp.ones((1, 16), bool)}
    average = jax.tree.map(lambda leaf: 0.5 * leaf, state.params)
    both = state.replace(ema_params=average)
    only = state.replace(params=average)
    np.testing.assert_allclose(
        validate(both, data)["loss"], validate(only, data)["loss"], rtol=1e-6
    )
    assert validate(both, data)["loss"] != validate(state, data)["loss"]
