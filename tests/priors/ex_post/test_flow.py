"""Couplings are invertible, know their Jacobian, and start as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import flow
from ncp_jax.priors.ex_post.contract import Training
from ncp_jax.priors.ex_post.flow import Couplings, rational_quadratic
from tests.priors.ex_post import suite
from tests.random_variables import random_variables

DIM, BINS = 5, 4
NET = Couplings(DIM, 3, (8,), BINS)


def spline(key, num_points, scale=2.0):
    sizes = (BINS, BINS, BINS - 1)
    keys = jax.random.split(key, 3)
    return [
        scale * jax.random.normal(k, (num_points, 1, n))
        for k, n in zip(keys, sizes, strict=True)
    ]


def test_a_spline_rises_and_is_inverted(key):
    x = jnp.linspace(-6.0, 6.0, 401)[:, None]
    parts = [jnp.repeat(part, len(x), axis=0) for part in spline(key, 1)]
    y, log_slope = rational_quadratic(x, *parts)
    back, inverse_log_slope = rational_quadratic(y, *parts, is_inverse=True)
    assert (jnp.diff(y[:, 0]) > 0).all()
    np.testing.assert_allclose(back, x, atol=2e-4)
    np.testing.assert_allclose(inverse_log_slope, -log_slope, atol=5e-3)
    slope = jax.vmap(jax.grad(lambda x, *p: rational_quadratic(x[None], *p)[0][0, 0]))(
        x, *(part[:, None] for part in parts)
    )
    np.testing.assert_allclose(jnp.log(slope[:, 0]), log_slope[:, 0], atol=1e-4)
    outside = jnp.abs(x) > flow.BOUND
    np.testing.assert_array_equal(y[outside], x[outside])
    assert jnp.abs(log_slope).max() > 0.5  # it bends


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(
        lambda leaf: 2.0 * leaf, random_variables(NET, jnp.zeros((1, DIM)))
    )


def test_couplings_know_their_jacobian(key, variables):
    e = jax.random.normal(key, (4, DIM))

    def noise(one):
        return NET.apply(variables, one[None])[0][0]

    _, log_det = NET.apply(variables, e)
    _, expected = np.linalg.slogdet(np.asarray(jax.vmap(jax.jacfwd(noise))(e)))
    np.testing.assert_allclose(log_det, expected, atol=1e-4)
    assert np.abs(expected).min() > 0.01


def test_couplings_are_inverted(key, variables):
    e = 2.0 * jax.random.normal(key, (50, DIM))
    noise, _ = NET.apply(variables, e)
    back = NET.apply(variables, noise, method=Couplings.invert)
    np.testing.assert_allclose(back, e, atol=2e-3)
    assert np.abs(noise - e).max(axis=0).min() > 0.1  # every coordinate moves


def test_it_starts_as_the_normal_of_the_encodings(key):
    encodings = suite.mixture()
    start = flow.Settings(2, (8,), 4, Training(num_steps=0))(key, encodings)
    z = suite.draw_mixture(key, 10)
    train = np.asarray(encodings.train).reshape(-1, 2)
    expected = Normal(train.mean(0)[None], train.std(0)[None]).log_prob(z)
    np.testing.assert_allclose(start.log_prob(z), expected, atol=1e-4)
