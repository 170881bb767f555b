"""The estimate of the second VAE's density, against quadrature."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.ex_post.two_stage import SecondVAE, TwoStage
from tests.random_variables import random_variables

MOMENTS = Gaussian(jnp.array([0.5]), jnp.array([2.0]))


@pytest.fixture(scope="module")
def prior():
    net = SecondVAE(1, (4,))
    key = jax.random.key(0)
    variables = random_variables(net, np.zeros((1, 1), np.float32), key)
    variables["params"]["log_std"] = np.float32(-0.5)
    variables["params"]["encoder"]["Dense_1"]["bias"] += np.float32([0.0, 0.5])
    return TwoStage(MOMENTS, variables, net, num_importance_samples=5)


def exact(prior, z):
    """p(z) by the trapezoid rule over u: [B]."""
    u = np.linspace(-8.0, 8.0, 4_001, dtype=np.float32)[:, None]
    decode = jax.jit(lambda u: prior.net.apply(prior.params, u, method="decode"))
    normal = decode(u)
    e = prior.moments.whiten(z)
    white = (np.asarray(e) - np.asarray(normal.mean)[:, 0]) / np.asarray(normal.std[0])
    joint = np.exp(-0.5 * white**2 - 0.5 * u[:, 0] ** 2)
    scale = 2 * math.pi * float(normal.std[0, 0]) * float(prior.moments.std[0])
    return np.trapezoid(joint, u[:, 0], axis=1) / scale


def test_the_estimate_is_unbiased_and_its_log_a_lower_bound(prior):
    z = jnp.array([[-2.0], [0.3], [3.0]])
    keys = jax.random.split(jax.random.key(1), 4_000)
    many = jax.jit(jax.vmap(lambda key: prior.log_prob(z, key)))
    logs = np.asarray(many(keys), np.float64)  # [4000, 3]
    truth = exact(prior, z)
    stderr = np.exp(logs).std(axis=0) / math.sqrt(len(keys))
    # The keys are fixed: whoever changes them has a chance of 6e-7 to fail by luck.
    np.testing.assert_array_less(np.abs(np.exp(logs).mean(0) - truth), 5 * stderr)
    assert (5 * stderr < 0.1 * truth).all()  # 10 % would be seen
    assert (logs.mean(0) < np.log(truth)).all()
    better = dataclasses.replace(prior, num_importance_samples=200)
    tight = np.asarray(jax.jit(better.log_prob)(z, keys[0]))
    assert np.abs(tight - np.log(truth)).max() < 0.2
    assert (logs.mean(0) < np.log(truth) - 1e-3).all()


def test_the_estimate_wants_a_key(prior):
    with pytest.raises(ValueError, match="key"):
        prior.log_prob(jnp.zeros((1, 1)))


def test_it_starts_as_the_identity():
    net = SecondVAE(3, (5,))
    e = jax.random.normal(jax.random.key(2), (4, 3))

    @jax.jit
    def run(key):
        params = net.init(key, e, key)
        return (
            net.apply(params, e, method=SecondVAE.encode),
            net.apply(params, e, method=SecondVAE.decode),
        )

    for normal in run(jax.random.key(3)):
        np.testing.assert_allclose(normal.mean, e, rtol=1e-6)
        np.testing.assert_allclose(normal.std, 0.5, rtol=1e-6)
