"""`vae_update.py`: the loss by hand, its warm-up and penalty, and validation."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax import rng
from ncp_jax.models.base import ElboTerms, Objective
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.nvae.layers import BatchNorm, CellOptions, Conv
from ncp_jax.training import loop, vae_update
from ncp_jax.training.checkpoints import Checkpoints, digests
from ncp_jax.training.vae_update import KLWarmup, Penalty
from tests import tiny

MODULE = MLPVAE((3,), 2, (8,), likelihood="normal", likelihood_std=0.5)
TRAIN = np.random.default_rng(1).standard_normal((16, 3)).astype(np.float32)


def start(optimizer):
    init = jax.jit(MODULE.init)
    variables = init(jax.random.key(1), jnp.zeros((1, 3)), jax.random.key(2))
    params = variables.pop("params")
    return loop.init_state(params, variables, optimizer, 0.0)


def as_it_is(key, stored):
    del key
    return stored


def terms_at(state, x, key):
    return MODULE.apply(state.variables, x, key, method="elbo_terms")


class ConvVAE(nn.Module):
    """What stage 1 asks of a model, with a batch norm and two groups."""

    def setup(self):
        self.conv, self.norm = Conv(4, 3), BatchNorm(CellOptions())
        self.centre = self.variable("statistics", "centre", jnp.ones, ())

    def elbo_terms(self, x, key):
        """For x [B, H, W, 1]."""
        h = jnp.mean(jnp.tanh(self.norm(self.conv(x))), (1, 2))  # [B, 4]
        z = h + jax.random.normal(key, h.shape)
        error = jnp.mean(x, (1, 2)) - self.centre.value - z
        kl = 0.5 * jnp.sum(h.reshape(-1, 2, 2) ** 2, -1)
        return ElboTerms(-0.5 * jnp.sum(error**2, 1), kl)


CONV = ConvVAE()
PICTURES = np.random.default_rng(2).random((16, 4, 4, 1), np.float32)
CONV_DATA = {"train": jnp.asarray(PICTURES)}


def start_conv(optimizer, **settings):
    keys = jax.random.key(1), jax.random.key(2)
    init = jax.jit(CONV.init, static_argnames="method")
    variables = init(keys[0], PICTURES[:1], keys[1], method="elbo_terms")
    scale = variables["params"]["norm"]["scale"]
    variables["params"]["norm"]["scale"] = scale * jnp.array([0.5, -1.5, 1.0, 0.9])
    x = jnp.asarray(PICTURES[:1])
    return vae_update.init_state(CONV, variables, optimizer, x, keys[0], **settings)


def conv_update(optimizer, key, **settings):
    """A compiled update: state -> (state, metrics), always on the same pictures."""
    update = vae_update.make_update(CONV, optimizer, as_it_is, key, **settings)
    return tiny.Counted(lambda state: update(state, CONV_DATA, jnp.arange(8)))


@jax.jit
def conv_terms(state, key):
    """What a training pass over the same pictures sees, and what it changes."""
    return CONV.apply(
        state.variables,
        PICTURES[:8],
        key,
        method="elbo_terms",
        mutable=["batch_stats"],
    )


def test_elbo_loss_by_hand():
    terms = ElboTerms(jnp.array([-3.0, -5.0]), jnp.array([[1.0, 2.0], [0.0, 4.0]]))
    np.testing.assert_allclose(vae_update.elbo_loss(terms), [3.0 + 3.0, 5.0 + 4.0])


# --- the weights of the KL terms

ALPHAS = np.array([1.0, 4.0], np.float32)


def weighted_by_hand(kl, coefficient, alphas):
    """NVAE's balancing: gamma_k ~ (mean |KL_k| + 0.01) / alpha_k, of mean 1."""
    kl = np.asarray(kl, np.float64)
    gamma = np.ones(kl.shape[1])
    if alphas is not None and coefficient < 1.0:
        gamma = (np.abs(kl).mean(0) + 0.01) / alphas
        gamma /= gamma.mean()
    return coefficient * (gamma * kl).sum(1)


