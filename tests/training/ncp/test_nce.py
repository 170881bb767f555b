"""`nce.py`: weighted losses against closed forms, and how contexts are read."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training.ncp import nce

LOG_R = jnp.linspace(-8.0, 8.0, 65)  # f, nats


def slopes(log_r, negative_weight):
    """Derivatives of the loss by log r of a posterior and of a prior draw: [n] each."""

    def total(logit_q, logit_p):
        return jnp.sum(nce.nce_losses(logit_q, logit_p, negative_weight))

    return jax.grad(total, (0, 1))(log_r, log_r)


@pytest.mark.parametrize("negative_weight", [1.0, 2.0, 30.0, 1e4])
def test_every_weight_has_its_optimum_at_the_true_ratio(negative_weight):
    """At each z the slope is q(z) by_q + p(z) by_p: zero if f = log q - log p."""
    by_q, by_p = slopes(LOG_R, negative_weight)
    at_truth = jnp.exp(LOG_R) * by_q + by_p  # over p(z)
    np.testing.assert_allclose(at_truth / by_p, 0.0, atol=1e-5)
    for off in (-0.1, 0.1):  # a ratio 10 % too small or too large is pulled back
        by_q, by_p = slopes(LOG_R + off, negative_weight)
        at_off = jnp.exp(LOG_R) * by_q + by_p
        assert (at_off * off > 0.09 * off**2 * by_p).all()


@pytest.mark.parametrize("negative_weight", [1.0, 30.0])
def test_a_prior_draw_pulls_by_r_m_over_r_plus_m(negative_weight):
    """Where r is large, at M = 1 hardly more than where r = 1."""
    _, by_p = slopes(LOG_R, negative_weight)
    r = np.exp(np.asarray(LOG_R, np.float64))
    expected = r * negative_weight / (r + negative_weight)
    np.testing.assert_allclose(by_p, expected, rtol=1e-5)


def test_a_large_weight_gives_the_loss_whose_gradient_is_maximum_likelihoods():
    """softplus(log M - f) + M softplus(f - log M) - log M -> e^f - f (NWJ)."""
    log_r = LOG_R[LOG_R < 3.0]
    limit, found = jnp.exp(log_r) - log_r, {}
    for m in (1e2, 1e4, 1e6):
        found[m] = nce.nce_losses(log_r, log_r, m) - math.log(m)
    gaps = [float(np.abs(found[m] - limit).max()) for m in found]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-3
    by_q, by_p = slopes(log_r, 1e6)
    np.testing.assert_allclose(by_q, -1.0, rtol=1e-4)
    np.testing.assert_allclose(by_p, jnp.exp(log_r), rtol=1e-4)


def test_the_weight_of_one_is_the_papers_loss_to_the_bit():
    logit_q, logit_p = LOG_R[:32], jnp.flip(LOG_R)[:64]
    of_p = jnp.mean(jax.nn.softplus(logit_p).reshape(32, 2), -1)
    expected = jax.nn.softplus(-logit_q) + of_p
    for weight in ((), (1.0,)):
        found = nce.nce_losses(logit_q, logit_p, *weight)
        np.testing.assert_array_equal(found, expected)
    almost = nce.nce_losses(logit_q, logit_p, 1.0 + 1e-5)  # by the general formula
    np.testing.assert_allclose(almost, expected, rtol=1e-4)
    assert (almost != expected).any()


@pytest.mark.parametrize("negative_weight", [1.0, 5.0])
def test_chance_and_several_negatives(negative_weight):
    """At r = 1 log(1 + M) + M log(1 + 1 / M); m draws of an example count once."""
    m = negative_weight
    chance = math.log1p(m) + m * math.log1p(1 / m)
    found = nce.nce_losses(jnp.zeros(2), jnp.zeros(6), m)
    np.testing.assert_allclose(found, chance, rtol=1e-6)
    loss = nce.nce_loss(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0, -3.0, 1.0]), m)
    pairs = [(0.3, 0.5), (0.3, 2.0), (-1.0, -3.0), (-1.0, 1.0)]
    each = [nce.nce_loss(*map(jnp.atleast_1d, map(jnp.float32, p)), m) for p in pairs]
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)


def test_group_metrics_hold_the_gain():
    """The same for r times any constant."""
    logit_q, logit_p = jnp.array([[1.0, 2.0]]), jnp.array([[-1.0, 0.0, 1.0, -2.0]])
    for shift in (0.0, 3.0):
        found = nce.group_metrics(logit_q + shift, logit_p + shift)
        log_z = math.log(np.exp([-1.0, 0.0, 1.0, -2.0]).mean())
        np.testing.assert_allclose(found["log_r_q"], [1.5 + shift], rtol=1e-6)
        np.testing.assert_allclose(found["gain"], [1.5 - log_z], rtol=1e-5)


class Watched(MLPDiscriminator):
    """Notes how many contexts it embeds."""

    def embed(self, context):
        seen.append(context.shape[0])
        return super().embed(context)


seen: list[int] = []


def test_a_context_is_embedded_once_however_many_negatives_share_it(key):
    draws = ContrastiveDraws(jnp.ones((4, 2)), jnp.ones((20, 2)), jnp.ones((4, 3)))
    network = Watched((8,))
    params = network.init(key, draws.positive, draws.context)["params"]
    seen.clear()
    logit_q, logit_p = nce.logits(network, params, draws)
    assert (logit_q.shape, logit_p.shape, seen) == ((4,), (20,), [4])
