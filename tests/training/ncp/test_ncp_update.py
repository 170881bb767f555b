"""The update, its state and validation, and `nce.py`: the loss, a ratio that is found, groups kept apart."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax import parallel, rng
from ncp_jax.models import stacks
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training import optimizers
from ncp_jax.training.ncp import nce, ncp_state, ncp_update, ncp_validation
from tests import tiny
from tests.oracles import (
    InterleavedVAE,
    QuadraticRatio,
    ThreeGroupVAE,
    TwoBlockVAE,
)
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
    np.testing.assert_allclose(nce.nce_loss(zero, zero), 2 * math.log(2), rtol=1e-6)
    logit_q, logit_p = jnp.array([[1.0, -2.0]]), jnp.array([[0.5, 3.0]])
    d_q, d_p = (1 / (1 + np.exp(-np.asarray(v))) for v in (logit_q, logit_p))
    expected = -np.log(d_q).mean() - np.log(1 - d_p).mean()
    np.testing.assert_allclose(nce.nce_loss(logit_q, logit_p), [expected], 1e-6)


def test_nce_loss_and_its_gradient_survive_large_logits():
    big = jnp.full(4, 1e4)
    value, slope = jax.value_and_grad(nce.nce_loss)(-big, big)
    assert value == 2e4
    np.testing.assert_allclose(slope, -0.25)
    assert nce.nce_loss(big, -big) == 0.0


def test_several_negatives_of_an_example_count_as_one():
    logit_q, logit_p = (
        jnp.array([1.0, -2.0]),
        jnp.array([0.5, 3.0, -1.0, 0.0, 2.0, 4.0]),
    )
    of_each = nce.nce_losses(logit_q, logit_p)
    for b, own in enumerate((logit_p[:3], logit_p[3:])):
        alone = [nce.nce_loss(logit_q[b, None], z[None]) for z in own]
        np.testing.assert_allclose(of_each[b], np.mean(alone), rtol=1e-6)


@pytest.mark.parametrize("is_shared", [True, False])
def test_ranking_losses_at_known_logits(is_shared):
    """The share of r(z_q) in a sum; a constant factor of r makes no difference."""
    logit_q, logit_p = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0, -1.0, 0.0])
    r_q, r_p = np.exp(logit_q), np.exp(logit_p)
    against = r_p.sum() if is_shared else r_p.reshape(2, 2).sum(1)
    n = 4 if is_shared else 2
    expected = -np.log(r_q / ((r_q + against) / (n + 1)))
    for shift in (0.0, 7.0, -1e3):
        found = nce.ranking_losses(
            logit_q + shift, logit_p + shift, is_shared=is_shared
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    best = nce.ranking_losses(logit_q + 1e4, logit_p, is_shared=is_shared)
    np.testing.assert_allclose(best, -np.log(n + 1), rtol=1e-6)  # the bound's limit


def test_ranking_bounds_the_gain_from_below_and_reaches_it(key):
    """At the true ratio: minus KL(q, p), as the negatives become many."""
    exact = 0.5 * (STD**2 + MEAN**2 - 1) - math.log(STD)  # KL, nats

    def log_r(z):
        return TRUTH["bias"] + TRUTH["slope"] * z + TRUTH["curvature"] * z**2

    def bounds(key, m):
        q_key, p_key = jax.random.split(key)
        logit_q = log_r(MEAN + STD * jax.random.normal(q_key, (2_000,)))
        logit_p = log_r(jax.random.normal(p_key, (2_000 * m,)))
        return [
            -jnp.mean(nce.ranking_losses(logit_q, logit_p, is_shared=is_shared))
            for is_shared in (True, False)
        ]

    # One bound's standard deviation is below this: log r has 0.6 under q, r 1 under p.
    std, means = 2 / 2_000**0.5, {}
    for m in (1, 16):
        keys = jax.random.split(key, 50)
        shared, own = jax.jit(jax.vmap(partial(bounds, m=m)))(keys)
        assert_mean(shared, exact, std)  # 2,000 and more negatives: as good as all
        means[m] = np.mean(own)
    assert means[1] + 0.05 < means[16] < exact - 0.001


def test_logits_compare_an_example_with_its_own_negatives(key):
    """m = 3 negatives in a row share their example's context."""
    keys = jax.random.split(key, 3)
    draws = ContrastiveDraws(
        jax.random.normal(keys[0], (4, 2)),
        jax.random.normal(keys[1], (12, 2)),
        jax.random.normal(keys[2], (4, 5)),
    )
    network = MLPDiscriminator((8,))
    params = plus_a_tenth(network.init(key, draws.positive, draws.context)["params"])
    logit_q, logit_p = nce.logits(network, params, draws)
    for b in range(4):
        alone = jax.tree.map(lambda leaf, b=b: leaf[b, None], draws)
        for j in range(3):
            pair = alone._replace(negative=draws.negative[3 * b + j, None])
            one_q, one_p = nce.logits(network, params, pair)
            np.testing.assert_allclose(one_q[0], logit_q[b], rtol=1e-5)
            np.testing.assert_allclose(one_p[0], logit_p[3 * b + j], rtol=1e-5)


