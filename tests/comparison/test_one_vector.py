"""`comparison/one_vector.py`: z [B, D] of VAEs of one group, of any shape."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import one_vector
from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, Encoding, FrozenVAE, GroupPrior
from ncp_jax.models.ladder_vae import LadderVAE
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.priors.ex_post.contract import LatentPrior
from ncp_jax.training.ncp import preparation
from tests.oracles import ChainVAE, LinearGaussianVAE
from tests.statistics import assert_mean


class Uniform(NamedTuple):
    """On [low, low + 2], of the latents' shape."""

    low: jax.Array

    def sample(self, key):
        return self.low + 2.0 * jax.random.uniform(key, self.low.shape)

    def log_prob(self, value):
        return jnp.full(len(value), -np.log(2.0) * value[0].size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapVAE:
    """One group of shape [2, 2, 1] with a uniform prior; x = z and noise."""

    scale: jax.Array
    blocks = (Block(1, (2, 2, 1), (0,)),)

    def encode(self, x, key):
        noise = self.scale * jax.random.normal(key, x.shape)
        log_q = jax.scipy.stats.norm.logpdf(noise, 0.0, self.scale).sum((1, 2, 3))
        return Encoding(((x + noise)[None],), log_q[:, None])

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2, 2, 1))

    def prior(self, block, k, carry):
        return GroupPrior(Uniform(carry - 1.0), carry.reshape(len(carry), -1)[:, :0])

    def absorb(self, block, k, carry, z_k):
        return z_k

    def decode(self, carry):
        return Uniform(carry)


def test_a_map_becomes_a_vector_and_its_prior_stays(key):
    model = one_vector.of(MapVAE(jnp.float32(0.1)))
    x = jnp.arange(12.0).reshape(3, 2, 2, 1)
    z, log_q = model.encode(x, key)
    assert z.shape == (3, 4) and log_q.shape == (3,)
    np.testing.assert_array_equal(model.decode(z).low, z.reshape(3, 2, 2, 1))
    base = model.base()
    assert isinstance(base, LatentPrior) and base.density == "exact"
    drawn = base.sample(jax.random.split(key, 500))
    assert drawn.shape == (500, 4) and float(jnp.abs(drawn).max()) <= 1.0
    assert_mean(drawn, 0.0, std=3**-0.5)
    np.testing.assert_allclose(base.log_prob(drawn), -4 * np.log(2.0), rtol=1e-6)
    assert model.posterior(x) is None  # it does not say


def test_draws_of_the_own_prior_depend_on_their_keys_alone(key):
    base, keys = one_vector.of(MapVAE(jnp.float32(0.1))).base(), jax.random.split(key)
    np.testing.assert_array_equal(base.sample(keys)[1:], base.sample(keys[1:]))


def test_a_normal_prior_is_a_gaussian(key):
    vae = LinearGaussianVAE(jnp.eye(3, 2))
    base = one_vector.of(vae).base()
    np.testing.assert_array_equal(base.mean, jnp.zeros(2))
    np.testing.assert_array_equal(base.std, jnp.ones(2))


def test_several_groups_are_refused():
    with pytest.raises(InputError, match=r"2 latent groups.*--stage=ncp"):
        one_vector.of(ChainVAE())


def frozen(key):
    module = MLPVAE((3,), 2, (8,), likelihood="normal")
    return FrozenVAE(module, jax.jit(module.init)(key, jnp.zeros((1, 3)), key))


def test_encodings_are_draws_of_the_posterior_that_it_says(key):
    """Mean and std of 6,000 numbers: an error of 10 % in either is well outside."""
    model, x = one_vector.of(frozen(key)), np.eye(3, dtype=np.float32)
    num = 1_000
    found = one_vector.encodings(
        model,
        x,
        x[:1],
        preparation.as_stored,
        key,
        num_draws=num,
        num_valid_draws=2,
        batch_size=2,
    )
    assert found.train.shape == (3, num, 2) and found.valid.shape == (1, 2, 2)
    q = found.posterior
    white = (found.train - q.mean[:, None]) / q.std[:, None]
    assert_mean(white, 0.0, std=1.0)
    assert_mean(white**2, 1.0, std=2**0.5)
    assert q.mean.shape == q.std.shape == (3, 2)
    assert not np.array_equal(found.train[0, :2], found.valid[0])


def test_every_draw_is_prepared_afresh(key):
    def coins(key, stored):
        return jax.random.bernoulli(key, 0.5, stored.shape).astype(jnp.float32)

    vae = MapVAE(jnp.float32(1e-6))  # z shows x
    x = np.zeros((5, 2, 2, 1), np.float32)
    found = one_vector.encodings(
        one_vector.of(vae),
        x,
        x,
        coins,
        key,
        num_draws=400,
        num_valid_draws=1,
        batch_size=5,
    )
    assert_mean(found.train, 0.5, std=0.5)
    assert found.posterior is None


def test_a_module_without_a_posterior_says_none():
    module = LadderVAE((3,), (2,), (8,))
    assert FrozenVAE(module, {}).posterior(jnp.zeros((1, 3))) is None
