"""A VAE in its standardised noise is the same VAE, and knows its own z."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.check import check
from ncp_jax.priors import directions, generation, standardized
from ncp_jax.priors.group_samplers import Base
from ncp_jax.priors.latents import log_prior
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import StandardizedVAE
from tests.oracles import InterleavedVAE, ThreeGroupVAE, TwoBlockVAE
from tests.signal_toy import SignalVAE as SignalToy
from tests.signal_toy import planes

MODULES = [TwoBlockVAE(), ThreeGroupVAE(), InterleavedVAE()]


def frozen(module, key):
    x = jnp.zeros((1, *module.data_shape))
    variables = jax.jit(module.init)(key, x, key)
    # No prior is standard normal already.
    return FrozenVAE(module, jax.tree.map(lambda leaf: leaf + 0.2, variables))


def in_directions(vae, key):
    found = directions.random_directions(vae, rng.stream(key, "directions"), 1)
    return SignalVAE(vae, found, context_size=1)


@pytest.mark.parametrize("module", MODULES)
def test_encodings_weigh_what_those_of_the_vae_weigh(key, module):
    vae = frozen(module, key)
    x = jax.random.normal(key, (5, *module.data_shape))

    @jax.jit
    def weigh(model, x):
        latents, log_q = model.encode(x, key)
        log_p, carry = log_prior(model, latents)
        own = standardized.own_latents(model, latents, carry)
        return log_p - log_q, model.decode(carry).mean, own

    here, there = weigh(StandardizedVAE(vae), x), weigh(vae, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), here, there)
    e = jax.jit(lambda model: model.encode(x, key).latents)(StandardizedVAE(vae))
    apart = [np.abs(a - b).max() for a, b in zip(e, there[2], strict=True)]
    assert max(apart) > 0.1  # z itself would not do


@pytest.mark.parametrize("view", [StandardizedVAE, in_directions])
def test_samples_hold_the_z_of_the_vae(key, view):
    """Walked through the VAE they decode to the same picture."""
    vae = frozen(TwoBlockVAE(), key)
    model = view(vae, key) if view is in_directions else view(vae)
    ncp = NCPPrior(model, nn.Dense(1), (None,) * len(model.blocks))
    out = generation.sample(ncp, key, 6, Base())
    assert [z.shape for z in out.latents] == [(1, 6, 2), (1, 6, 2, 1)]
    _, carry = log_prior(vae, out.latents)
    np.testing.assert_allclose(vae.decode(carry).mean, out.images, atol=1e-5)


def test_coordinates_go_back_to_z(key):
    model = in_directions(frozen(InterleavedVAE(), key), key)
    x = jax.random.normal(key, (4, 3))
    z = model.to_z(model.encode(x, key).latents)
    expected = model.vae.encode(x, rng.stream(key, "posterior")).latents
    for found, own in zip(z, expected, strict=True):
        np.testing.assert_allclose(found, own, atol=1e-5)


def test_a_view_keeps_the_protocol_and_shows_its_vae(key):
    vae = frozen(TwoBlockVAE(), key)
    for model in (StandardizedVAE(vae), in_directions(vae, key)):
        check(model, jnp.zeros((2, 3)))
        assert standardized.itself(model) is vae
        other = frozen(TwoBlockVAE(), rng.stream(key, "other"))
        again = standardized.with_vae(model, other)
        assert type(again) is type(model) and again.vae is other
        assert repr(NCPPrior(model, nn.Dense(1), ())).startswith(
            "NCPPrior(TwoBlockVAE, K=2,"
        )
    assert standardized.itself(vae) is vae and standardized.with_vae(vae, vae) is vae


def test_a_base_prior_that_is_not_normal_is_refused_with_the_way_out(key):
    gains = jnp.array([[0.8, 0.5]])
    vae = StandardizedVAE(SignalToy(jnp.asarray(planes(1)), gains, is_normal=False))
    with pytest.raises(InputError, match=r"Bernoulli.*Normal.*reads z itself"):
        vae.encode(jnp.zeros((2, 2)), key)
