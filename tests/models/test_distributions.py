"""`distributions.py` against SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax.models import distributions
from ncp_jax.models.distributions import Bernoulli, Normal
from tests.statistics import assert_mean

SHAPE = (4, 3, 2)


def random_normal(key):
    mean_key, std_key = jax.random.split(key)
    return Normal(
        jax.random.normal(mean_key, SHAPE),
        jnp.exp(jax.random.normal(std_key, SHAPE)),
    )


def float64(*arrays):
    return (np.asarray(array, np.float64) for array in arrays)


def test_sum_non_batch_keeps_the_first_axis_only():
    x = jnp.arange(24.0).reshape(SHAPE)
    np.testing.assert_array_equal(
        distributions.sum_non_batch(x), np.asarray(x).reshape(4, -1).sum(1)
    )
    np.testing.assert_array_equal(distributions.sum_non_batch(x[:, 0, 0]), x[:, 0, 0])


def test_normal_log_prob(key):
    normal = random_normal(key)
    value = 3.0 * jax.random.normal(jax.random.key(1), SHAPE)
    mean, std, z = float64(*normal, value)
    expected = scipy.stats.norm.logpdf(z, mean, std).sum((1, 2))
    np.testing.assert_allclose(normal.log_prob(value), expected, rtol=1e-5)


def test_normal_kl_in_both_directions(key):
    p, q = random_normal(key), random_normal(jax.random.key(1))
    for a, b in ((p, q), (q, p)):
        (m, s), (n, t) = float64(*a), float64(*b)
        integrand = np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5
        np.testing.assert_allclose(a.kl(b), integrand.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(p.kl(p), 0.0, atol=1e-6)


def test_normal_kl_is_the_mean_log_ratio(key):
    """Guards the closed form above against being copied with its errors."""
    p, q = (
        Normal(jnp.zeros((1, 1)), jnp.ones((1, 1))),
        Normal(*jnp.full((2, 1, 1), 0.8)),
    )
    z = p._replace(mean=jnp.zeros((200_000, 1))).sample(key)
    log_ratio = p.log_prob(z) - q.log_prob(z)
    # log ratio = const + z^2 (1 / 0.64 - 1) / 2 - z 0.8 / 0.64, of variance below 1.75.
    assert_mean(log_ratio, float(p.kl(q)[0]), std=1.75**0.5)
    with pytest.raises(AssertionError):
        assert_mean(log_ratio, 0.9 * float(p.kl(q)[0]), std=1.75**0.5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, jnp.float32(1.3)])
def test_tempered_scales_the_deviation_alone(key, temperature):
    normal = random_normal(key)
    tempered = normal.tempered(temperature)
    assert isinstance(tempered, Normal)
    np.testing.assert_array_equal(tempered.mean, normal.mean)
    np.testing.assert_allclose(
        tempered.std, float(temperature) * np.asarray(normal.std)
    )


def test_normal_samples_have_its_moments(key):
    n, mean, std = 100_000, np.array([1.0, -2.0]), np.array([0.5, 3.0])
    rows = (jnp.broadcast_to(jnp.float32(row)[None], (n, 2)) for row in (mean, std))
    white = (np.asarray(Normal(*rows).sample(key)) - mean) / std
    for i in range(2):
        assert_mean(white[:, i], 0.0, std=1.0)
        assert_mean(white[:, i] ** 2, 1.0, std=2**0.5)
    assert_mean(white[:, 0] * white[:, 1], 0.0, std=1.0)  # independent
    with pytest.raises(AssertionError):  # 10 % more deviation would be seen
        assert_mean((1.1 * white) ** 2, 1.0, std=2**0.5)


def test_normal_sample_is_reparameterised(key):
    def draw(mean, std):
        return jnp.sum(Normal(mean, std).sample(key))

    mean, std = jnp.zeros((3, 2)), jnp.full((3, 2), 2.0)
    by_mean, by_std = jax.grad(draw, argnums=(0, 1))(mean, std)
    np.testing.assert_array_equal(by_mean, 1.0)
    np.testing.assert_allclose(by_std, Normal(mean, std).sample(key) / 2, rtol=1e-6)


def test_bernoulli_log_prob_and_mean():
    logits = jnp.array([[-3.0, 0.0, 2.0]])
    p = scipy.special.expit(np.array([-3.0, 0.0, 2.0]))
    np.testing.assert_allclose(Bernoulli(logits).mean[0], p, rtol=1e-6)
    for x in ([0, 0, 0], [1, 1, 1], [0, 1, 1]):
        expected = scipy.stats.bernoulli.logpmf(x, p).sum()
        value = jnp.array([x], jnp.float32)
        np.testing.assert_allclose(
            Bernoulli(logits).log_prob(value)[0], expected, rtol=1e-6
        )


def test_bernoulli_is_finite_at_extreme_logits():
    extreme = Bernoulli(jnp.array([[300.0], [-300.0]]))
    likely = jnp.array([[1.0], [0.0]])
    np.testing.assert_array_equal(extreme.log_prob(likely), [0.0, 0.0])
    np.testing.assert_allclose(extreme.log_prob(1.0 - likely), [-300.0, -300.0])


def test_bernoulli_samples_have_its_mean(key):
    logits = jnp.full((100_000, 1), scipy.special.logit(0.3), jnp.float32)
    draws = Bernoulli(logits).sample(key)
    assert draws.dtype == jnp.float32
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert_mean(draws, 0.3, std=0.21**0.5)
    with pytest.raises(AssertionError):
        assert_mean(draws, 0.33, std=0.21**0.5)
