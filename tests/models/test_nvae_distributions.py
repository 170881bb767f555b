"""Pixel likelihoods of NVAE against float64 NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from ncp_jax.models.distributions import DiscretisedLogisticMixture, PixelNormal

NUM_MIXTURES = 3


def mixture(key, shape=(2, 2, 2), **options):
    outputs = jax.random.normal(key, (*shape, 10 * NUM_MIXTURES))
    return DiscretisedLogisticMixture.from_outputs(outputs, **options)


def bin_mass(value, mean, log_scale, num_bits):
    """Logistic mass of the bin of `value` (an integer), in float64."""
    top = 2**num_bits - 1
    edges = (2.0 * (np.asarray(value)[..., None] + [-0.5, 0.5]) / top) - 1.0
    cdf = expit((edges - np.asarray(mean)[..., None]) / np.exp(log_scale)[..., None])
    low = np.where(np.asarray(value) == 0, 0.0, cdf[..., 0])
    high = np.where(np.asarray(value) == top, 1.0, cdf[..., 1])
    return high - low


def oracle(distribution, pixels, num_bits):
    """Log mass of integer pixels [B, H, W, 3], written channel by channel: [B]."""
    logits, means, log_scales, c = (
        np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(distribution)
    )
    r, g, _ = np.moveaxis(2.0 * pixels / (2**num_bits - 1) - 1.0, -1, 0)[..., None]
    total = logits - logsumexp(logits, axis=-1, keepdims=True)
    shifted = (
        means[..., 0, :],
        means[..., 1, :] + c[..., 0, :] * r,
        means[..., 2, :] + c[..., 1, :] * r + c[..., 2, :] * g,
    )
    for channel, mean in enumerate(shifted):
        value = np.broadcast_to(pixels[..., channel, None], mean.shape)
        log_scale = log_scales[..., channel, :]
        total = total + np.log(bin_mass(value, mean, log_scale, num_bits))
    return logsumexp(total, axis=-1).sum(axis=(1, 2))


@pytest.mark.parametrize("num_bits", [5, 8])
def test_log_prob_agrees_with_float64(key, num_bits):
    distribution = mixture(key, num_bits=num_bits)
    top = 2**num_bits - 1
    rng = np.random.default_rng(0)
    pixels = rng.choice([0, 1, top // 3, top - 1, top], size=(2, 2, 2, 3))
    log_prob = distribution.log_prob(jnp.asarray(pixels / top, jnp.float32))
    np.testing.assert_allclose(
        log_prob, oracle(distribution, pixels, num_bits), rtol=1e-4
    )


def all_pixels(num_bits):
    top = 2**num_bits - 1
    values = np.array(list(itertools.product(range(top + 1), repeat=3)))
    return jnp.asarray(values[:, None, None] / top, jnp.float32)  # [n, 1, 1, 3]


def repeated(distribution, times):
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), distribution)


def log_masses(distribution, pixels):
    return repeated(distribution, len(pixels)).log_prob(pixels)


@pytest.mark.parametrize("log_scale", [-1.0, -4.0])
def test_masses_of_all_colours_sum_to_one(key, log_scale):
    distribution = mixture(key, (1, 1, 1), num_bits=5)
    distribution = dataclasses.replace(
        distribution, log_scales=jnp.full_like(distribution.log_scales, log_scale)
    )
    total = np.sum(np.exp(log_masses(distribution, all_pixels(5)), dtype=np.float64))
    np.testing.assert_allclose(total, 1.0, rtol=2e-3)


def test_the_references_white_counts_the_brightest_value_twice(key):
    outputs = jax.random.normal(key, (1, 1, 1, 10))
    pixels = np.array([254, 255])[:, None, None, None] * np.ones((1, 1, 1, 3))
    pixels = jnp.asarray(pixels / 255, jnp.float32)
    exact = DiscretisedLogisticMixture.from_outputs(outputs)
    quirk = DiscretisedLogisticMixture.from_outputs(outputs, white=0.99)
    exact, quirk = log_masses(exact, pixels), log_masses(quirk, pixels)
    np.testing.assert_allclose(quirk[1], exact[1], rtol=1e-6)
    assert quirk[0] > exact[0] + 0.1


def test_draws_have_the_declared_masses_and_mean(key):
    num_draws = 200_000
    distribution = mixture(key, (1, 1, 1), num_bits=5)
    distribution = dataclasses.replace(
        distribution,
        means=0.3 * distribution.means,
        log_scales=jnp.full_like(distribution.log_scales, -3.0),
    )
    many = repeated(distribution, num_draws)
    draws = np.asarray(jax.jit(lambda d, k: d.sample(k))(many, key), np.float64)
    assert draws.shape == (num_draws, 1, 1, 3)
    grid = np.round(draws * 31)
    np.testing.assert_allclose(draws * 31, grid, atol=1e-4)
    # Entropy by draws and by masses: a standard error of about 0.004 nats, and the
    # bound of 5 of them fails by chance less than once in a million runs.
    log_p = np.asarray(many.log_prob(jnp.asarray(draws, jnp.float32)), np.float64)
    exact = np.asarray(log_masses(distribution, all_pixels(5)), np.float64)
    entropy = np.sum(np.exp(exact) * exact)
    error = np.std(log_p) / np.sqrt(num_draws)
    assert abs(log_p.mean() - entropy) < 5.0 * error + 2e-3
    mean = np.asarray(distribution.mean)[0, 0, 0]
    np.testing.assert_allclose(draws.mean(axis=(0, 1, 2)), mean, atol=0.01)


def test_gradients_are_finite_at_extreme_parameters():
    outputs = jnp.full((1, 1, 1, 10), -50.0)
    value = jnp.asarray([[[[0.0, 0.5, 1.0]]]]).round(1)

    def total(outputs):
        return DiscretisedLogisticMixture.from_outputs(outputs).log_prob(value).sum()

    assert np.all(np.isfinite(jax.grad(total)(outputs)))


def test_low_temperature_draws_approach_the_likeliest_component(key):
    distribution = mixture(key).tempered(1e-3)
    first, second = (distribution.sample(jax.random.key(i)) for i in range(2))
    np.testing.assert_allclose(first, second, atol=2.5 / 255)


def test_pixel_normal_is_a_density_of_scaled_pixels(key):
    mean, std = jnp.full((1, 1), 0.2), jnp.full((1, 1), 0.5)
    distribution = PixelNormal(mean, std)
    np.testing.assert_allclose(distribution.mean, 0.6)
    expected = -0.5 * ((0.4 - 0.2) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    log_prob = distribution.log_prob(jnp.full((1, 1), 0.7))
    np.testing.assert_allclose(log_prob, [expected], rtol=1e-5)
    np.testing.assert_allclose(distribution.tempered(0.0).sample(key), 0.6)


def test_a_bin_above_the_mean_has_the_mass_of_its_mirror_image(key):
    """1 - tiny less 1 - tinier lost digits, up to a hundredth of a nat."""
    likelihood = mixture(key, shape=(1,))
    x = jnp.linspace(0.01, 0.9, 50)[:, None, None]
    above, below = (likelihood._log_bin_mass(v, jnp.zeros(())) for v in (x, -x))
    np.testing.assert_array_equal(above, below)
