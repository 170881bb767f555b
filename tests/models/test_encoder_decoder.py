"""A VAE made of two functions is the VAE that the functions come from."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax import EncoderDecoder, FrozenVAE
from ncp_jax.comparison.one_vector import OneVector
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.training.ncp import preparation

X = jnp.asarray(np.random.default_rng(0).integers(2, size=(6, 2, 3, 1)), jnp.float32)
MODULE = MLPVAE((2, 3, 1), 4, (5,))
VARIABLES = MODULE.init(jax.random.key(0), X, jax.random.key(1))


def encoder(variables, x):
    return MODULE.apply(variables, x, method="posterior")


def decoder(variables, z):
    return MODULE.apply(variables, z, method="decode")


VAE = EncoderDecoder(encoder, decoder, VARIABLES, latent_shape=(4,))


def test_it_does_what_the_module_does(key):
    frozen = FrozenVAE(MODULE, VARIABLES)
    z = jax.random.normal(key, (6, 4))
    ncp_jax.check(VAE, X)
    assert VAE.blocks == frozen.blocks
    for found, expected in (
        (VAE.encode(X, key), frozen.encode(X, key)),
        (VAE.posterior(X), frozen.posterior(X)),
        (VAE.prior(0, 0, VAE.root(6)), frozen.prior(0, 0, frozen.root(6))),
        (VAE.decode(VAE.absorb(0, 0, None, z)), frozen.decode(z)),
    ):
        chex.assert_trees_all_equal(found, expected)


def test_gradients_reach_z_and_no_variable(key):
    z = jax.random.normal(key, (6, 4))

    def log_likelihood(vae, z):
        return jnp.sum(vae.decode(z).log_prob(X) + vae.posterior(X).log_prob(z))

    of_vae, of_z = jax.grad(log_likelihood, argnums=(0, 1))(VAE, z)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(of_vae))
    assert np.all(of_z != 0)


def test_a_map_of_functions_that_hold_their_weights():
    """With `variables=None`; z may have any shape."""

    def posterior(_, x):
        mean = x[:, :2, :2]
        return ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))

    def likelihood(_, z):
        return ncp_jax.Bernoulli(jnp.pad(z, ((0, 0), (0, 0), (0, 1), (0, 0))))

    ncp_jax.check(EncoderDecoder(posterior, likelihood, None, (2, 2, 1)), X)


@pytest.mark.parametrize("latent_shape", [(3,), 4])
def test_another_shape_is_named(latent_shape):
    vae = EncoderDecoder(encoder, decoder, VARIABLES, latent_shape)
    with pytest.raises(ncp_jax.InputError, match="shape"):
        ncp_jax.check(vae, X)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (lambda q: tuple(q), r"a tuple of arrays"),
        (lambda q: list(q), r"a list of arrays"),
        (lambda q: q.mean, r"float32\[B, 4\]"),
        (lambda q: None, r"a NoneType"),
    ],
)
def test_an_encoder_returns_a_distribution(returned, found):
    vae = dataclasses.replace(VAE, encoder=lambda v, x: returned(encoder(v, x)))
    message = rf"the encoder returns {found}; .*ncp_jax\.Normal\(mean, std\)"
    with pytest.raises(ncp_jax.InputError, match=message):
        ncp_jax.check(vae, X)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_functions_of_numpy_are_named(part):
    """Under `jit` arrays have no numbers yet."""
    vae = dataclasses.replace(VAE, **{part: lambda _, x: np.asarray(x) + 1.0})
    with pytest.raises(ncp_jax.InputError, match=r"jax\.pure_callback"):
        ncp_jax.check(vae, X)


@pytest.mark.parametrize("std", [0.5, np.full((1, 4), 0.5, np.float32)])
def test_a_std_may_be_of_all_examples(std, key):
    def posterior(variables, x):
        return encoder(variables, x)._replace(std=std)

    vae = dataclasses.replace(VAE, encoder=posterior)
    ncp_jax.check(vae, X)
    preparation.checked(vae, np.asarray(X), None)
    q = OneVector(vae).posterior(X)
    assert q.std.shape == q.mean.shape == (6, 4)
    z = jax.random.normal(key, (6, 4))
    assert np.all(q.std == 0.5)
    chex.assert_trees_all_close(q.log_prob(z), vae.posterior(X).log_prob(z))
