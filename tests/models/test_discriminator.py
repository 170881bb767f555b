"""Discriminators: against NumPy and XLA, by themselves, and what a norm does to r."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import (
    GROUP_SIZE,
    Conv3x3,
    FactorizedReduction,
    MapNorm,
    ResidualBlock,
    ResidualDiscriminator,
    _swish,
    num_norm_groups,
)
from ncp_jax.models.squeeze_excite import SqueezeExcite
from ncp_jax.training.ncp.nce import nce_loss
from tests.random_variables import random_variables

SMALL = ResidualDiscriminator(channels=4, blocks="B")
DISCRIMINATORS = {"mlp": MLPDiscriminator((6, 5)), "residual": SMALL}
each_discriminator = pytest.mark.parametrize(
    "module", DISCRIMINATORS.values(), ids=DISCRIMINATORS
)


def maps(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def example(batch_size=5, sides=(4, 4), has_context=True):
    """z and a context, [B, H, W, 3] and [B, H, W, 7] or [B, 0]."""
    z = maps(1, batch_size, *sides, 3)
    context = (
        maps(2, batch_size, *sides, 7) if has_context else np.zeros((batch_size, 0))
    )
    return jnp.asarray(z), jnp.asarray(context, jnp.float32)


def log_ratio_of(module, *args, seed=0):
    """(z, context) -> log r at random parameters, compiled."""
    variables = random_variables(module, *args, seed=seed)
    return jax.jit(functools.partial(module.apply, variables))


@pytest.mark.parametrize("has_context", [True, False])
@each_discriminator
def test_two_steps_are_one(module, has_context):
    z, context = example(has_context=has_context)
    variables = random_variables(module, z, context)

    @jax.jit
    def both(z, context):
        feature = module.apply(variables, context, method="embed")
        log_r = module.apply(variables, z, feature, method="log_ratio")
        return module.apply(variables, z, context), log_r, feature

    log_r, again, feature = both(z, context)
    np.testing.assert_allclose(again, log_r, rtol=1e-5)
    assert log_r.shape == (5,)
    assert np.unique(np.round(log_r, 4)).size == 5  # z matters
    assert feature.shape[0] == 5 and (feature.size == 5) == (not has_context)
    if has_context:
        other, *_ = both(z, context[::-1])
        assert (np.abs(other - log_r)[[0, 1, 3, 4]] > 1e-3).all()


@each_discriminator
def test_an_untrained_ratio_is_exactly_one(key, module):
    z, context = example()
    fast = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
    log_r, variables = jax.jit(module.init_with_output)(fast, z, context)
    np.testing.assert_array_equal(log_r, np.zeros(5))
    assert variables.keys() == {"params"}  # no running statistics


@pytest.mark.parametrize("has_context", [True, False])
def test_mlp_against_numpy(has_context):
    z, context = example(has_context=has_context)
    module = MLPDiscriminator((6, 5))
    params = random_variables(module, z, context)["params"]
    first, second, last = (params[f"Dense_{i}"] for i in range(3))
    h = np.asarray(z).reshape(5, -1) @ first["kernel"] + first["bias"]
    if has_context:
        h = h + np.asarray(context).reshape(5, -1) @ params["context"]["kernel"]
    h = np.tanh(np.tanh(h) @ second["kernel"] + second["bias"])
    expected = (h @ last["kernel"] + last["bias"])[:, 0]
    log_r = module.apply({"params": params}, z, context)
    np.testing.assert_allclose(log_r, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (7, 4)])
def test_the_layer_is_a_convolution_and_a_bias(sides, stride):
    x, module = maps(0, 3, *sides, 2), Conv3x3(5, stride)
    variables = random_variables(module, x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected += variables["params"]["bias"][None, None, None]
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


def test_a_reduction_reads_every_pixel_once():
    x, module = maps(0, 2, 4, 6, 2), FactorizedReduction(jnp.float32)
    variables = random_variables(module, x)
    y = module.apply(variables, x)
    assert y.shape == (2, 2, 3, 4)
    for i, j in np.ndindex(2, 2):
        layer = variables["params"][f"offset_{i}{j}"]
        own = x[:, i::2, j::2] @ layer["kernel"] + layer["bias"]  # [2, 2, 3, 1]
        np.testing.assert_allclose(y[..., 2 * i + j], own[..., 0], atol=1e-6)


def test_a_reduction_repeats_the_edge_of_odd_maps():
    x, module = maps(0, 2, 3, 1, 2), FactorizedReduction(jnp.float32)
    variables = random_variables(module, x)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    np.testing.assert_allclose(
        module.apply(variables, x), module.apply(variables, padded), atol=1e-6
    )


def swish(x):
    return x / (1.0 + np.exp(-x))


def normalized(x, params, num_groups):
    grouped = x.reshape(*x.shape[:3], num_groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    std = np.sqrt(grouped.var((1, 2, 4), keepdims=True) + 1e-6)
    return ((grouped - mean) / std).reshape(x.shape) * params["scale"] + params["bias"]


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("is_reduction", [False, True])
def test_a_block_by_its_parts(is_reduction, norm):
    x, block = (
        2.0 + maps(0, 2, 4, 4, 32),
        ResidualBlock(is_reduction, norm, jnp.float32),
    )
    variables = random_variables(block, x)
    params, width = variables["params"], 64 if is_reduction else 32
    h, skip = x, x
    if is_reduction:
        reduction = FactorizedReduction(jnp.float32)
        skip = reduction.apply({"params": params["skip"]}, swish(x))
    for i, stride in enumerate((2 if is_reduction else 1, 1)):
        if norm == "group":
            h = normalized(h, params[f"norm_{i}"], num_norm_groups(h.shape[-1]))
        layer = Conv3x3(width, stride)
        h = np.asarray(layer.apply({"params": params[f"conv_{i}"]}, swish(h)))
    h = SqueezeExcite().apply({"params": params["squeeze_excite"]}, h)
    expected = np.asarray(skip) + np.asarray(h)
    y = jax.jit(block.apply)(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_the_first_and_the_last_layer():
    """With blocks that pass on what they get."""
    module = SMALL.clone(blocks="A")
    z, context = example()
    params = random_variables(module, z, context)["params"]
    layer = params["trunk_0"]["conv_1"]
    params["trunk_0"]["conv_1"] = jax.tree.map(np.zeros_like, layer)
    scale = np.sqrt(np.mean(np.asarray(context) ** 2, (1, 2, 3), keepdims=True))
    of_z = Conv3x3(4).apply({"params": params["from_z"]}, z)
    of_context = Conv3x3(4, use_bias=False).apply(
        {"params": params["from_context"]}, context / scale
    )
    pooled = swish(np.asarray(of_z + of_context)).mean((1, 2))
    expected = (pooled @ params["last"]["kernel"] + params["last"]["bias"])[:, 0]
    log_r = jax.jit(module.apply)({"params": params}, z, context)
    np.testing.assert_allclose(log_r, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "reduced"),
    [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((7, 7), (4, 4)), ((8, 4), (4, 2))],
)
def test_blocks_keep_or_halve(sides, reduced):
    x = maps(0, 2, *sides, 4)
    for is_reduction, shape in ((False, (*sides, 4)), (True, (*reduced, 8))):
        block = ResidualBlock(is_reduction, "group", jnp.float32)
        assert jax.eval_shape(
            lambda x, block=block: block.init_with_output(jax.random.key(0), x)[0], x
        ).shape == (2, *shape)


@pytest.mark.parametrize("sides", [(1, 1), (7, 5)])
def test_maps_of_any_size(sides):
    """Every z has its own log r and every pixel a say in it."""
    module = SMALL.clone(blocks="BAB" if sides == (1, 1) else "B")
    z, context = example(sides=sides)
    log_r, slope = value_and_slope(module, z, context)
    assert np.unique(np.round(log_r, 4)).size == 5
    assert (np.abs(slope).max((1, 2, 3)) > 1e-4).all()
    assert (np.abs(slope).max((0, 3)) > 0).all()


def test_a_map_without_variance_is_no_trouble():
    """Group norm divides by the deviation of a map, here zero."""
    z, context = example(sides=(1, 1))
    log_r, slope = value_and_slope(SMALL, 0 * z, 0 * context)
    assert np.isfinite(log_r).all() and np.isfinite(slope).all()


def value_and_slope(module, z, context):
    """log r [B] and its gradient in z, at random parameters."""
    variables = random_variables(module, z, context)

    @jax.jit
    def both(z):
        log_r, pull = jax.vjp(lambda z: module.apply(variables, z, context), z)
        return log_r, *pull(jnp.ones_like(log_r))

    return both(z)


@each_discriminator
def test_the_company_of_a_z_does_not_matter(module):
    z, context = example()
    log_r = log_ratio_of(module, z, context)
    expected = log_r(z, context)
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        log_r(z[order], context[order]), expected[order], rtol=1e-4, atol=1e-5
    )
    others = (z + 3.0).at[1].set(z[1])
    np.testing.assert_allclose(
        log_r(others, context)[1], expected[1], rtol=1e-4, atol=1e-5
    )


def contractions(jaxpr):
    """Lengths of the sums in all matrix products and convolutions of a jaxpr."""
    lengths = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            *sizes, _ = equation.invars[1].aval.shape  # HWIO
            lengths.append(math.prod(sizes))
        if equation.primitive.name == "dot_general":
            ((axes, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            lengths.append(math.prod(shape[axis] for axis in axes))
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                lengths += contractions(value.jaxpr)
    return lengths


@pytest.mark.parametrize(("name", "length"), [("residual", 9 * 7), ("mlp", 4 * 4 * 7)])
def test_proposals_share_what_their_context_needs(name, length):
    module = DISCRIMINATORS[name]
    z, context = example()
    variables = random_variables(module, z, context)
    feature = jax.jit(functools.partial(module.apply, method="embed"))(
        variables, context
    )
    proposals = jnp.stack([z, 2 * z, -z])

    def with_feature(z):
        return module.apply(variables, z, feature, method="log_ratio")

    def with_context(z):
        return module.apply(variables, z, context)

    work = jax.make_jaxpr(jax.vmap(with_feature))(proposals).jaxpr
    whole = jax.make_jaxpr(jax.vmap(with_context))(proposals).jaxpr
    assert contractions(whole).count(length) == 1
    assert contractions(work).count(length) == 0
    assert len(contractions(work)) == len(contractions(whole)) - 1
    one_by_one = np.stack(list(map(jax.jit(with_context), proposals)))
    log_r = jax.jit(jax.vmap(with_feature))(proposals)
    np.testing.assert_allclose(log_r, one_by_one, rtol=1e-4, atol=1e-5)


@each_discriminator
def test_a_stack_of_groups_is_one_after_another(module):
    z, context = example()
    stacked = [random_variables(module, z, context, seed=seed) for seed in (0, 1)]
    variables = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
    both = jax.jit(jax.vmap(module.apply, (0, None, None)))(variables, z, context)
    apply = jax.jit(module.apply)
    for log_r, one in zip(both, stacked, strict=True):
        np.testing.assert_allclose(log_r, apply(one, z, context), rtol=1e-4, atol=1e-5)
    assert (np.abs(both[0] - both[1]) > 1e-3).all()


def test_the_scale_of_a_context_does_not_matter():
    """Nor can a decoder's large feature drown z."""
    z, context = example()
    log_r = log_ratio_of(SMALL, z, context)
    np.testing.assert_allclose(
        log_r(z, 1e3 * context), log_r(z, context), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "module",
    [
        ResidualDiscriminator(channels=8, blocks="AB"),
        ResidualDiscriminator(channels=16, blocks="AAABAAAB"),
        MLPDiscriminator((100, 100)),
    ],
)
def test_bfloat16_moves_log_r_little(module):
    """By a few of its 8 bits: at most a tenth of what log r varies by."""
    z, context = example(batch_size=64)
    expected = log_ratio_of(module, z, context)(z, context)
    log_r = log_ratio_of(module.clone(dtype=jnp.bfloat16), z, context)(z, context)
    assert log_r.dtype == jnp.float32
    error = np.abs(log_r - expected) / np.std(expected)
    assert 1e-4 < error.max() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": ""}, "blocks must be a word of the letters A and B, got ''"),
        ({"blocks": "AAbB"}, "got 'AAbB'"),
        ({"norm": "batch"}, "norm must be one of .*group.*, got 'batch'"),
        ({"channels": 7}, "channels must be even and positive, got 7"),
        ({"channels": 0}, "got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ResidualDiscriminator(**settings)


@pytest.mark.parametrize(
    ("z_shape", "context_shape", "message"),
    [
        ((2, 50), (2, 0), r"z must be \[B, H, W, C\], got \(2, 50\)"),
        ((2, 4, 4, 3), (2, 10), r"context must be \[B, H, W, C\], got \(2, 10\)"),
        ((2, 4, 4, 3), (2, 2, 2, 3), "this one is 2x2"),
    ],
)
def test_only_maps_that_fit(z_shape, context_shape, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            SMALL.init, jax.random.key(0), jnp.zeros(z_shape), jnp.zeros(context_shape)
        )


@pytest.mark.parametrize("num_groups", [1, 2])
def test_the_norm_and_swish_are_those_of_flax_and_jax(num_groups, key):
    x = 3.0 + 5.0 * jax.random.normal(key, (6, 3, 4, 32))
    ours, theirs = (
        jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x)
        for f in (
            random_norm(MapNorm(num_groups), _swish, x),
            random_norm(nn.GroupNorm(num_groups, use_fast_variance=False), nn.swish, x),
        )
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3, atol=1e-5)
    # x (1 + tanh(x / 2)) / 2 is as exact as its x: tanh rounds beside 1 where x is far
    far = jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4])
    error = np.abs(_swish(far) - nn.swish(far))
    assert np.all(error <= 2 * np.finfo(np.float32).eps * np.abs(far)), error


