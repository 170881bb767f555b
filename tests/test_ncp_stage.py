"""`ncp_stage.py`: the loss in closed form, and a ratio that training finds."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax import ncp_stage, rng, training
from ncp_jax.latents import ContrastiveDraws
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from tests.oracles import QuadraticRatio, ThreeGroupVAE, TwoBlockVAE
from tests.statistics import assert_mean

# q = N(0.6, 0.8^2) against p = N(0, 1): log q - log p is quadratic in z.
MEAN, STD = 0.6, 0.8
TRUTH = {
    "slope": MEAN / STD**2,
    "curvature": 0.5 - 0.5 / STD**2,
    "bias": -math.log(STD) - 0.5 * (MEAN / STD) ** 2,
}


def contrastive(key, n):
    q_key, p_key = jax.random.split(key)
    return ContrastiveDraws(
        MEAN + STD * jax.random.normal(q_key, (1, n, 1)),
        jax.random.normal(p_key, (1, n, 1)),
        jnp.zeros((1, n, 0)),
    )


def ratio_params(slope, curvature, bias):
    return {
        "slope": jnp.full((1, 1), slope),
        "curvature": jnp.full((1, 1), curvature),
        "bias": jnp.full(1, bias),
    }


def test_nce_loss_at_known_logits():
    zero = jnp.zeros((2, 3))
    np.testing.assert_allclose(
        ncp_stage.nce_loss(zero, zero), 2 * math.log(2), rtol=1e-6
    )
    logit_q, logit_p = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 3.0]])
    d_q, d_p = (1 / (1 + np.exp(-np.asarray(v))) for v in (logit_q, logit_p))
    expected = -np.log(d_q).mean() - np.log(1 - d_p).mean()
    np.testing.assert_allclose(ncp_stage.nce_loss(logit_q, logit_p), [expected], 1e-6)


def test_nce_loss_and_its_gradient_survive_large_logits():
    big = jnp.full(4, 1e4)
    value, slope = jax.value_and_grad(ncp_stage.nce_loss)(-big, big)
    assert value == 2e4
    np.testing.assert_allclose(slope, -0.25)
    assert ncp_stage.nce_loss(big, -big) == 0.0


def test_group_metrics():
    logit_q = jnp.array([[1.0, 2.0, -1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    logit_p = jnp.array([[-1.0, -2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    metrics = ncp_stage.group_metrics(logit_q, logit_p)
    chex.assert_shape(list(metrics.values()), (2,))
    np.testing.assert_allclose(metrics["accuracy"], [0.625, 0.5])  # r = 1 is a guess
    log_z = np.log(np.exp(np.asarray(logit_p)).mean(1))
    np.testing.assert_allclose(metrics["log_z"], log_z, atol=1e-6)


@pytest.mark.parametrize("module", [TwoBlockVAE(), ThreeGroupVAE()])
def test_an_untrained_ratio_is_exactly_one(key, module):
    network = MLPDiscriminator((8,))
    params = jax.jit(lambda key: ncp_stage.init_params(network, module, key))(key)
    for block, stacked in zip(module.blocks, params, strict=True):
        z = jax.random.normal(key, (block.num_groups, 5, *block.latent_shape))
        context = jnp.ones((block.num_groups, 5, *block.context_shape))
        logits = ncp_stage.group_logits(network, stacked, z, context)
        np.testing.assert_array_equal(logits, np.zeros((block.num_groups, 5)))
        first = stacked["Dense_0"]["kernel"]  # but no two groups start alike
        assert np.unique(first).size == first.size


def test_the_gradient_vanishes_at_the_true_ratio_and_only_there(key):
    n, repeats = 2_000, 200

    def gradient(params, key):
        def loss(params):
            logits = ncp_stage.contrast(
                QuadraticRatio(), (params,), (contrastive(key, n),)
            )
            return jnp.sum(ncp_stage.nce_loss(*logits))

        return jax.grad(loss)(params)

    gradients = jax.jit(jax.vmap(gradient, (None, 0)))
    keys = jax.random.split(key, repeats)
    # Each is E_p[D s] - E_q[(1 - D) s] with s = 1, z, z^2 and D (or 1 - D) in [0, 1].
    second_moment = {"bias": 1.0, "slope": 1.0, "curvature": 3.0}
    at_truth = gradients(ratio_params(**TRUTH), keys)
    for name, bound in second_moment.items():
        assert_mean(at_truth[name], 0.0, std=(2 * bound / n) ** 0.5)
    off = gradients(ratio_params(**TRUTH | {"slope": 1.1 * TRUTH["slope"]}), keys)
    with pytest.raises(AssertionError):
        assert_mean(off["slope"], 0.0, std=(2 / n) ** 0.5)


def update_of(network, optimizer, vae, key):
    """One compiled update of stage 2 on data that need no preparation."""
    update = ncp_stage.make_update(network, optimizer, lambda _, x: x, key)
    data = {"vae": vae, "train": jnp.zeros((64, 3))}
    return lambda state: update(state, data, jnp.arange(64))


def frozen(module):
    keys = jax.random.split(jax.random.key(1))
    init = jax.jit(module.init)
    return FrozenVAE(module, init(keys[0], jnp.zeros((1, 3)), keys[1]))


def test_training_finds_the_true_ratio(key):
    """SGD on fresh draws, its last half averaged, against the closed form."""
    optimizer, n, num_steps = optax.sgd(1.0), 1_000, 600

    def loss(params, key):
        logits = ncp_stage.contrast(QuadraticRatio(), (params,), (contrastive(key, n),))
        return jnp.sum(ncp_stage.nce_loss(*logits))

    def step(carry, t):
        params, opt_state = carry
        gradients = jax.grad(loss)(params, rng.at_step(key, t))
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), params

    start = ratio_params(0.0, 0.0, 0.0)
    run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(num_steps)))
    _, course = run((start, optimizer.init(start)))
    z = np.linspace(-2.0, 2.0, 9)
    found = {name: float(v[num_steps // 2 :].mean()) for name, v in course.items()}

    def log_r(slope, curvature, bias):
        return bias + slope * z + curvature * z**2

    # The Fisher error of 300,000 draws per class is below 0.01 on this interval.
    np.testing.assert_allclose(log_r(**found), log_r(**TRUTH), atol=0.05)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(1.1 * log_r(**found), log_r(**TRUTH), atol=0.05)


def test_stacked_groups_train_as_they_would_alone(key):
    """Three updates of all groups at once, and of each on its own draws."""
    network, optimizer, vae = (
        MLPDiscriminator((8,)),
        optax.sgd(0.5),
        frozen(ThreeGroupVAE()),
    )
    params = jax.jit(lambda key: ncp_stage.init_params(network, vae, key))(key)
    state = training.init_state(params, {}, optimizer, 0.0)
    update = jax.jit(update_of(network, optimizer, vae, key))
    draws_key = rng.stream(key, "draws")

    @jax.jit
    def update_one(params, draws):
        def loss(params):
            logits = [
                network.apply({"params": params}, z, draws.context)
                for z in (draws.positive, draws.negative)
            ]
            return ncp_stage.nce_loss(*logits)

        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients), value

    alone = [jax.tree.map(lambda leaf, k=k: leaf[k], params[0]) for k in range(3)]
    sample = jax.jit(ncp_stage.contrastive_draws)
    for step in range(3):
        state, metrics = update(state)
        (draws,) = sample(vae, jnp.zeros((64, 3)), rng.at_step(draws_key, step))
        for k in range(3):
            group = jax.tree.map(lambda leaf, k=k: leaf[k], draws)
            alone[k], value = update_one(alone[k], group)
            np.testing.assert_allclose(metrics["loss"][k], value, rtol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    chex.assert_trees_all_close(state.params, (stacked,), rtol=1e-4, atol=1e-6)
    assert int(state.step) == 3
    assert metrics["gradient_norm"].shape == (3,)
    assert (metrics["gradient_norm"] > 0).all()


def test_update_leaves_the_vae_alone_and_draws_anew(key):
    network, optimizer, vae = (
        MLPDiscriminator((8,)),
        optax.sgd(0.0),
        frozen(TwoBlockVAE()),
    )
    params = jax.jit(lambda key: ncp_stage.init_params(network, vae, key))(key)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    state = training.init_state(params, {}, optimizer, 0.0)
    update = jax.jit(update_of(network, optimizer, vae, key))
    state, first = update(state)
    state, second = update(state)
    assert (first["loss"] != second["loss"]).all()  # the same x and weights, new noise
    assert update._cache_size() == 1


def test_validation_ignores_padding_and_repeats_itself(key):
    network, vae = MLPDiscriminator((8,)), frozen(TwoBlockVAE())
    params = jax.jit(lambda key: ncp_stage.init_params(network, vae, key))(key)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    state = training.init_state(params, {}, optax.sgd(0.1), 0.0)
    validate = jax.jit(
        ncp_stage.make_validate(network, lambda _, x: x, key, num_passes=2)
    )
    rows = jax.random.normal(key, (2, 4, 3))
    mask = jnp.array([[True] * 4, [True, False, False, False]])

    def value(rows, mask=mask):
        data = {"vae": vae, "valid": rows, "valid_mask": mask}
        return np.asarray(validate(state, data)["loss"])

    expected = value(rows)
    assert expected.shape == (2,)
    np.testing.assert_array_equal(value(rows), expected)
    np.testing.assert_array_equal(value(rows.at[1, 1:].set(99.0)), expected)
    assert (value(rows.at[1, 0].set(99.0)) != expected).all()
    full = value(rows, jnp.ones((2, 4), bool))
    assert (full != expected).all()
    zero = state.replace(params=jax.tree.map(jnp.zeros_like, params))
    data = {"vae": vae, "valid": rows, "valid_mask": mask}
    np.testing.assert_allclose(  # a mean per example and pass, not a sum
        validate(zero, data)["loss"], 2 * math.log(2), rtol=1e-6
    )
