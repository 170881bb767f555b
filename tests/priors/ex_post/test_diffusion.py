"""The network's divergence, the loss and the ODE, where they are known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import diffusion
from ncp_jax.priors.ex_post.contract import Training
from ncp_jax.priors.ex_post.diffusion import Diffusion, Tilt
from ncp_jax.priors.ex_post.gaussian import Gaussian
from tests.priors.ex_post import suite
from tests.random_variables import random_variables

SHIFT, STD = (0.8, -0.5), 0.4


@dataclasses.dataclass(frozen=True)
class KnownTilt:
    """f of encodings that are N(SHIFT, STD^2 I)."""

    dim: int = 2

    def apply(self, params, e, log_snr):
        signal, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        variance = (signal * STD**2 + noise)[:, None]
        mean = jnp.sqrt(signal)[:, None] * jnp.array(SHIFT)[None]
        tilt = e - (e - mean) / variance
        divergence = 2.0 * (1.0 - 1.0 / variance[:, 0])
        return tilt, jnp.broadcast_to(divergence, e.shape[:1])


UNIT = Gaussian(jnp.zeros(2), jnp.ones(2))
KNOWN = Diffusion(UNIT, {}, KnownTilt())


def test_the_divergence_is_the_trace_of_the_jacobian(key):
    net = Tilt(3, 7)
    shapes = random_variables(net, jnp.zeros((1, 3)), jnp.zeros(1))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, shapes)
    e = jax.random.normal(key, (4, 3))
    log_snr = jnp.array([-3.0, 0.0, 1.0, 4.0])

    @jax.jit
    def run(e, log_snr):
        one = jax.jacfwd(lambda e, at: net.apply(variables, e[None], at[None])[0][0])
        return net.apply(variables, e, log_snr)[1], jax.vmap(one)(e, log_snr)

    divergence, jacobians = run(e, log_snr)
    expected = np.trace(jacobians, axis1=1, axis2=2)
    np.testing.assert_allclose(divergence, expected, rtol=1e-4)
    assert np.ptp(expected) > 0.01


def test_the_ode_makes_the_known_normal(key):
    z = suite.draw_mixture(key, 20)
    expected = Normal(jnp.array([SHIFT]), jnp.full((1, 2), STD)).log_prob(z)
    ends = 0.02  # p at l = -8 is not quite N(0, I), at l = 8 not quite q
    np.testing.assert_allclose(
        suite.log_prob(KNOWN, z, key), expected, atol=ends, rtol=0.01
    )
    noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(jax.random.split(key, 20))
    draws = suite.draw(KNOWN, jax.random.split(key, 20))
    np.testing.assert_allclose(draws, jnp.array([SHIFT]) + STD * noise, atol=0.03)


def test_more_steps_change_little_and_few_steps_much(key):
    z = suite.draw_mixture(key, 20)
    of_steps = {
        n: suite.log_prob(dataclasses.replace(KNOWN, num_ode_steps=n), z, key)
        for n in (3, 10, 25, 100)
    }
    errors = {n: np.abs(of_steps[n] - of_steps[100]).max() for n in (3, 10, 25)}
    assert errors[25] < 1e-3 < errors[3]
    assert errors[10] < 0.05 * errors[3]


def test_the_loss_is_minus_the_gain_over_the_normal(key):
    """At its optimum it is KL(q || N(0, I)), of which the ends of l miss little."""
    number = 20_000
    normal = Normal(jnp.array([SHIFT] * number), jnp.full((number, 2), STD))
    e = normal.sample(key)
    gain = 0.5 * np.sum(np.square(SHIFT)) + STD**2 - 1 - 2 * math.log(STD)
    loss = jax.jit(lambda e, key: diffusion.denoising_loss(KnownTilt(), {}, e, key))
    values = np.array([loss(e, k) for k in jax.random.split(key, 8)])
    stderr = values.std() / math.sqrt(len(values))
    assert stderr < 0.01 * gain
    assert abs(values.mean() + gain) < 0.05 * gain


def test_it_starts_as_the_normal_of_the_encodings(key):
    start = diffusion.Settings(8, 3, Training(num_steps=0))(key, suite.tilted())
    z = suite.draw_mixture(key, 10)
    np.testing.assert_allclose(
        suite.log_prob(start, z, key), start.moments.log_prob(z), atol=1e-5
    )
    keys = jax.random.split(key, 10)
    np.testing.assert_allclose(
        suite.draw(start, keys), start.moments.sample(keys), atol=1e-5
    )
    e = start.moments.whiten(z)
    loss = jax.jit(lambda e: diffusion.denoising_loss(start.net, start.params, e, key))
    assert float(loss(e)) == 0.0
