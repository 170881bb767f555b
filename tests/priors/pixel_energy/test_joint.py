"""The joint noise of z and x, and the law of its dynamics where that is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import FrozenVAE, GroupPrior
from ncp_jax.models.distributions import Bernoulli, PixelNormal
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.priors import generation
from ncp_jax.priors.group_samplers import Base
from ncp_jax.priors.ncp_prior import Draws
from ncp_jax.priors.pixel_energy import joint
from ncp_jax.priors.pixel_energy.joint import Dynamics, PixelEnergyPrior
from tests import oracles
from tests.comparison.test_hierarchy import HOLE
from tests.comparison.test_hierarchy import model as of_groups
from tests.statistics import assert_mean

SLOPES = (0.3, -0.4)  # of log r in z_0 and z_1
CURVATURE, SLOPE = 1.5, 0.8  # E(x) = 0.75 x^2 + 0.8 x


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """A network whose parameters are those of E."""

    def apply(self, variables, x):
        curvature, slope = variables["params"]
        return jnp.sum(0.5 * curvature * x**2 + slope * x, axis=1)


def chain(**fields):
    """A VAE of two groups in scalars, and an energy of its x."""
    ncp = oracles.ChainVAE().ncp(SLOPES)
    return PixelEnergyPrior(
        ncp.vae,
        ncp.discriminator,
        ncp.params,
        energy_params=jnp.array([CURVATURE, SLOPE]),
        network=Quadratic(),
        **fields,
    )


def of_chain(noise):
    """z_0, z_1 and x of e [B, 3], by hand."""
    z_0 = noise[:, 0]
    z_1 = 0.9 * z_0 + 0.8 * noise[:, 1]
    return z_0, z_1, 0.7 * z_0 + 0.6 * z_1 + 0.5 * noise[:, 2]


def test_padded_coordinates_have_no_noise(key):
    vae = of_groups(widths=(2, 0, 1)).vae  # in signal coordinates
    prior = PixelEnergyPrior(
        vae, None, (None,) * len(vae.blocks), energy_params=(), network=None
    )
    latents, _ = vae.encode(HOLE.data(key, 4), key)
    keys = jax.random.split(key, 4)
    noise = prior.joint_noise(keys, latents)
    assert np.isfinite(noise).all()
    for found, expected in zip(prior.unfold(noise).latents, latents, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_noise_and_what_it_stands_for(key):
    prior, noise = chain(), np.asarray(jax.random.normal(key, (5, 3)))
    z_0, z_1, x = of_chain(noise)
    found = prior.unfold(noise)
    np.testing.assert_allclose(found.latents[0][..., 0], [z_0, z_1], rtol=1e-5)
    np.testing.assert_allclose(found.x[:, 0], x, rtol=1e-4, atol=1e-6)
    log_r = SLOPES[0] * z_0 + SLOPES[1] * z_1
    np.testing.assert_allclose(found.log_r, log_r, rtol=1e-4, atol=1e-6)
    energy = 0.5 * CURVATURE * x**2 + SLOPE * x
    log_h = log_r - energy - 0.5 * np.sum(noise**2, axis=1)
    np.testing.assert_allclose(prior.log_density(noise), log_h, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(key, 5)
    again = prior.joint_noise(keys, found.latents)
    np.testing.assert_allclose(again[:, :2], noise[:, :2], rtol=1e-4, atol=1e-5)
    assert len(np.unique(again[:, 2])) == 5


def test_the_law_of_the_dynamics(key):
    """Uncorrected Langevin dynamics of a normal of precision P end at (P - h P^2/4)^-1.

    And at the right mean.  60 steps leave 0.8^60 < 1e-5 of where they started.
    """
    step = 0.4
    keys = jax.random.split(key, 20_000)
    prior = chain(dynamics=Dynamics(step, 60))
    end = jax.jit(lambda keys: prior.moved(keys, prior.of_normal(keys)))(keys)
    of_x = np.array([0.7 + 0.6 * 0.9, 0.6 * 0.8, 0.5])  # x = of_x . e
    of_z_1 = np.array([0.9, 0.8, 0.0])
    precision = np.eye(3) + CURVATURE * np.outer(of_x, of_x)
    pull = SLOPES[0] * np.eye(3)[0] + SLOPES[1] * of_z_1 - SLOPE * of_x
    mean = np.linalg.solve(precision, pull)
    covariance = np.linalg.inv(precision - step / 4 * precision @ precision)
    for direction in (of_x, of_z_1, np.eye(3)[0]):
        along = np.asarray(end, np.float64) @ direction
        expected, variance = direction @ mean, direction @ covariance @ direction
        assert_mean(along, expected, 1.01 * np.sqrt(variance), bias=1e-4)
        squares = (along - expected) ** 2
        assert_mean(squares, variance, 1.45 * variance, bias=1e-4)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * squares, variance, 1.45 * variance, bias=1e-4)


def test_pictures_and_latents_are_of_the_same_noise(key):
    """Without steps x ~ p(x | z); with some, x still belongs to the z that is told."""
    prior = chain(dynamics=Dynamics(0.1, 3))
    out = generation.generate(prior, key, 6, 3, Base())
    part = generation.generate(prior, key, 4, 2, Base())
    np.testing.assert_allclose(out.images[:4], part.images, rtol=1e-4, atol=1e-5)
    z_0, z_1 = out.latents[0][..., 0]
    noise = (out.images[:, 0] - 0.7 * z_0 - 0.6 * z_1) / 0.5
    assert np.abs(noise).max() < 6
    (info,) = out.infos
    x = out.images[:, 0]
    energy = 0.5 * CURVATURE * x**2 + SLOPE * x
    np.testing.assert_allclose(info.energy[0], energy, rtol=1e-4, atol=1e-5)
    assert (info.pixel_change > 0).all()
    still = dataclasses.replace(prior, dynamics=Dynamics(0.1, 0))
    (info,) = generation.generate(still, key, 3, 3, Base()).infos
    np.testing.assert_array_equal(info.energy_change, 0)


def test_binary_pixels_are_shown_by_their_means(key):
    module = MLPVAE((2, 2, 1), 3, (4,))
    x = jnp.zeros((1, 2, 2, 1))
    vae = FrozenVAE(module, module.init(key, x, key))
    prior = PixelEnergyPrior(vae, None, (None,), network=Quadratic())
    noise = prior.of_normal(jax.random.split(key, 4))
    assert noise.shape == (4, 3)  # no noise of x
    np.testing.assert_allclose(prior.unfold(noise).x, vae.decode(noise).mean, rtol=1e-5)


def test_coloured_pixels_are_not_clipped():
    likelihood = PixelNormal(jnp.zeros((1, 2)), jnp.full((1, 2), 0.4))
    noise = jnp.array([[10.0, -10.0]])
    np.testing.assert_allclose(
        joint._pictures(likelihood, noise), [[2.5, -1.5]], rtol=1e-6
    )


def test_a_prior_that_is_no_map_of_noise_is_refused(key):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Strange(oracles.ChainVAE):
        def prior(self, block, k, carry):
            return GroupPrior(Bernoulli(carry[0]), carry[0])

    prior = PixelEnergyPrior(Strange(), None, (None,), network=Quadratic())
    with pytest.raises(InputError, match=r"base prior of block 0 is Bernoulli.*Normal"):
        prior.joint_noise(jax.random.split(key, 2), (jnp.zeros((2, 2, 1)),))


def test_the_vae_alone_has_no_ratios(key):
    ncp = oracles.ChainVAE().ncp(SLOPES)
    plain = joint.without_ratios(ncp)
    log_p, log_r, _ = plain.terms((jax.random.normal(key, (2, 3, 1)),))
    np.testing.assert_array_equal(log_r, 0)
    assert np.isfinite(log_p).all()
    keys = rng.stream(jax.random.split(key, 3), "any")
    draws = Draws((jnp.zeros((2, 3, 1)),), jnp.zeros((2, 3, 1)), ())
    assert plain.finish(keys, draws).images.shape == (3, 1)