def test_the_ranking_loss_joins_in_by_its_weight(key):
    network, vae = MLPDiscriminator((8,)), frozen(TwoBlockVAE())
    state = with_params(start(network, optax.sgd(0.1), vae, key), plus_a_tenth)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        settings = {"num_negatives": 3, "ranking_weight": weight}
        _, train = update_of(network, optax.sgd(0.1), vae, key, **settings)(state)
        validate = ncp_validation.make_validate(network, as_it_is, key, **settings)
        data = {"vae": vae, "valid": X, "valid_mask": jnp.ones(X.shape[:2], bool)}
        _, valid = jax.jit(validate)(state, data)
        found[weight] = np.array([train["loss"], valid["loss"]])
        if weight:
            np.testing.assert_allclose(
                train["loss"], found[0.0][0] + weight * train["ranking_loss"], rtol=1e-5
            )
    np.testing.assert_allclose(
        found[1.0] - found[0.0], 2 * (found[0.5] - found[0.0]), rtol=1e-3
    )


def test_a_weighted_loss_is_trained_and_validated(key):
    """From r = 1 a pull of M / (1 + M), not of 1 / 2, and the loss of chance."""
    network, vae, norms = MLPDiscriminator((8,)), frozen(MODULE), {}
    state = start(network, optax.sgd(0.1), vae, key)
    data = {"vae": vae, "valid": X, "valid_mask": jnp.ones(X.shape[:2], bool)}
    for m in (1.0, 9.0):
        settings = {"num_negatives": 2, "negative_weight": m}
        _, train = update_of(network, optax.sgd(0.1), vae, key, **settings)(state)
        validate = ncp_validation.make_validate(network, as_it_is, key, **settings)
        _, valid = jax.jit(validate)(state, data)
        chance = math.log1p(m) + m * math.log1p(1 / m)
        np.testing.assert_allclose(train["loss"], chance, rtol=1e-5)
        np.testing.assert_allclose(valid["loss"], chance, rtol=1e-5)
        norms[m] = train["gradient_norm"]
    np.testing.assert_allclose(norms[9.0], (9 / 10) / (1 / 2) * norms[1.0], rtol=1e-5)


