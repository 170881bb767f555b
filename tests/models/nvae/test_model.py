"""NVAE: the contract of a `LatentVariableModel`, and what is its own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ncp_jax.errors import InputError
from ncp_jax.models import base
from ncp_jax.models.nvae.cells import DownSkip, upsample_bilinear
from ncp_jax.models.nvae.layers import BatchNorm, CellOptions, Conv
from ncp_jax.models.nvae.layout import groups_per_scale
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.models.nvae.readjust import readjust_batch_norm
from tests import tiny
from tests.random_variables import random_variables

SMALL = NVAE(
    data_shape=(8, 8, 3),
    groups_per_scale=(2, 3),
    latent_channels=2,
    encoder_channels=4,
    decoder_channels=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_cells=1,
    num_encoder_cells=1,
    num_decoder_cells=1,
    likelihood="normal",
)
MODELS = {
    "two_scales": SMALL,
    "first_group_alone_and_flows": SMALL.clone(groups_per_scale=(1, 2), num_flows=2),
    "bernoulli_padded": SMALL.clone(
        data_shape=(6, 6, 1), padding=1, groups_per_scale=(3,), likelihood="bernoulli"
    ),
}


def generic(module):
    return random_variables(
        module, jnp.zeros((1, *module.data_shape)), jax.random.key(0)
    )


def picture(module, batch_size=2, seed=0):
    noise = np.random.default_rng(seed).uniform(size=(batch_size, *module.data_shape))
    return jnp.asarray(np.round(noise), jnp.float32)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    module = MODELS[request.param]
    return module, generic(module)


def test_initial_variables(key):
    module = SMALL.clone(groups_per_scale=(2,), num_decoder_cells=0)
    x = picture(module)
    fast = jax.random.key(0, impl="rbg")  # compiles in a tenth of the time
    variables = jax.jit(module.init)(fast, x, key)
    assert set(variables) == {"params", "batch_stats"}
    chex.assert_tree_all_finite(variables)
    uniform = variables["params"]["top_down"]["top_feature"]
    assert 0.0 <= uniform.min() < 0.2 and 0.8 < uniform.max() <= 1.0
    kernel = variables["params"]["top_down"]["groups_1"]["posterior_head"]["kernel"]
    log_norm = variables["params"]["top_down"]["groups_1"]["posterior_head"]["log_norm"]
    norm = np.sqrt(np.sum(kernel**2, axis=(1, 2, 3)))
    np.testing.assert_allclose(log_norm, np.log(norm + 0.01), rtol=1e-4)


def walk_one_by_one(vae, latents, x):
    carry, log_p = vae.root(x.shape[0]), []
    for block, z in enumerate(latents):
        for k in range(len(z)):
            log_p.append(vae.prior(block, k, carry).base.log_prob(z[k]))
            carry = vae.absorb(block, k, carry, z[k])
    return jnp.stack(log_p), vae.decode(carry).log_prob(x)


def walk_by_scan(vae, latents, x):
    carry, log_p = vae.root(x.shape[0]), []
    for block, z in enumerate(latents):

        def step(carry, inputs, block=block):
            k, z_k = inputs
            log_p = vae.prior(block, k, carry).base.log_prob(z_k)
            return vae.absorb(block, k, carry, z_k), log_p

        carry, of_block = jax.lax.scan(step, carry, (jnp.arange(len(z)), z))
        log_p.append(of_block)
    return jnp.concatenate(log_p), vae.decode(carry).log_prob(x)


def test_walk_by_groups_agrees_with_the_pass_over_all(model, key):
    module, variables = model
    x = picture(module)

    @jax.jit
    def run(variables):
        vae = base.FrozenVAE(module, variables)
        feature, groups = module.apply(variables, x, key, method="infer")
        likelihood = module.apply(variables, (feature,), method="decode")
        latents = tuple(group.z for group in groups)
        walks = [walk_by_scan(vae, latents, x)]
        if module is SMALL:
            walks.append(walk_one_by_one(vae, latents, x))
        return groups, likelihood.log_prob(x), walks

    groups, log_likelihood, walks = run(variables)
    log_q, log_p, kl = (
        jnp.concatenate([getattr(group, name) for group in groups])
        for name in ("log_q", "log_p", "kl")
    )
    for walk in walks:
        chex.assert_trees_all_close(walk, (log_p, log_likelihood), rtol=1e-4)
    if module.num_flows:
        np.testing.assert_allclose(kl, log_q - log_p, rtol=1e-4)


def test_shapes_are_the_declared_ones(model, key):
    module, variables = model
    vae, x = base.FrozenVAE(module, variables), picture(module, batch_size=3)
    encoding = jax.eval_shape(vae.encode, x, key)
    num_groups = sum(module.groups_per_scale)
    assert sum(block.num_groups for block in vae.blocks) == num_groups
    assert encoding.log_q.shape == (3, num_groups)
    for block, z in zip(vae.blocks, encoding.latents, strict=True):
        assert z.shape == (block.num_groups, 3, *block.latent_shape)
    carry = vae.root(3)
    for index, block in enumerate(vae.blocks):
        group = jax.eval_shape(lambda c, i=index: vae.prior(i, 0, c), carry)
        assert group.base.mean.shape == (3, *block.latent_shape)
        assert group.context.shape == (3, *block.context_shape)
    sample = jax.eval_shape(lambda: vae.decode(carry).sample(key))
    assert sample.shape == (3, *module.data_shape)


def test_gradients_reach_latents_but_not_variables(key):
    vae = base.FrozenVAE(SMALL, generic(SMALL))

    def total(vae, z):
        carry = vae.absorb(0, 0, vae.root(2), z)
        carry = jax.lax.cond(  # as inside a scan, k is traced
            True, lambda c: vae.absorb(1, jnp.asarray(0), c, z), lambda c: c, carry
        )
        return jnp.sum(vae.prior(2, 0, carry).context ** 2)

    z = jax.random.normal(key, (2, *SMALL.blocks[0].latent_shape))
    of_vae, of_z = jax.jit(jax.grad(total, argnums=(0, 1)))(vae, z)
    assert jnp.any(of_z != 0.0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_vae))


def test_context_is_what_the_prior_head_reads(key):
    variables = generic(SMALL)
    vae = base.FrozenVAE(SMALL, variables)
    carry = vae.root(2)
    top = variables["params"]["top_down"]["top_feature"]
    context = vae.prior(0, 0, carry).context
    np.testing.assert_allclose(context, np.broadcast_to(top, context.shape))
    z = jax.random.normal(key, (2, *SMALL.blocks[0].latent_shape))
    group = vae.prior(1, 0, vae.absorb(0, 0, carry, z))
    head = variables["params"]["top_down"]["groups_1"]["prior_head"]
    kernel = head["kernel"][0, 0, 0]  # slot 0; 1x1
    norm = np.sqrt(np.sum(kernel**2, axis=0))
    kernel = np.exp(head["log_norm"][0]) * kernel / (norm + 1e-5)
    out = jax.nn.elu(group.context) @ kernel + head["bias"][0][None, None, None]
    mean, log_std = np.split(np.asarray(out), 2, axis=-1)
    np.testing.assert_allclose(
        group.base.mean, 5.0 * np.tanh(mean / 5.0), rtol=1e-4, atol=1e-5
    )
    std = np.exp(5.0 * np.tanh(log_std / 5.0)) + 0.01
    np.testing.assert_allclose(group.base.std, std, rtol=1e-4)


def test_first_prior_is_almost_standard():
    group = base.FrozenVAE(SMALL, generic(SMALL)).prior(
        0, 0, SMALL.apply(generic(SMALL), 1, method="root")
    )
    np.testing.assert_array_equal(group.base.mean, 0.0)
    np.testing.assert_allclose(group.base.std, 1.01, rtol=1e-6)


def test_pictures_may_come_padded():
    module = MODELS["bernoulli_padded"]
    variables, x = generic(module), picture(module)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    terms = jax.jit(lambda v, x: module.apply(v, x, None))
    chex.assert_trees_all_close(
        terms(variables, x), terms(variables, padded), rtol=1e-5
    )


def test_zero_temperature_takes_the_means(key):
    module = SMALL.clone(groups_per_scale=(2,))
    variables = generic(module)
    generate = jax.jit(
        lambda key, *args: module.apply(variables, 2, key, *args, method="generate")
    )
    cold, warm = generate(key, 0.0).mean, generate(key, 0.7).mean
    mean = generate(None).mean
    np.testing.assert_allclose(cold, mean, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(warm - mean)) > 1e-3


def test_training_moves_batch_statistics_and_a_frozen_model_keeps_them(key):
    module = SMALL.clone(groups_per_scale=(2,))
    variables, x = generic(module), picture(module, 4)
    train = tiny.Counted(
        lambda v, x: module.apply(v, x, key, mutable=["batch_stats", "kernels"])
    )
    terms, updated = train(variables, x)
    chex.assert_tree_all_finite((terms, updated))
    before, after = variables["batch_stats"], updated["batch_stats"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
    assert all(jax.tree.leaves(changed))
    train(variables, x + 0.0)
    assert train.num_traces == 1


def test_bfloat16_keeps_parameters_statistics_and_densities_in_float32(key):
    exact = SMALL.clone(groups_per_scale=(2,))
    module = exact.clone(dtype=jnp.bfloat16)
    variables, x = generic(module), picture(module)

    @jax.jit
    def run(variables):
        half = module.apply(variables, x, None, mutable=["batch_stats"])
        return *half, exact.apply(variables, x, None, mutable=["batch_stats"])[0]

    half, updated, full = run(variables)
    for leaf in jax.tree.leaves((half, updated)):
        assert leaf.dtype == jnp.float32
    assert module.apply(variables, 1, method="root")[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(half.log_likelihood, full.log_likelihood, rtol=0.02)
    np.testing.assert_allclose(half.kl, full.kl, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_readjusted_statistics_are_finite_and_only_the_decoders(key, temperature):
    module = SMALL.clone(dtype=jnp.bfloat16, groups_per_scale=(2,))
    variables = generic(module)
    new = readjust_batch_norm(module, variables, key, temperature, 5, 2)
    chex.assert_tree_all_finite(new)
    old, new = variables["batch_stats"], new["batch_stats"]
    chex.assert_trees_all_equal(new["encoder"], old["encoder"])
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), old["pixels"], new["pixels"]
    )
    assert all(jax.tree.leaves(moved))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))


def test_batch_norm_is_synchronised_over_a_mapped_axis(key):
    x = 3.0 + 2.0 * jax.random.normal(key, (8, 2, 2, 3))
    whole = BatchNorm(CellOptions())
    parts = BatchNorm(CellOptions(axis_name="devices"))
    variables = whole.init(key, x)
    y, stats = whole.apply(variables, x, mutable=["batch_stats"])
    y_parts, stats_parts = jax.vmap(
        lambda x: parts.apply(variables, x, mutable=["batch_stats"]),
        axis_name="devices",
    )(x.reshape(4, 2, 2, 2, 3))
    np.testing.assert_allclose(y_parts.reshape(x.shape), y, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[0], stats_parts), stats, rtol=1e-5
    )
    moments = stats["batch_stats"]
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(moments["mean"], 0.05 * flat.mean(0), rtol=1e-5)
    var = 0.95 + 0.05 * flat.var(0, ddof=1)
    np.testing.assert_allclose(moments["var"], var, rtol=1e-5)


def test_pass_inside_shard_map_is_that_over_the_whole_batch():
    """On as many devices as there are; one still checks the types of the scans."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    module = SMALL.clone(groups_per_scale=(2,))
    variables, x = generic(module), picture(module, 2 * devices)

    def run(module):
        return lambda v, x: module.apply(v, x, None, mutable=["batch_stats"])

    mapped = jax.shard_map(
        run(module.clone(axis_name="data")),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )
    whole = jax.jit(run(module))(variables, x)
    chex.assert_trees_all_close(jax.jit(mapped)(variables, x), whole, rtol=1e-3)