@pytest.mark.parametrize("alphas", [None, ALPHAS])
def test_kl_weights_wait_rise_and_stay(alphas):
    """Nothing happens for 10 of 100 steps, then the weight rises for 30."""
    kl = jnp.array([[1.0, 2.0], [0.5, 6.0], [0.0, 1.0]])
    warmup = KLWarmup(100, 0.3, 0.1, alphas)
    for step in (0, 10, 13, 25, 40, 99):
        coefficient = np.clip((step - 10) / 30, 1e-4, 1.0)
        np.testing.assert_allclose(warmup.coefficient(step), coefficient, rtol=1e-5)
        expected = weighted_by_hand(kl, coefficient, alphas)
        np.testing.assert_allclose(warmup.weigh(step, kl), expected, rtol=1e-5)
    if alphas is not None:  # balancing matters
        plain = KLWarmup(100, 0.3, 0.1).weigh(25, kl)
        assert (np.abs(warmup.weigh(25, kl) - plain) > 0.05).all()


@pytest.mark.parametrize("alphas", [None, ALPHAS])
def test_without_a_warm_up_the_kl_counts_in_full_at_once(alphas):
    kl = jnp.array([[1.0, 2.0], [0.5, 6.0]])
    weighted = KLWarmup(100, alphas=alphas).weigh(0, kl)
    np.testing.assert_allclose(weighted, [3.0, 6.5])


@pytest.mark.parametrize("alphas", [None, ALPHAS])
def test_the_loss_weighs_the_kl_by_its_warm_up(key, alphas):
    """With a zero learning rate only the weight and the noise change."""
    optimizer = optax.sgd(0.0)
    warmup = KLWarmup(num_steps=10, warmup_fraction=0.4, alphas=alphas)
    update, state = conv_update(optimizer, key, warmup=warmup), start_conv(optimizer)
    posterior_key = rng.stream(key, "posterior")
    for step, weight in enumerate([1e-4, 0.25, 0.5, 0.75, 1.0, 1.0]):
        terms, _ = conv_terms(state, rng.at_step(posterior_key, step))
        kl = weighted_by_hand(terms.kl, weight, alphas).mean()
        expected = kl - float(terms.log_likelihood.mean())
        state, metrics = update(state)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["group_kl"], terms.kl.mean(0), rtol=1e-5)
        np.testing.assert_allclose(metrics["kl"], terms.kl.sum(1).mean(), rtol=1e-5)
    assert update.num_traces == 1
    assert int(state.step) == 6


# --- batch norm


def test_training_moves_batch_statistics_and_averages_them(key):
    """By the formulas of both averages, over two updates; the constant stays."""
    optimizer = optax.sgd(0.1)
    update = conv_update(optimizer, key, ema_decay=0.9)
    state = start_conv(optimizer, ema_decay=0.9)
    first = state.model_state["batch_stats"]["norm"]
    np.testing.assert_array_equal(first["mean"], np.zeros(4))
    posterior_key = rng.stream(key, "posterior")
    for step in range(2):
        old = state
        _, changed = conv_terms(old, rng.at_step(posterior_key, step))
        state, _ = update(old)
        new = state.model_state["batch_stats"]
        chex.assert_trees_all_close(new, changed["batch_stats"], rtol=1e-5)
        assert np.abs(new["norm"]["mean"]).min() > 0
        decay = (1 + step) / (10 + step)  # it begins fast
        expected = jax.tree.map(
            lambda average, newest, d=decay: d * average + (1 - d) * newest,
            old.averages,
            {"params": state.params, "batch_stats": new},
        )
        chex.assert_trees_all_close(state.averages, expected, rtol=1e-5)
    assert state.eval_variables["statistics"]["centre"] == 1.0
    chex.assert_trees_all_equal(  # what stage 2 gets
        vae_update.freeze(CONV, state).variables,
        {**state.averages, "statistics": {"centre": jnp.ones(())}},
    )