def random_norm(module, activation, x):
    variables = random_variables(module, x)
    return lambda x: activation(module.apply(variables, x))


def test_groups_of_a_norm_are_equal_and_large():
    assert [num_norm_groups(c) for c in (2, 16, 20, 32, 40, 64)] == [1, 1, 1, 2, 2, 4]
    for channels in range(2, 200, 2):
        n = num_norm_groups(channels)
        assert channels % n == 0
        assert n == 1 or channels // n >= GROUP_SIZE


class KnownRatio:
    """q = N(mean, std^2) per channel of maps, p = N(0, 1); both independent."""

    def __init__(self, sides, mean, std):
        self.shape = (*sides, len(mean))
        self.mean = jnp.asarray(mean, jnp.float32)[None, None, None]
        self.std = jnp.asarray(std, jnp.float32)[None, None, None]

    def draws(self, key, n):
        q_key, p_key = jax.random.split(key)
        q = self.mean + self.std * jax.random.normal(q_key, (n, *self.shape))
        return q, jax.random.normal(p_key, (n, *self.shape))

    def log_r(self, z):
        terms = 0.5 * (z**2 - ((z - self.mean) / self.std) ** 2) - jnp.log(self.std)
        return jnp.sum(terms, axis=(1, 2, 3))


def no_context(z):
    return jnp.zeros((z.shape[0], 0))