def test_batch_norm_of_one_value_is_finite(key):
    module = BatchNorm(CellOptions())
    x = jnp.ones((1, 1, 1, 2))
    y, stats = module.apply(module.init(key, x), x, mutable=["batch_stats"])
    chex.assert_tree_all_finite((y, stats))


def test_convolution_norms_are_the_exponentials(key):
    module = Conv(4, 3)
    variables = module.init(key, jnp.zeros((1, 5, 5, 2)))
    params = {**variables["params"], "log_norm": jnp.log(jnp.arange(1.0, 5.0))}
    _, sown = module.apply(
        {"params": params}, jnp.zeros((1, 5, 5, 2)), mutable="kernels"
    )
    norm = jnp.sqrt(jnp.sum(sown["kernels"]["kernel"] ** 2, axis=(0, 1, 2)))
    np.testing.assert_allclose(norm, [1.0, 2.0, 3.0, 4.0], rtol=1e-4)


def test_down_skip_reads_every_pixel_once(key):
    module = DownSkip(4)
    x = jnp.zeros((1, 4, 4, 1))
    variables = module.init(key, x)
    bias = module.apply(variables, x)
    offsets = [(0, 0), (1, 1), (0, 1), (1, 0)]
    for channel, (row, column) in enumerate(offsets):
        y = module.apply(variables, x.at[0, 2 + row, column].set(1.0)) - bias
        assert np.argwhere(y).tolist() == [[0, 1, 0, channel]]