def test_validation_freezes_batch_statistics(key):
    """An example's value depends on no other: running statistics are used."""
    validate = jax.jit(vae_update.make_validate(CONV, as_it_is, key))
    state = start_conv(optax.sgd(0.1))
    rows = jnp.asarray(PICTURES[None, :4])
    data = {"valid": rows, "valid_mask": jnp.array([[True, True, False, False]])}
    after, first = validate(state, data)
    chex.assert_trees_all_equal(after, state)
    other = data | {"valid": rows.at[:, 2:].set(9.0)}
    np.testing.assert_array_equal(validate(state, other)[1]["loss"], first["loss"])
    stats = {"norm": {"mean": jnp.ones(4), "var": 2.0 * jnp.ones(4)}}
    moved = state.replace(model_state=state.model_state | {"batch_stats": stats})
    of_moved = validate(moved, data)[1]["loss"]
    assert of_moved != first["loss"] and "newest_loss" not in first
    averages = {"params": state.params, "batch_stats": state.model_state["batch_stats"]}
    _, of_both = validate(moved.replace(averages=averages), data)
    np.testing.assert_array_equal(of_both["loss"], first["loss"])
    np.testing.assert_array_equal(of_both["newest_loss"], of_moved)


# --- the penalty


def singular(params):
    """The left singular vectors and the singular values of the kernel in effect."""
    kernel = np.asarray(params["conv"]["kernel"], np.float64).reshape(9, 4)
    gain = np.exp(np.asarray(params["conv"]["log_norm"], np.float64))
    left, values, _ = np.linalg.svd((gain * kernel / np.linalg.norm(kernel, axis=0)).T)
    return left, values


