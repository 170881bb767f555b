"""`ladder_vae.py` and `conv_hvae.py` beyond the contract that every VAE keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.base import Block
from ncp_jax.models.conv_hvae import ConvHVAE, map_sizes
from ncp_jax.models.ladder_vae import LadderVAE
from ncp_jax.priors import latents

MODELS = {
    "residual": LadderVAE((3,), (2, 1, 3), (6, 5)),
    "free": LadderVAE((3,), (2, 1, 3), (6, 5), is_residual_posterior=False),
    "normal": LadderVAE((3,), (2, 2), (6,), likelihood="normal"),
    "conv": ConvHVAE((6, 5, 2), 2, channels=3, hidden_dim=5),
    "conv_normal": ConvHVAE((4, 4, 1), 2, 3, 5, likelihood="normal"),
}


@pytest.fixture(params=MODELS)
def module(request):
    return MODELS[request.param]


@pytest.fixture
def variables(module, key):
    """With a mean picture of its own and no bias at zero."""
    fresh = jax.jit(module.init)(key, jnp.zeros((1, *module.data_shape)), key)
    leaves, tree = jax.tree.flatten(fresh["params"])
    generator = np.random.default_rng(0)
    noise = [0.4 * generator.normal(size=v.shape).astype(np.float32) for v in leaves]
    mean = jnp.asarray(generator.uniform(0.1, 0.9, module.data_shape), jnp.float32)
    params = tree.unflatten([v + n for v, n in zip(leaves, noise, strict=True)])
    return {"params": params, "statistics": {"data_mean": mean}}


def example(module, batch_size=4):
    bits = np.random.default_rng(1).integers(2, size=(batch_size, *module.data_shape))
    return jnp.asarray(bits, jnp.float32)


def log_normal(z, mean, std):
    z, mean, std = (np.asarray(v, np.float64) for v in (z, mean, std))
    return (-0.5 * ((z - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))).sum(1)


def test_elbo_terms_agree_with_the_plug_in_interface(module, variables, key):
    """The same key draws the same z; the KL is the closed form of its q and p."""
    x = example(module)
    vae = module.bind(variables)
    z, log_q = vae.encode(x, key)
    terms, (drawn, groups) = vae.elbo_terms(x, key), vae.infer(x, key)
    carry = vae.root(len(x))
    for k, (q, p) in enumerate(groups):
        np.testing.assert_array_equal(z[k][0], drawn[k])
        prior = vae.prior(k, 0, carry)
        np.testing.assert_allclose(prior.base.mean, p.mean, rtol=1e-6)
        np.testing.assert_allclose(prior.base.std, p.std, rtol=1e-6)
        expected = log_normal(z[k][0], q.mean, q.std)
        np.testing.assert_allclose(log_q[:, k], expected, rtol=1e-4, atol=1e-4)
        (m_q, s_q), (m_p, s_p) = (
            (np.asarray(v, np.float64) for v in normal) for normal in (q, p)
        )
        kl = np.log(s_p / s_q) + (s_q**2 + (m_q - m_p) ** 2) / (2 * s_p**2) - 0.5
        np.testing.assert_allclose(terms.kl[:, k], kl.sum(1), rtol=1e-4)
        carry = vae.absorb(k, 0, carry, z[k][0])
    np.testing.assert_array_equal(carry, jnp.concatenate(drawn, 1))
    np.testing.assert_allclose(
        terms.log_likelihood, vae.decode(carry).log_prob(x), rtol=1e-5
    )


def test_without_a_key_every_group_takes_its_mean(module, variables):
    x = example(module)
    vae = module.bind(variables)
    z = vae.encode(x, None).latents
    for z_k, (q, _) in zip(z, vae.infer(x, None)[1], strict=True):
        np.testing.assert_array_equal(z_k[0], q.mean)


def test_every_group_is_given_all_before_it_and_nothing_after(module, variables, key):
    """A change of z_j moves p(z_k) and q(z_k) for k > j, and no other."""
    x = example(module)
    vae = module.bind(variables)
    starts = np.cumsum([0, *module.sizes])
    features, carry = vae.features(x), jax.random.normal(key, (4, starts[-1]))

    def parameters(carry, k):
        p, context = vae.prior(k, 0, carry)
        return *p, *vae.group_posterior(k, features, context, p)

    for j, start in enumerate(starts[:-1]):
        moved = carry.at[:, start].add(0.7)
        for k in range(len(module.sizes)):
            pairs = zip(parameters(carry, k), parameters(moved, k), strict=True)
            changes = [bool(np.any(a != b)) for a, b in pairs]
            assert changes == [j < k] * 4, (j, k)


def test_blocks_hold_all_earlier_groups_as_context():
    assert MODELS["residual"].blocks == (
        Block(1, (2,), (0,)),
        Block(1, (1,), (2,)),
        Block(1, (3,), (3,)),
    )
    assert MODELS["conv"].blocks == (Block(1, (2,), (0,)), Block(1, (2,), (2,)))


def test_a_residual_posterior_is_the_prior_where_its_head_says_nothing(key):
    """Offset 0 and factor 1 in units of p, whatever p is."""
    module = MODELS["residual"]
    x = example(module)
    variables = jax.jit(module.init)(key, x, key)
    params = dict(variables["params"])
    for k, size in enumerate(module.sizes):
        head = jax.tree.map(jnp.zeros_like, params[f"posteriors_{k}"])
        one = jnp.full(size, np.log(np.e - 1))  # whose softplus is 1
        head["Dense_1"]["bias"] = jnp.concatenate([jnp.zeros(size), one])
        params[f"posteriors_{k}"] = head
    vae = module.bind(variables | {"params": params})
    np.testing.assert_allclose(vae.elbo_terms(x, key).kl, 0.0, atol=1e-5)
    _, carry = latents.log_prior(vae, vae.encode(x, key).latents)
    assert np.abs(vae.prior(2, 0, carry).base.mean).max() > 0.01


def test_decoders_start_from_the_mean_picture(module, variables):
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    vae = module.bind(variables | {"params": zeros})
    mean = variables["statistics"]["data_mean"]
    decoded = vae.decode(jnp.ones((2, sum(module.sizes)))).mean
    np.testing.assert_allclose(decoded, np.stack([mean] * 2), rtol=1e-4)


def test_encoders_read_x_minus_the_mean_picture(module, variables):
    """At x = mean they see zeros: another mean picture changes nothing there."""
    mean = variables["statistics"]["data_mean"]
    moved = variables | {"statistics": {"data_mean": mean + 0.3}}
    here = module.apply(variables, mean[None], method="features")
    there = module.apply(moved, mean[None] + 0.3, method="features")
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- ConvHVAE: the sizes that the literature's has


def test_the_architecture_is_eims():
    module = ConvHVAE((28, 28, 1))
    assert map_sizes((28, 28, 1)) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jax.random.key(0)
    )
    found = {
        name: [leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
        for name, tree in shapes["params"].items()
    }
    tower = [(4, 4, 1, 32), (4, 4, 32, 32), (4, 4, 32, 32)]
    assert found == {
        "towers_0": tower,
        "towers_1": tower,
        "top_posterior": [(512, 100)],
        "top_to_posterior": [(50, 512)],
        "bottom_posterior": [(1024, 300), (300, 100)],
        "bottom_prior": [(50, 300), (300, 300), (300, 100)],
        "to_decoder_0": [(50, 300)],
        "to_decoder_1": [(50, 300)],
        "joint_to_decoder": [(600, 512)],
        "pixels": [(4, 4, 32, 32), (4, 4, 32, 32), (4, 4, 32, 1)],
    }


def test_points_are_refused_with_a_model_that_takes_them():
    with pytest.raises(InputError, match=r"pictures.*\(2,\).*'ladder'"):
        jax.eval_shape(
            ConvHVAE((2,)).init, jax.random.key(0), jnp.zeros((1, 2)), jax.random.key(0)
        )


@pytest.mark.parametrize("name", ["free", "conv"])
def test_a_likelihood_that_is_none_is_named(name, key):
    module = MODELS[name].clone(likelihood="gausian")
    with pytest.raises(InputError, match=r"\('bernoulli', 'normal'\), got 'gausian'"):
        jax.eval_shape(module.init, key, example(module), key)