def both_of(log_r):
    """Logits of q and p from one call on both."""

    def logits(variables, q, p):
        log_r_all, updates = log_r(variables, jnp.concatenate([q, p]))
        return *jnp.split(log_r_all, 2), updates

    return logits


def trained(module, task, logits, key, *, num_steps, batch_size, learning_rate):
    """Variables after some steps of the NCE loss, and its course."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def loss_fn(params, state, q, p):
        logit_q, logit_p, updates = logits({"params": params, **state}, q, p)
        return nce_loss(logit_q, logit_p), {**state, **updates}

    @jax.jit
    def train(key):
        z = jnp.zeros((1, *task.shape))
        state = module.init(key, z, no_context(z))
        params = state.pop("params")

        def step(carry, i):
            params, state, opt_state = carry
            draws = task.draws(jax.random.fold_in(key, i), batch_size)
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, state), gradients = grad_fn(params, state, *draws)
            with jax.numpy_dtype_promotion("standard"):  # Adam counts in int32
                updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), loss

        start = (params, state, optimizer.init(params))
        (params, state, _), losses = jax.lax.scan(step, start, jnp.arange(num_steps))
        return {"params": params, **state}, losses

    return train(key)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_training_finds_a_known_ratio(key, name):
    module = {
        "mlp": MLPDiscriminator((32,), "softplus"),
        "residual": ResidualDiscriminator(channels=8, blocks="B"),
    }[name]
    task = KnownRatio((2, 2), mean=[0.8, -0.5], std=[0.8, 1.0])
    logits = both_of(lambda v, z: (module.apply(v, z, no_context(z)), {}))
    variables, losses = trained(
        module, task, logits, key, num_steps=150, batch_size=256, learning_rate=1e-2
    )
    assert abs(losses[0] - 2 * math.log(2)) < 1e-5
    q, p = task.draws(jax.random.fold_in(key, 1_000), 4_000)
    logit_q, logit_p, _ = jax.jit(logits)(variables, q, p)
    lowest = nce_loss(task.log_r(q), task.log_r(p))
    assert lowest < 0.85
    assert lowest - 0.01 < nce_loss(logit_q, logit_p) < lowest + 0.05
    assert np.corrcoef(logit_p, task.log_r(p))[0, 1] > 0.95


class BatchNormBlock(ResidualBlock):
    """The paper's norm; statistics of the batch where "batch_stats" is mutable."""

    def _normalize(self, x, name):
        return nn.BatchNorm(
            use_running_average=not self.is_mutable_collection("batch_stats"),
            momentum=0.95,
            use_fast_variance=False,
            name=name,
        )(x)