def test_the_penalty_joins_the_gradient_and_not_the_reported_loss(key):
    """As its row o grows by e^t, a singular value s grows at a rate of s u_o^2."""
    optimizer, penalty = optax.sgd(1.0), Penalty(weight=0.25)
    state = start_conv(optimizer, penalty=penalty)
    left, values = singular(state.params)
    plain, expected = conv_update(optimizer, key)(state)
    penalised, metrics = conv_update(optimizer, key, penalty=penalty)(state)
    np.testing.assert_allclose(metrics["penalty"], 0.25 * (values[0] + 1.5), rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    difference = jax.tree.map(jnp.subtract, plain.params, penalised.params)
    np.testing.assert_allclose(difference["norm"]["scale"], [0, -0.25, 0, 0], atol=1e-6)
    rate = 0.25 * values[0] * left[:, 0] ** 2
    np.testing.assert_allclose(difference["conv"]["log_norm"], rate, atol=1e-3)
    assert rate.max() > 0.1  # far above the tolerance


def test_the_weight_of_the_penalty_falls_as_that_of_the_kl_rises():
    """From 1 to 0.01, halfway in logarithms at 0.1."""
    params, kernel = {"scale": jnp.array([2.0])}, jnp.full((1, 1, 1, 1), 3.0)
    power = {"1x1": jnp.ones((1, 1))}
    for coefficient, weight in ((0.0, 1.0), (0.5, 0.1), (1.0, 0.01)):
        value, _ = Penalty(0.01, 1.0).value(coefficient, params, [kernel], power)
        np.testing.assert_allclose(value, weight * (3.0 + 2.0), rtol=1e-5)
        constant, _ = Penalty(0.01).value(coefficient, params, [kernel], power)
        np.testing.assert_allclose(constant, 0.05, rtol=1e-5)


def test_the_power_iteration_follows_the_kernel_and_is_saved(key, tmp_path):
    optimizer, penalty = optax.sgd(0.1, momentum=0.9), Penalty(weight=0.1)
    start = start_conv(optimizer, penalty=penalty)
    update = conv_update(optimizer, key, penalty=penalty)

    def after(state, num_updates):
        for _ in range(num_updates):
            state, _ = update(state)
        return state

    def alignment(state):
        """|cos| of the vector carried along with the true one."""
        (u,) = np.asarray(state.penalty_state["4x9"])
        return abs(singular(state.params)[0][:, 0] @ u)

    half, whole = after(start, 3), after(start, 6)
    assert alignment(start) > 0.999 and alignment(whole) > 0.99
    moved = start.replace(params=whole.params)
    assert alignment(moved) < 0.98  # the first vector would not do
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(3, half, None)
        checkpoints.wait()
        restored = jax.device_put(checkpoints.restore_latest(start).state)
    assert digests(after(restored, 3)) == digests(whole)
    forgetful = after(restored.replace(penalty_state=start.penalty_state), 3)
    assert digests(forgetful) != digests(whole)


# --- one update, and validation


def test_updates_lower_the_loss_with_finite_gradients(key):
    optimizer = optax.sgd(1e-2)
    update = vae_update.make_update(MODULE, optimizer, as_it_is, key)
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
    update = jax.jit(vae_update.make_update(MODULE, optimizer, as_it_is, key))
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

    validate = jax.jit(vae_update.make_validate(MODULE, noisy, key))

    def value(rows, mask=mask):
        data = {"valid": rows, "valid_mask": mask}
        return float(validate(state, data)[1]["loss"])

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
    validate = jax.jit(vae_update.make_validate(MODULE, as_it_is, key))
    data = {"valid": jnp.asarray(TRAIN[None]), "valid_mask": jnp.ones((1, 16), bool)}
    average = jax.tree.map(lambda leaf: 0.5 * leaf, state.params)
    both = state.replace(averages={"params": average})
    only = state.replace(params=average)

    def value(state):
        return float(validate(state, data)[1]["loss"])

    np.testing.assert_allclose(value(both), value(only), rtol=1e-6)
    assert value(both) != value(state)


# --- an objective that is no evidence bound


class Shrunk(nn.Module):
    """|w - x|^2 of examples and, of a batch, how many of them count and |w|^2."""

    @nn.compact
    def objective(self, x, key, mask=None):
        del key
        w = self.param("w", nn.initializers.ones, (3,))
        mask = jnp.ones(len(x), bool) if mask is None else mask
        count = jnp.sum(mask).astype(jnp.float32)
        of_batch = {"shrinking": jnp.sum(w**2), "count": count}
        return Objective({"error": jnp.sum((x - w[None]) ** 2, 1)}, of_batch)


SHRUNK = Shrunk()


def start_shrunk(optimizer):
    w = jnp.array([1.0, 2.0, -1.0])
    return loop.init_state({"w": w}, {}, optimizer, 0.0)


def test_an_objective_of_ones_own_is_trained_and_logged_by_its_names(key):
    optimizer = optax.sgd(0.1)
    state = start_shrunk(optimizer)
    update = jax.jit(vae_update.make_update(SHRUNK, optimizer, as_it_is, key))
    after, metrics = update(state, {"train": jnp.asarray(TRAIN)}, jnp.arange(4))
    w, x = np.asarray(state.params["w"]), TRAIN[:4]
    error = ((x - w) ** 2).sum(1).mean()
    expected = {"error": error, "shrinking": 6.0, "count": 4.0, "loss": error + 10.0}
    assert metrics.keys() == {*expected, "gradient_norm"}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    slope = 2 * (w - x.mean(0)) + 2 * w
    np.testing.assert_allclose(after.params["w"], w - 0.1 * slope, rtol=1e-5)


def test_an_objective_of_ones_own_is_validated_without_padding(key):
    state = start_shrunk(optax.sgd(0.1))
    validate = jax.jit(vae_update.make_validate(SHRUNK, as_it_is, key))
    rows = TRAIN[:8].reshape(2, 4, 3).copy()
    rows[1, 1:] = np.nan
    mask = jnp.array([[True] * 4, [True, False, False, False]])
    _, metrics = validate(state, {"valid": jnp.asarray(rows), "valid_mask": mask})
    w = np.asarray(state.params["w"])
    error = ((TRAIN[:5] - w) ** 2).sum(1).mean()
    count = (4 * 4 + 1 * 1) / 5  # of each batch, in proportion to its examples
    np.testing.assert_allclose(metrics["loss"], error + 6.0 + count, rtol=1e-5)