def test_group_metrics():
    logit_q = jnp.array([[1.0, 2.0, -1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    logit_p = jnp.array([[-1.0, -2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    metrics = nce.group_metrics(logit_q, logit_p)
    chex.assert_shape(list(metrics.values()), (2,))
    np.testing.assert_allclose(metrics["accuracy"], [0.625, 0.5])  # r = 1 is a guess
    log_z = np.log(np.exp(np.asarray(logit_p)).mean(1))
    np.testing.assert_allclose(metrics["log_z"], log_z, atol=1e-6)


@pytest.mark.parametrize("module", [TwoBlockVAE(), ThreeGroupVAE()])
def test_an_untrained_ratio_is_exactly_one(key, module):
    network = MLPDiscriminator((8,))
    params = jax.jit(lambda key: ncp_state.init_params(network, module, key))(key)
    for block, stacked in zip(module.blocks, params, strict=True):
        z = jax.random.normal(key, (block.num_groups, 5, *block.latent_shape))
        context = jnp.ones((block.num_groups, 5, *block.context_shape))
        log_r = jax.vmap(lambda p, z, c: network.apply({"params": p}, z, c))
        logits = log_r(stacked, z, context)
        np.testing.assert_array_equal(logits, np.zeros((block.num_groups, 5)))
        first = stacked["Dense_0"]["kernel"]  # but no two groups start alike
        assert np.unique(first).size == first.size


def test_the_gradient_vanishes_at_the_true_ratio_and_only_there(key):
    n, repeats = 2_000, 200

    def gradient(params, key):
        def loss(params):
            logits = ncp_update.contrast(
                QuadraticRatio(), (params,), (contrastive(key, n),)
            )
            return jnp.sum(nce.nce_loss(*logits))

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


def as_it_is(key, stored):
    del key
    return stored


def update_of(network, optimizer, vae, key, **settings):
    """One compiled update of stage 2: state -> (state, metrics), x always zero."""
    update = ncp_update.make_update(network, optimizer, as_it_is, key, **settings)
    data = {"vae": vae, "train": jnp.zeros((64, 3))}
    return tiny.Counted(lambda state: update(state, data, jnp.arange(64)))


def frozen(module):
    keys = jax.random.split(jax.random.key(1))
    init = jax.jit(module.init)
    return FrozenVAE(module, init(keys[0], jnp.zeros((1, 3)), keys[1]))


def start(network, optimizer, vae, key, ema_decay=0.0):
    init = partial(ncp_state.init_state, network, optimizer, vae, ema_decay=ema_decay)
    return ncp_state.place(parallel.mesh_of(), jax.jit(init)(key))


def with_params(state, change):
    """The state with changed weights of every stack: change(params) -> params."""
    changed = (group.replace(params=change(group.params)) for group in state.stacks)
    return state.replace(stacks=tuple(changed))


def plus_a_tenth(params):
    """So that r is not 1."""
    return jax.tree.map(lambda leaf: leaf + 0.1, params)


def of_blocks(state, vae):
    return stacks.by_block(vae.blocks, [stack.params for stack in state.stacks])


def one_by_one(per_block):
    """A list of the groups' pytrees, in the model's order."""
    return [
        jax.tree.map(lambda leaf, k=k: leaf[k], block)
        for block in per_block
        for k in range(jax.tree.leaves(block)[0].shape[0])
    ]


def test_training_finds_the_true_ratio(key):
    """SGD on fresh draws, its last half averaged, against the closed form."""
    optimizer, n, num_steps = optax.sgd(1.0), 1_000, 600

    def loss(params, key):
        logits = ncp_update.contrast(
            QuadraticRatio(), (params,), (contrastive(key, n),)
        )
        return jnp.sum(nce.nce_loss(*logits))

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
    """Three updates of all groups at once, and of each on its own draws.

    The first and the third group share a stack, the second has one of its own.
    """
    network, optimizer = MLPDiscriminator((8,)), optax.sgd(0.5)
    vae = frozen(InterleavedVAE())
    params = jax.jit(lambda key: ncp_state.init_params(network, vae, key))(key)
    state = start(network, optimizer, vae, key)
    chex.assert_trees_all_equal(of_blocks(state, vae), params)
    update = update_of(network, optimizer, vae, key)
    draws_key = rng.stream(key, "draws")

    @jax.jit
    def update_one(params, draws):
        def loss(params):
            logits = [
                network.apply({"params": params}, z, draws.context)
                for z in (draws.positive, draws.negative)
            ]
            return nce.nce_loss(*logits)

        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients), value

    alone = one_by_one(params)
    sample = jax.jit(ncp_update.contrastive_draws)
    for step in range(3):
        state, metrics = update(state)
        draws = sample(vae, jnp.zeros((64, 3)), rng.at_step(draws_key, step))
        for k, group in enumerate(one_by_one(draws)):
            alone[k], value = update_one(alone[k], group)
            np.testing.assert_allclose(metrics["loss"][k], value, rtol=1e-5)
    together = one_by_one(of_blocks(state, vae))
    chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 3
    assert metrics["gradient_norm"].shape == (3,)
    assert (metrics["gradient_norm"] > 0).all()


def test_every_group_decays_by_its_own_rate(key):
    """As if all had that rate; the first and the third group share a stack."""
    network, vae, decays = MLPDiscriminator((8,)), frozen(InterleavedVAE()), (0, 0, 3)

    def trained(weight_decay):
        optimizer = optimizers.optimizer("adam", lambda step: 0.01, weight_decay)
        state = start(network, optimizer, vae, key)
        state, _ = update_of(network, optimizer, vae, key)(state)
        return one_by_one(of_blocks(state, vae))

    together, alone = trained(decays), {d: trained((d,) * 3) for d in (0, 3)}
    for k, decay in enumerate(decays):
        chex.assert_trees_all_close(together[k], alone[decay][k], rtol=1e-6)
        kernels = [groups[k]["Dense_0"]["kernel"] for groups in alone.values()]
        assert np.abs(kernels[0] - kernels[1]).max() > 1e-4  # it makes a difference


def test_averages_begin_fast(key):
    network, vae = MLPDiscriminator((8,)), frozen(InterleavedVAE())
    optimizer = optax.sgd(0.5)
    state = start(network, optimizer, vae, key, ema_decay=0.99)
    update = update_of(network, optimizer, vae, key, ema_decay=0.99)
    for step in range(2):
        before, (state, _) = state, update(state)
        decay = (1 + step) / (10 + step)
        for old, new in zip(before.stacks, state.stacks, strict=True):
            expected = jax.tree.map(
                lambda a, p, d=decay: d * a + (1 - d) * p, old.ema_params, new.params
            )
            chex.assert_trees_all_close(new.ema_params, expected, rtol=1e-5)
    draws = ContrastiveDraws(*[jnp.zeros((2, 2))] * 3)
    group = jax.tree.map(lambda leaf: leaf[0], state.stacks[0])
    with pytest.raises(ValueError, match="turn"):
        nce.learn(network, optimizer, group, draws, ema_decay=0.99)


def test_update_leaves_the_vae_alone_and_draws_anew(key):
    network, optimizer, vae = (
        MLPDiscriminator((8,)),
        optax.sgd(0.0),
        frozen(TwoBlockVAE()),
    )
    state = with_params(start(network, optimizer, vae, key), plus_a_tenth)
    update = update_of(network, optimizer, vae, key)
    state, first = update(state)
    state, second = update(state)
    assert (first["loss"] != second["loss"]).all()  # the same x and weights, new noise
    assert update.num_traces == 1


# --- validation

MODULE = ThreeGroupVAE()
X = jnp.zeros((1, 512, 3))  # of which q(z_k | x) = N(0, 0.7^2)
STDS = np.array([1.0, (0.8**2 + (0.5 * 0.7) ** 2) ** 0.5, (0.6**2 + 0.56**2) ** 0.5])


def validate_of(network, vae, key, **settings):
    """A compiled validation on X: state -> (state, metrics)."""
    validate = ncp_validation.make_validate(network, as_it_is, key, **settings)
    data = {"vae": vae, "valid": X, "valid_mask": jnp.ones(X.shape[:2], bool)}
    return jax.jit(lambda state: validate(state, data))


def log_ratios(*strengths):
    """Weights of `QuadraticRatio` with log r_k = strength times the true log-ratio.

    On X, z_k ~ N(0, 0.7^2) under q, and z_k ~ N(0, STDS[k]^2) under p.
    """
    strengths = np.array(strengths)
    curvature = strengths * (0.5 / STDS**2 - 0.5 / 0.7**2)
    return {
        "slope": jnp.zeros((3, 2)),
        "curvature": jnp.asarray(np.stack([curvature] * 2, 1), jnp.float32),
        "bias": jnp.asarray(2 * strengths * np.log(STDS / 0.7), jnp.float32),
    }


def assert_groups(tree, k, expected):
    """Asserts that group k of a stacked pytree is that of `expected`."""
    pick = partial(jax.tree.map, lambda leaf: np.asarray(leaf[k]))
    chex.assert_trees_all_equal(pick(tree), pick(expected))


def test_validation_ignores_padding_and_repeats_itself(key):
    network, vae = MLPDiscriminator((8,)), frozen(TwoBlockVAE())
    zero = start(network, optax.sgd(0.1), vae, key)
    state = with_params(zero, plus_a_tenth)
    validate = jax.jit(
        ncp_validation.make_validate(network, as_it_is, key, num_passes=2)
    )
    rows = jax.random.normal(key, (2, 4, 3))
    mask = jnp.array([[True] * 4, [True, False, False, False]])

    def value(rows, mask=mask, state=state):
        data = {"vae": vae, "valid": rows, "valid_mask": mask}
        return np.asarray(validate(state, data)[1]["loss"])

    expected = value(rows)
    assert expected.shape == (2,)
    np.testing.assert_array_equal(value(rows), expected)
    np.testing.assert_array_equal(value(rows.at[1, 1:].set(99.0)), expected)
    assert (value(rows.at[1, 0].set(99.0)) != expected).all()
    full = value(rows, jnp.ones((2, 4), bool))
    assert (full != expected).all()
    np.testing.assert_allclose(  # a mean per example and pass, not a sum
        value(rows, state=with_params(zero, partial(jax.tree.map, jnp.zeros_like))),
        2 * math.log(2),
        rtol=1e-6,
    )


def test_every_group_keeps_its_own_best_weights_and_stops_by_itself(key):
    """One gets worse, one better, one better and then worse."""
    network, vae = QuadraticRatio(), frozen(MODULE)
    validate = tiny.Counted(validate_of(network, vae, key, patience=2))
    state = start(network, optax.sgd(0.1), vae, key)
    assert np.isposinf(state.stacks[0].best_loss).all()
    course = [(0, 0, 0), (-1, 0.2, 1), (-1, 0.5, -1), (-2, 1, -2)]
    num_waiting = [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 2)]
    losses = []
    for strengths, waiting in zip(course, num_waiting, strict=True):
        weights = log_ratios(*strengths)
        state, metrics = validate(with_params(state, lambda _, w=weights: w))
        losses.append(metrics["loss"])
        lowest = np.min(losses, axis=0)
        np.testing.assert_array_equal(metrics["best_loss"], lowest)
        np.testing.assert_array_equal(state.stacks[0].best_loss, lowest)
        np.testing.assert_array_equal(state.stacks[0].evals_since_best, waiting)
        np.testing.assert_array_equal(metrics["stopped"], np.array(waiting) >= 2)
    (best,) = state.best_params(vae.blocks)
    for k, strength in enumerate((0, 1, 1)):
        assert_groups(best, k, log_ratios(strength, strength, strength))
    assert validate.num_traces == 1


def test_the_best_weights_may_be_those_of_the_greatest_gain(key):
    """A factor of r costs loss and no gain: the two judge the second weights apart."""
    network, vae = QuadraticRatio(), frozen(MODULE)
    half, scaled = log_ratios(0.5, 0.5, 0.5), log_ratios(1, 1, 1)
    scaled = scaled | {"bias": scaled["bias"] + 3.0}
    for select_by, chosen, waiting in (("loss", half, 1), ("gain", scaled, 0)):
        validate = validate_of(network, vae, key, select_by=select_by, patience=1)
        state = start(network, optax.sgd(0.1), vae, key)
        found = []
        for weights in (half, scaled):
            state, metrics = validate(with_params(state, lambda _, w=weights: w))
            found.append(metrics)
        first, second = found
        assert (second["loss"] > first["loss"] + 0.1).all()
        assert (second["gain"] > first["gain"] + 0.01).all()
        chex.assert_trees_all_equal(state.best_params(vae.blocks)[0], chosen)
        best = first["loss"] if select_by == "loss" else -second["gain"]
        np.testing.assert_array_equal(second["best_loss"], best)
        np.testing.assert_array_equal(second["stopped"], [waiting] * 3)


def test_validation_finds_the_gain_in_closed_form(key):
    """At the true ratio KL(q, p), from 512 passes over 512 examples."""
    network, vae = QuadraticRatio(), frozen(MODULE)
    state = start(network, optax.sgd(0.1), vae, key)
    state = with_params(state, lambda _: log_ratios(1, 1, 1))
    validate = ncp_validation.make_validate(network, as_it_is, key, num_passes=512)
    rows = X.reshape(2, 256, 3)
    data = {"vae": vae, "valid": rows, "valid_mask": jnp.ones((2, 256), bool)}
    _, metrics = jax.jit(validate)(state, data)
    ratio = 0.7 / STDS
    kl = 2 * (0.5 * (ratio**2 - 1) - np.log(ratio))  # of two dimensions
    # Standard deviations are below 1: that of log r under q and that of r under p.
    bar = 5.5 * 2**0.5 / (512 * 512) ** 0.5
    np.testing.assert_allclose(metrics["log_z"], 0.0, atol=bar)
    np.testing.assert_allclose(metrics["gain"], kl, atol=bar)
    assert kl.max() > 10 * bar  # so 10 % too little would be seen


def test_the_averaged_weights_are_judged_and_kept(key):
    """By both formulations."""
    network, vae = QuadraticRatio(), frozen(MODULE)
    validate = validate_of(network, vae, key, formulation="map")
    state = start(network, optax.sgd(0.1), vae, key, ema_decay=0.9)
    (group,) = state.stacks
    average, weights = log_ratios(1, 0.5, 0), log_ratios(-1, -1, -1)
    both = group.replace(params=weights, ema_params=average)
    only = group.replace(params=average, ema_params=average)
    after, metrics = validate(state.replace(stacks=(both,)))
    other = validate_of(network, vae, key, formulation="vmap")
    _, expected = other(state.replace(stacks=(only,)))
    for name in ("loss", "gain"):  # of the weights themselves, to be seen beside
        np.testing.assert_array_equal(expected.pop(f"newest_{name}"), expected[name])
        assert (metrics.pop(f"newest_{name}") != metrics[name]).all()
    chex.assert_trees_all_close(metrics, expected, rtol=1e-6)
    (best,) = after.best_params(vae.blocks)
    chex.assert_trees_all_equal(best, average)
    chex.assert_trees_all_equal(after.stacks[0].params, weights)
    after, metrics = validate(after)  # the same loss: not lower
    np.testing.assert_array_equal(after.stacks[0].evals_since_best, [1, 1, 1])
    np.testing.assert_array_equal(metrics["stopped"], [0, 0, 0])  # without patience


def test_a_group_that_has_stopped_rests_while_others_go_on(key):
    """The same by both formulations, and as if nobody rested for the others."""
    network, optimizer, vae = MLPDiscriminator((8,)), optax.adam(0.1), frozen(MODULE)
    state = with_params(
        start(network, optimizer, vae, key, ema_decay=0.9), plus_a_tenth
    )
    (group,) = state.stacks
    group = group.replace(evals_since_best=jnp.array([1, 2, 0]))
    before = state.replace(stacks=(group,))

    def after(**settings):
        return update_of(network, optimizer, vae, key, ema_decay=0.9, **settings)(
            before
        )

    one_by_one, side_by_side = (
        after(patience=2, formulation=formulation) for formulation in ("map", "vmap")
    )
    chex.assert_trees_all_close(one_by_one, side_by_side, atol=1e-6)
    free, free_metrics = after()
    for rested, metrics in (one_by_one, side_by_side):
        assert_groups(rested.stacks[0], 1, group)  # weights, optimiser, average
        assert metrics["gradient_norm"][1] == 0.0 < free_metrics["gradient_norm"][1]
        np.testing.assert_allclose(metrics["loss"], free_metrics["loss"], rtol=1e-6)
        (rested,), (moved,) = rested.stacks, free.stacks
        for k in (0, 2):
            pick = partial(jax.tree.map, lambda leaf, k=k: leaf[k])
            chex.assert_trees_all_close(pick(rested), pick(moved), atol=1e-6)
        for old, new in (
            (group.params, rested.params),
            (group.ema_params, rested.ema_params),
            (group.opt_state[0].mu, rested.opt_state[0].mu),
        ):
            old, new = (tree["Dense_0"]["kernel"] for tree in (old, new))
            assert (old != new).any((1, 2)).tolist() == [True, False, True]