class BatchNormDiscriminator(ResidualDiscriminator):
    def _block(self, is_reduction):
        return BatchNormBlock(is_reduction, "none", self.dtype)


def by_running_statistics(module):
    return lambda variables, z: (module.apply(variables, z, no_context(z)), {})


def by_batch_statistics(module):
    return lambda variables, z: module.apply(
        variables, z, no_context(z), mutable=["batch_stats"]
    )


def test_batch_statistics_make_r_depend_on_the_company_of_a_z():
    module = BatchNormDiscriminator(channels=4, blocks="A")
    z, _ = example()
    variables = random_variables(module, z, no_context(z))
    others = (z + 3.0).at[1].set(z[1])
    before, after = (
        by_batch_statistics(module)(variables, batch)[0][1] for batch in (z, others)
    )
    assert abs(before - after) > 0.05
    before, after = (
        by_running_statistics(module)(variables, batch)[0][1] for batch in (z, others)
    )
    np.testing.assert_allclose(before, after, rtol=1e-4)


def separately(log_r):
    """Logits of q and p from a call on each, the second with what the first left."""

    def logits(variables, q, p):
        logit_q, updates = log_r(variables, q)
        logit_p, updates = log_r({**variables, **updates}, p)
        return logit_q, logit_p, updates

    return logits