def test_bilinear_upsampling_is_exact_on_planes():
    rows, columns = jnp.meshgrid(jnp.arange(3.0), jnp.arange(4.0), indexing="ij")
    y = upsample_bilinear((2.0 * rows - columns)[None, :, :, None])[0, :, :, 0]
    rows, columns = np.meshgrid(
        np.linspace(0, 2, 6), np.linspace(0, 3, 8), indexing="ij"
    )
    np.testing.assert_allclose(y, 2.0 * rows - columns, atol=1e-5)
    np.testing.assert_array_equal(upsample_bilinear(jnp.ones((1, 1, 1, 1))), 1.0)


def test_groups_per_scale_of_the_published_models():
    assert groups_per_scale(2, 10, True) == (5, 10)
    assert groups_per_scale(1, 30, False) == (30,)
    assert groups_per_scale(3, 20, True) == (5, 10, 20)
    assert groups_per_scale(5, 16, True, 4) == (4, 4, 4, 8, 16)
    assert groups_per_scale(5, 4, False) == (4, 4, 4, 4, 4)


def test_pictures_must_divide_into_the_coarsest_latents(key):
    module = SMALL.clone(data_shape=(10, 8, 3))
    with pytest.raises(InputError, match=r"\[10, 8\].*multiples of 4"):
        jax.eval_shape(module.init, key, jnp.zeros((1, 10, 8, 3)), key)


