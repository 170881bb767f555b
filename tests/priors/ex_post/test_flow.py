"""Couplings are invertible, know their Jacobian, and start as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import flow
from ncp_jax.priors.ex_post.contract import Encodings, Training
from ncp_jax.priors.ex_post.flow import Couplings, Spline, rational_quadratic
from ncp_jax.priors.ex_post.gaussian import Gaussian
from tests.priors.ex_post import suite
from tests.random_variables import random_variables

DIM, BINS = 5, 4
NET = Couplings(DIM, 3, (8,), BINS)


@jax.jit
def there_and_back(x, parts):
    """Values, log slopes, the inverse's of those values, and slopes by autodiff."""
    y, log_slope = rational_quadratic(x, parts)
    back, inverse_log_slope = rational_quadratic(y, parts, is_inverse=True)
    slope = jax.jvp(
        lambda x: rational_quadratic(x, parts)[0], (x,), (jnp.ones_like(x),)
    )[1]
    return y, log_slope, back, inverse_log_slope, slope


def test_a_spline_rises_and_is_inverted():
    generator = np.random.default_rng(0)
    x = np.linspace(-6.0, 6.0, 401, dtype=np.float32)[:, None]
    parts = [
        np.repeat(2.0 * generator.standard_normal((1, 1, n)), len(x), axis=0)
        for n in (BINS, BINS, BINS - 1)
    ]
    found = there_and_back(x, Spline(*(part.astype(np.float32) for part in parts)))
    y, log_slope, back, inverse_log_slope, slope = map(np.asarray, found)
    assert (np.diff(y[:, 0]) > 0).all()
    np.testing.assert_allclose(back, x, atol=1e-3)
    np.testing.assert_allclose(inverse_log_slope, -log_slope, atol=2e-2)
    np.testing.assert_allclose(np.log(slope), log_slope, atol=1e-3)
    is_outside = np.abs(x) > flow.BOUND
    np.testing.assert_array_equal(y[is_outside], x[is_outside])
    assert np.abs(log_slope).max() > 0.5  # it bends


@pytest.fixture(scope="module")
def variables():
    drawn = random_variables(NET, np.zeros((1, DIM), np.float32))
    return jax.tree.map(lambda leaf: 0.7 * leaf, drawn)


def test_couplings_are_inverted_and_know_their_jacobian(variables):
    @jax.jit
    def run(e):
        noise, log_det = NET.apply(variables, e)
        back = NET.apply(variables, noise, method=Couplings.invert)
        one = jax.jacfwd(lambda one: NET.apply(variables, one[None])[0][0])
        return noise, log_det, back, jax.vmap(one)(e)

    e = 2.0 * np.random.default_rng(0).standard_normal((20, DIM)).astype(np.float32)
    noise, log_det, back, jacobians = map(np.asarray, run(e))
    np.testing.assert_allclose(back, e, atol=5e-3)
    assert np.abs(noise - e).max(axis=0).min() > 0.1  # every coordinate moves
    expected = np.linalg.slogdet(jacobians.astype(np.float64))[1]
    np.testing.assert_allclose(log_det, expected, atol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_it_starts_as_the_normal_of_the_encodings(key):
    encodings = suite.mixture()
    start = flow.Settings(2, (8,), 4, Training(num_steps=0))(key, encodings)
    z = suite.draw_mixture(key, 10)
    train = np.asarray(encodings.train).reshape(-1, 2)
    expected = Normal(train.mean(0)[None], train.std(0)[None]).log_prob(z)
    log_p = suite.log_prob(start, z, key)
    np.testing.assert_allclose(log_p, expected, atol=1e-4)


def test_one_coordinate_moves_by_a_spline_of_its_own(key):
    """Two modes of one coordinate: the gain over the matched normal is found."""
    z = jnp.where(jax.random.bernoulli(key, 0.5, (2_000, 1, 1)), 2.0, -2.0)
    z += 0.5 * jax.random.normal(jax.random.fold_in(key, 1), z.shape)
    base = Gaussian(jnp.zeros(1), jnp.ones(1))
    encodings = Encodings(z[:1_000], z[1_000:], base)
    training = Training(num_steps=300, batch_size=256, learning_rate=3e-2)
    prior = flow.Settings(4, (8,), 8, training)(key, encodings)
    at = z[1_000:, 0]
    each = [Gaussian(jnp.full(1, m), jnp.full(1, 0.5)).log_prob(at) for m in (2.0, -2)]
    truth = jnp.logaddexp(*each) - jnp.log(2.0)
    assert jnp.mean(truth - prior.log_prob(at)) < 0.08
    draws = prior.sample(jax.random.split(key, 1_000))
    assert jnp.mean(jnp.abs(draws)) == pytest.approx(2.0, abs=0.1)
