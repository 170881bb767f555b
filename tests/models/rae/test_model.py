"""Autoencoders of RAE: every kind's objective by hand, and the true networks' sizes."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models import check
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.rae import model, penalties

B, DIM, PADDING, COLOURS = 4, 3, 2, 3
TINY = {
    "data_shape": (4, 4, COLOURS),
    "padding": PADDING,
    "latent_dim": DIM,
    "channels": 2,
    "num_doublings": 1,
}
WEIGHTS = {
    "embedding_weight": 0.3,
    "regularizer_weight": 0.7,
    "reconstruction_weight": 1.5,
}
X = jnp.asarray(np.random.default_rng(1).random((B, 4, 4, COLOURS), np.float32))


def module_of(kind, **changes):
    weights = {} if kind == "vae" else WEIGHTS
    return model.of_kind(kind, **TINY, **(weights | changes))


def variables_of(module):
    """All kinds have the same ones, but for these; nothing in them is at its start."""
    kind = module.kind if module.kind == "vae" else "ae"
    return random_variables(model.of_kind(kind, **TINY))


@functools.cache
def random_variables(module):
    """Without a compilation, and with biases that leave no ReLU dead."""
    key, generator = jax.random.key(1), np.random.default_rng(3)
    ranges = {"kernel": (-0.5, 0.5), "bias": (0.2, 0.5), "mean": (0.0, 0.1)}

    def drawn(path, leaf):
        low, high = ranges.get(path[-1].key, (0.9, 1.1))
        if path[-1].key == "kernel":  # of about the size that fresh ones have
            low, high = (v * 4 / np.prod(leaf.shape[:-1]) ** 0.5 for v in (low, high))
        return jnp.asarray(generator.uniform(low, high, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(module.init, key, X, key)
    return jax.tree_util.tree_map_with_path(drawn, shapes)


def parts(module):
    """z, the padded picture and its reconstruction, in float64 but for the networks."""

    def run(x):
        bound = module.bind(variables_of(module))
        z = bound.features(x)
        return z, bound.decoder(z)

    z, out = run(X)
    assert jnp.std(z, 0).min() > 0.01 and jnp.std(out, 0).max() > 1e-3
    margin = (PADDING, PADDING)
    x = np.pad(np.asarray(X, np.float64), ((0, 0), margin, margin, (0, 0)))
    return np.asarray(z, np.float64), x, np.asarray(out, np.float64)


def objective(module, mask=None, **settings):
    found = module.apply(
        variables_of(module), X, jax.random.key(3), mask, method="objective", **settings
    )
    return found.of_examples, found.of_batch


TERMS = {
    "wae": {"reconstruction", "mmd"},
    "rae": {"reconstruction", "embedding"},
    "rae_l2": {"reconstruction", "embedding", "decoder_norm"},
    "rae_gp": {"reconstruction", "embedding", "decoder_slope"},
    "ae": {"reconstruction"},
}


@pytest.mark.parametrize("kind", TERMS)
def test_reconstruction_and_embedding_are_means(kind):
    """Of padded pixels and channels; of the dimensions of z, not their sum."""
    module = module_of(kind)
    of_examples, of_batch = objective(module)
    assert {*of_examples, *of_batch} == TERMS[kind]
    z, x, out = parts(module)
    assert out.shape == x.shape == (B, 8, 8, COLOURS)
    expected = 1.5 * ((x - out) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(of_examples["reconstruction"], expected, rtol=1e-4)
    if "embedding" in of_examples:
        expected = 0.3 * (z**2).mean(1)
        np.testing.assert_allclose(of_examples["embedding"], expected, rtol=1e-4)


@pytest.mark.parametrize("has_dense", [False, True])
def test_l2_counts_kernels_of_the_decoder_alone(has_dense):
    module = module_of("rae_l2", has_dense_penalty=has_dense)
    decoder = variables_of(module)["params"]["decoder"]
    kernels = [decoder[name]["kernel"] for name in ("Up_0", "Last_0")]
    kernels += [decoder["Dense_0"]["kernel"]] * has_dense
    expected = 0.7 * sum((np.asarray(k, np.float64) ** 2).sum() for k in kernels)
    _, of_batch = objective(module)
    assert float(of_batch["decoder_norm"]) == pytest.approx(expected, rel=1e-5)


class Linear(nn.Module):
    """A decoder W^T z + b, as part of a module."""

    def setup(self):
        self.decoder = nn.Dense(5, bias_init=nn.initializers.ones)

    def __call__(self, z):
        if self.is_initializing():
            return self.decoder(z)
        return penalties.with_slope(self.decoder, z)


def test_the_slope_of_a_linear_decoder_has_a_closed_form(key):
    """d |W^T z + b|^2 / dz = 2 W (W^T z + b)."""
    z = jax.random.normal(key, (B, DIM))
    variables = Linear().init(key, z)
    weights = np.asarray(variables["params"]["decoder"]["kernel"], np.float64)
    out, slope = jax.jit(Linear().apply)(variables, z)
    expected = np.asarray(z, np.float64) @ weights + 1.0
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, 2 * expected @ weights.T, rtol=1e-4)


def test_the_slope_penalty_is_the_mean_of_squared_slopes():
    """By finite differences of the sum of the squared padded picture."""
    module = module_of("rae_gp")
    z, _, _ = parts(module)
    decode = module.bind(variables_of(module)).decoder

    def squares(z):
        out = np.asarray(decode(jnp.asarray(z, jnp.float32)), np.float64)
        return (out**2).sum((1, 2, 3))

    step = 1e-3
    slopes = [
        (squares(z + step * e) - squares(z - step * e)) / (2 * step)
        for e in np.eye(DIM)
    ]
    expected = 0.7 * (np.stack(slopes, 1) ** 2).mean(1)
    of_examples, _ = objective(module)
    np.testing.assert_allclose(of_examples["decoder_slope"], expected, rtol=0.05)


def mmd_by_loops(z, draws):
    """The unbiased estimate, kernel by kernel and pair by pair."""
    n, dim = z.shape
    total = 0.0
    for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        c = 2 * dim * scale

        def kernel(a, b, c=c):
            return c / (c + ((a - b) ** 2).sum())

        for i in range(n):
            for j in range(n):
                if i != j:
                    within = kernel(z[i], z[j]) + kernel(draws[i], draws[j])
                    total += within / (n * (n - 1))
                total -= 2 * kernel(z[i], draws[j]) / n**2
    return total


def test_the_mmd_is_that_of_the_rows_that_count():
    generator = np.random.default_rng(2)
    z, draws = generator.normal(1.0, 0.5, (7, DIM)), generator.normal(size=(7, DIM))
    for kept in (7, 5):
        expected = mmd_by_loops(z[:kept], draws[:kept])
        rows = (jnp.asarray(v, jnp.float32) for v in (z, draws))
        found = jax.jit(penalties.mmd)(*rows, jnp.arange(7) < kept)
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_wae_compares_encodings_with_draws_of_the_prior():
    module = module_of("wae")
    z, _, _ = parts(module)
    key = rng.stream(jax.random.key(3), "prior")
    draws = np.asarray(jax.random.normal(key, z.shape), np.float64)
    _, of_batch = objective(module)
    expected = 0.7 * mmd_by_loops(z, draws)
    assert float(of_batch["mmd"]) == pytest.approx(expected, rel=1e-3)
    _, of_some = objective(module, jnp.arange(B) < 3)
    expected = 0.7 * mmd_by_loops(z[:3], draws[:3])
    assert float(of_some["mmd"]) == pytest.approx(expected, rel=1e-3)


def test_noise_is_clipped_and_of_training_alone(key):
    module = module_of("wae", input_noise=0.01)
    variables = variables_of(module)
    there = module.apply(variables, X, key, method="_noisy")
    np.testing.assert_array_equal(there, X)
    noisy, _ = module.apply(variables, X, key, method="_noisy", mutable=["batch_stats"])
    size = np.abs(noisy - X)
    assert size.max() <= 0.0101 and (size > 0.0099).any() and (size < 0.009).any()


# --- the VAE


def test_the_published_loss_of_the_vae_is_its_bound():
    """The sum over pixels of the mean over channels, + w KL; w = 0.2 here."""
    weight = 0.2
    module = module_of("vae", likelihood_std=(COLOURS * weight / 2) ** 0.5)
    variables, key = variables_of(module), jax.random.key(4)
    terms = module.apply(variables, X, key, method="elbo_terms")
    q = module.apply(variables, X, method="posterior")
    mean = module.apply(variables, q.sample(key), method="decode").mean
    assert mean.shape == X.shape  # the padding is no part of the likelihood
    x, mean = np.asarray(X, np.float64), np.asarray(mean, np.float64)
    squares = ((x - mean) ** 2).mean(3).sum((1, 2))
    constant = x[0].size / 2 * np.log(2 * np.pi * COLOURS * weight / 2)
    found = weight * (-np.asarray(terms.log_likelihood, np.float64) - constant)
    np.testing.assert_allclose(found, squares, rtol=1e-3)
    mu, std = (np.asarray(v, np.float64) for v in q)
    kl = 0.5 * (std**2 + mu**2 - 1 - 2 * np.log(std)).sum(1)
    np.testing.assert_allclose(terms.kl[:, 0], kl, rtol=1e-4)


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_the_log_std_of_the_vae_is_a_tanh(bound):
    module = module_of("vae", max_log_std=bound)
    variables = variables_of(module)
    q = module.apply(variables, X, method="posterior")
    raw = module.apply(variables, X, method="features")
    expected = np.exp(bound * np.tanh(np.asarray(raw, np.float64)[:, DIM:]))
    np.testing.assert_allclose(q.std, expected, rtol=1e-4)
    np.testing.assert_array_equal(q.mean, raw[:, :DIM])


def test_one_variance_of_all_pixels_is_learnt():
    module = module_of("vae", is_std_learned=True, likelihood_std=0.25)
    key = jax.random.key(4)
    start = jax.eval_shape(module.init, key, X, key)["params"]["log_std"]
    assert start.shape == ()
    variables = variables_of(module)

    def log_likelihood(log_std):
        params = {**variables["params"], "log_std": log_std}
        changed = {**variables, "params": params}
        out = module.apply(changed, jnp.ones((B, DIM)), method="decode")
        return jnp.sum(out.log_prob(X)), out.std

    slope, std = jax.grad(log_likelihood, has_aux=True)(jnp.log(0.5))
    np.testing.assert_allclose(std, 0.5, rtol=1e-6)
    fixed = module_of("vae", likelihood_std=0.5)
    mean = fixed.apply(variables, jnp.ones((B, DIM)), method="decode").mean
    squares = ((np.asarray(X, np.float64) - np.asarray(mean)) ** 2).sum()
    np.testing.assert_allclose(slope, squares / 0.5**2 - X.size, rtol=1e-3)


# --- all kinds


@pytest.mark.parametrize("kind", ["vae", "wae"])
def test_it_is_a_model_of_one_vector(kind):
    module = module_of(kind)
    vae = FrozenVAE(module, variables_of(module))
    check.check(vae, X)
    assert vae.is_deterministic == (kind != "vae")
    assert (vae.posterior(X) is None) == (kind != "vae")
    latents, log_q = vae.encode(X, jax.random.key(5))
    assert latents[0].shape == (1, B, DIM)
    assert np.isfinite(log_q).all() == (kind == "vae")


def test_a_point_does_not_depend_on_the_key():
    module = module_of("ae")
    vae = FrozenVAE(module, variables_of(module))
    first, second = (vae.encode(X, jax.random.key(i)).latents[0] for i in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_every_layer_of_rae_sn_is_normalised():
    key, found = jax.random.key(0), {}
    for kind in ("rae_sn", "rae"):
        variables = jax.eval_shape(module_of(kind).init, key, X, key)
        for name in ("kernel", "right"):
            paths = jax.tree_util.tree_leaves_with_path(variables)
            layers = {path[1:-1] for path, _ in paths if path[-1].key == name}
            found[kind, name] = layers
    assert len(found["rae", "kernel"]) == 5 + 3
    assert found["rae_sn", "right"] == found["rae", "kernel"]
    assert not found["rae", "right"]


def test_training_moves_the_statistics_and_a_frozen_model_keeps_them():
    module = module_of("rae_gp")
    variables = variables_of(module)
    call = functools.partial(
        module.apply, variables, X, jax.random.key(3), method="objective"
    )
    _, changed = call(mutable=["batch_stats"])
    before, after = (
        jax.tree.leaves(v) for v in (variables["batch_stats"], changed["batch_stats"])
    )
    assert len(before) == len(after) == 2 * (4 + 1)
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("wae", 4), ("rae_l2", 4), ("rae_gp", 4), ("rae_gp", 5), ("rae_sn", 4)],
)
def test_every_objective_has_a_gradient(kind, size):
    """That of "rae_gp" is one of a gradient; traced, and not computed."""
    module, key = module_of(kind, kernel_size=size), jax.random.key(0)
    variables = jax.eval_shape(module.init, key, X, key)

    def loss(params, rest):
        out, _ = module.apply({"params": params, **rest}, X, key, mutable=[*rest])
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out))

    rest = {name: v for name, v in variables.items() if name != "params"}
    found = jax.eval_shape(jax.grad(loss), variables["params"], rest)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(
        jnp.shape, variables["params"]
    )


def num_parameters(module):
    """Of the networks, and the shapes of z and of the picture; nothing is computed."""
    x = jax.ShapeDtypeStruct((2, *module.data_shape), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(module.init, key, x, key)
    decode = functools.partial(module.apply, method="decode")
    z = jax.ShapeDtypeStruct((2, module.latent_dim), jnp.float32)
    assert jax.eval_shape(decode, variables, z).mean.shape == x.shape
    leaves = jax.tree.leaves(variables["params"])
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def convolutions(size, *channels):
    """Kernels and biases of a chain of convolutions."""
    return sum(size**2 * a * b + b for a, b in itertools.pairwise(channels))


def norms(*channels):
    return 2 * sum(channels)


NETWORKS = {
    "mnist": (
        {"data_shape": (28, 28, 1), "padding": 2, "latent_dim": 16},
        convolutions(4, 1, 128, 256, 512, 1024)
        + norms(128, 256, 512, 1024)
        + (4096 + 1) * 16
        + (16 + 1) * 8 * 8 * 1024
        + convolutions(4, 1024, 512, 256, 1)
        + norms(512, 256),
    ),
    "cifar10": (
        {"data_shape": (32, 32, 3), "latent_dim": 128},
        convolutions(4, 3, 128, 256, 512, 1024)
        + norms(128, 256, 512, 1024)
        + (4096 + 1) * 128
        + (128 + 1) * 8 * 8 * 1024
        + convolutions(4, 1024, 512, 256, 3)
        + norms(512, 256),
    ),
    "celeba64": (
        {
            "data_shape": (64, 64, 3),
            "latent_dim": 64,
            "kernel_size": 5,
            "num_doublings": 3,
        },
        convolutions(5, 3, 128, 256, 512, 1024)
        + norms(128, 256, 512, 1024)
        + (16384 + 1) * 64
        + (64 + 1) * 8 * 8 * 1024
        + convolutions(5, 1024, 512, 256, 128, 3)
        + norms(512, 256, 128),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_true_networks_have_their_sizes(name):
    settings, expected = NETWORKS[name]
    assert num_parameters(model.of_kind("ae", **settings)) == expected
    flat = 16384 if name == "celeba64" else 4096
    head = (flat + 1) * settings["latent_dim"]  # of log std
    assert num_parameters(model.of_kind("vae", **settings)) == expected + head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_shape": (2,)}, r"'rae' is for pictures .* \(2,\)"),
        ({"num_doublings": 4}, r"num_doublings = 4 .* are 8 and 8"),
    ],
)
def test_shapes_that_cannot_be_are_named(changes, message):
    module = model.of_kind("ae", **(TINY | changes))
    x = jax.ShapeDtypeStruct((1, *module.data_shape), jnp.float32)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x, jax.random.key(0))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("WAE", {}, r"kind must be one of .*'wae'.*, got 'WAE'"),
        ("vae", {"likelihood": "gausian"}, "must be 'normal', got 'gausian'"),
    ],
)
def test_names_that_are_none_are_refused(kind, changes, message):
    with pytest.raises(InputError, match=message):
        model.of_kind(kind, **changes, **TINY)