def test_a_likelihood_that_is_none_is_named(key):
    module = SMALL.clone(likelihood="gausian")
    with pytest.raises(InputError, match=r"'logistic_mixture'\), got 'gausian'"):
        jax.eval_shape(module.init, key, picture(module), key)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(key):
    variables, x = generic(SMALL), picture(SMALL)

    def loss(params, module):
        terms, _ = module.apply(
            {**variables, "params": params}, x, key, mutable=["batch_stats"]
        )
        return jnp.sum(terms.kl) - jnp.sum(terms.log_likelihood)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain = gradient(variables["params"], SMALL)
    remade = gradient(variables["params"], SMALL.clone(is_rematerialized=True))
    # An entry is a sum of terms as large as the largest entries of its array, and is
    # right to some roundings of those, however small it is itself.
    for mine, other in zip(*map(jax.tree.leaves, (remade, plain)), strict=True):
        rounding = np.finfo(np.float32).eps * np.abs(other).max()
        atol = 1e-3 + 16 * rounding
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=atol)


def train_step(module, x):
    def loss(params, stats, key):
        terms, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, key, mutable=["batch_stats"]
        )
        value = jnp.sum(terms.kl) - jnp.sum(terms.log_likelihood)
        return value, updated["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)


def ancestral(module):
    def sample(variables, key):
        vae = base.FrozenVAE(module, variables)
        carry = vae.root(2)
        for block, (num_groups, *_) in enumerate(vae.blocks):

            def step(carry, inputs, block=block):
                k, key = inputs
                z = vae.prior(block, k, carry).base.sample(key)
                return vae.absorb(block, k, carry, z), None

            keys = jax.random.split(key, num_groups)
            carry, _ = jax.lax.scan(step, carry, (jnp.arange(num_groups), keys))
        return vae.decode(carry).mean

    return sample


@pytest.mark.slow
def test_programs_do_not_grow_with_the_number_of_groups(key):
    # Nor does the time that XLA takes for them: groups of one block are one scan.
    sizes = {}
    for num_groups in (10, 30):
        module = SMALL.clone(groups_per_scale=(num_groups,))
        variables, x = generic(module), picture(module)
        lowered = (
            jax.jit(train_step(module, x)).lower(
                variables["params"], variables["batch_stats"], key
            ),
            jax.jit(ancestral(module)).lower(variables, key),
        )
        sizes[num_groups] = [
            [len(program.as_text()), len(program.compile().as_text())]
            for program in lowered
        ]
    growth = np.divide(sizes[30], sizes[10])
    print("growth of training, sampling, as written and as compiled:", growth)
    assert np.all(growth <= 1.05)