def quality(task, log_r, variables, key, num_chunks=64, chunk_size=512):
    """Held-out loss, log Z (truth 0) and the error of the mean of r p / Z."""

    @jax.jit
    def measure(variables, keys):
        def chunk(key):
            q, p = task.draws(key, chunk_size)
            return (
                log_r(variables, q)[0],
                log_r(variables, p)[0],
                task.log_r(q),
                task.log_r(p),
                p,
            )

        flat = jax.lax.map(chunk, keys)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), flat)

    logit_q, logit_p, true_q, true_p, p = measure(
        variables, jax.random.split(key, num_chunks)
    )
    means = [
        np.einsum("n,nhwc->c", jax.nn.softmax(log_w), p) / math.prod(task.shape[:2])
        for log_w in (logit_p, true_p)
    ]
    return {
        "loss": float(nce_loss(logit_q, logit_p)),
        "lowest_loss": float(nce_loss(true_q, true_p)),
        "log_z": float(jax.nn.logsumexp(logit_p) - math.log(logit_p.size)),
        "bias": float(np.linalg.norm(means[0] - means[1]) / np.linalg.norm(task.mean)),
    }


@pytest.mark.optimized
def test_what_batch_norm_does_to_the_ratio(key):
    """Harmless with running statistics of mixed batches; misleading otherwise."""
    rng = np.random.default_rng(0)
    mean, std = 0.17 * rng.normal(size=4), np.exp(0.17 * rng.normal(size=4))
    task = KnownRatio((4, 4), mean, std)
    fit = functools.partial(trained, task=task, key=key, batch_size=128)
    short = {"num_steps": 200, "learning_rate": 5e-3}
    long = {"num_steps": 400, "learning_rate": 3e-3}  # to be misled as far as it goes
    group = ResidualDiscriminator(16, "AB")
    batch = BatchNormDiscriminator(16, "AB")
    running, current = by_running_statistics, by_batch_statistics

    def report(name, log_r, variables, losses):
        found = quality(task, log_r, variables, jax.random.fold_in(key, 1))
        found["train_loss"] = float(losses[-50:].mean())
        print(name, {k: round(v, 3) for k, v in found.items()})
        return found

    by_group = report(
        "group norm",
        running(group),
        *fit(group, logits=both_of(running(group)), **short),
    )
    mixed = fit(batch, logits=both_of(current(batch)), **short)
    as_running = report("running statistics", running(batch), *mixed)
    as_proposals = report("statistics of the proposals", current(batch), *mixed)
    apart = fit(batch, logits=separately(current(batch)), **long)
    by_apart = report("trained apart, running", running(batch), *apart)

    lowest, nothing = by_group["lowest_loss"], 2 * math.log(2)
    for sound in (by_group, as_running):
        assert lowest < sound["loss"] < lowest + 0.15
        assert lowest - 0.03 < sound["train_loss"]
        assert abs(sound["log_z"]) < 0.3
        assert sound["bias"] < 1.0  # that of the base prior
    assert as_proposals["log_z"] > 1.5
    assert as_proposals["loss"] > nothing
    assert by_apart["train_loss"] < 0.2 < lowest  # of no function of z alone
    assert by_apart["loss"] > nothing - 0.1
    assert by_apart["bias"] > 1.2
