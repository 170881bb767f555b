"""What every prior over one latent vector must pass, as functions of a prior or a fit.

Two problems have known answers: a mixture of three normals, and N(TILT, I).
Fits are functions of their key, so what is asserted of them is the same in every run.
"""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ncp_jax import rng
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Encodings, LatentPrior
from ncp_jax.priors.ex_post.gaussian import Gaussian
from tests.statistics import assert_mean

BASE = Gaussian(jnp.zeros(2), jnp.ones(2))

# The mixture q(z): mean near 0 and variance near 1, as a VAE's encodings have.
WEIGHTS = np.array([0.4, 0.35, 0.25])
MEANS = np.array([[-1.0, -0.5], [1.1, -0.4], [0.0, 1.3]])
STDS = np.array([[0.35, 0.6], [0.5, 0.35], [0.6, 0.4]])
POSTERIOR_STD = 0.3  # of one encoding's q(z | x)

TILT = np.array([0.6, -0.5], np.float32)
TILTED_GAIN = float(TILT @ TILT) / 2  # E_q[log q - log base], nats

NUM_EXAMPLES, NUM_DRAWS = 2_000, 4
MANY, FEW = 20_000, 7  # draws of a test: two sizes, so that little is compiled


def log_mixture(z):
    """log q(z) of z [B, 2] in float64: [B], nats."""
    white = (np.asarray(z, np.float64)[:, None] - MEANS) / STDS
    logs = -0.5 * white**2 - np.log(STDS) - 0.5 * math.log(2 * math.pi)
    return scipy.special.logsumexp(logs.sum(-1), b=WEIGHTS, axis=1)


@functools.partial(jax.jit, static_argnums=1)
def draw_mixture(key, number):
    """Independent draws of q(z): [number, 2]."""
    return _draw_means(key, number, STDS)


@jax.jit
def mixture():
    """Encodings of a VAE whose aggregate posterior is the mixture."""
    key = jax.random.key(17)
    means = _draw_means(key, NUM_EXAMPLES, np.sqrt(STDS**2 - POSTERIOR_STD**2))
    posterior = Normal(means, jnp.full_like(means, POSTERIOR_STD))
    keys = jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(NUM_DRAWS))
    train = jax.vmap(posterior.sample)(keys).swapaxes(0, 1)  # [N, P, 2]
    valid = draw_mixture(rng.stream(key, "valid"), NUM_EXAMPLES)[:, None]
    return Encodings(train, valid, BASE, posterior)


@jax.jit
def tilted():
    """Encodings whose aggregate posterior is N(TILT, I)."""
    key = jax.random.key(18)
    noise = jax.random.normal(key, (NUM_EXAMPLES, NUM_DRAWS + 2, 2))
    means, train = noise[:, 0], noise[:, 1:-1]
    mean, std = math.sqrt(0.75) * means + TILT[None], 0.5
    posterior = Normal(mean, jnp.full_like(mean, std))
    return Encodings(
        mean[:, None] + std * train,
        noise[:, -1:] + TILT[None, None],
        BASE,
        posterior,
    )


def excess(prior: LatentPrior, key, number=MANY):
    """KL(q || p) on fresh draws of the mixture: (nats, standard error)."""
    z = draw_mixture(rng.stream(key, "z"), number)
    log_p = log_prob(prior, z, rng.stream(key, "density"))
    differences = log_mixture(z) - np.asarray(log_p, np.float64)
    return differences.mean(), differences.std() / math.sqrt(number)


def assert_recovers_mixture(prior, key, tolerance, number=MANY):
    """The gain over the base is the mixture's own, but for `tolerance` nats.

    Four standard errors of the estimate of KL(q || p) are allowed below zero, which no
    density reaches.
    """
    found, stderr = excess(prior, key, number)
    assert stderr < tolerance / 3  # so that the bar means something
    assert -4 * stderr < found < tolerance, f"KL(q || p) is {found:.4f} +- {stderr:.4f}"


def assert_recovers_tilt(prior, key, tolerance, number=MANY):
    """Draws have mean TILT and variance 1, each but for `tolerance` and chance."""
    z = np.asarray(draw(prior, jax.random.split(key, number)), np.float64)
    for d, mean in enumerate(TILT):
        assert_mean(z[:, d], mean, 1.1, bias=tolerance)
        squares = (z[:, d] - mean) ** 2
        assert_mean(squares, 1.0, 1.7, bias=tolerance)  # of a chi square: sqrt(2)


def assert_samples_follow_density(prior, key, bias=0.0, number=MANY):
    """Draws of p have the density that `log_prob` says, normalised.

    For z ~ p and u ~ q, any two densities, and any t (Bennett, 1976)
      E[t(z) q(z) / (p(z) + q(z))] = E[t(u) p(u) / (p(u) + q(u))],
    whose two sides lie in [0, 1], so their difference has a standard deviation below
    sqrt(1/2).  A density that is 10 % too large must be seen.

    Args:
      prior: normalised, so of density "exact" or, with a `bias`, a tight bound.
      key: PRNG key.
      bias: what an estimated density is entitled to.
      number: of draws of p and of q.
    """
    z = draw(prior, jax.random.split(rng.stream(key, "draws"), number))
    u = draw_mixture(rng.stream(key, "mixture"), number)
    density = rng.stream(key, "density")
    of_z = log_mixture(z) - np.asarray(log_prob(prior, z, density), np.float64)
    of_u = log_mixture(u) - np.asarray(log_prob(prior, u, density), np.float64)
    z, u = np.asarray(z), np.asarray(u)

    def compare(t, log_error=0.0):
        left = t(z) * scipy.special.expit(of_z - log_error)
        right = t(u) * scipy.special.expit(log_error - of_u)
        assert_mean(left - right, 0.0, math.sqrt(0.5), bias)

    for t in (
        lambda v: np.ones(len(v)),
        lambda v: v[:, 0] > 0,
        lambda v: v[:, 1] > 0,
        lambda v: np.abs(v).sum(-1) < 1.5,
    ):
        compare(t)
    with pytest.raises(AssertionError):
        compare(lambda v: np.ones(len(v)), math.log(1.1))


def assert_draws_own_their_keys(prior, key):
    """Draw b depends on keys[b] alone, and differs from the others."""
    keys = jax.random.split(key, FEW)
    others = jax.random.split(rng.stream(key, "others"), FEW).at[3].set(keys[3])
    here, there = (np.asarray(draw(prior, each)) for each in (keys, others))
    np.testing.assert_allclose(here[3], there[3], atol=1e-4)
    assert len(np.unique(np.concatenate([here, there])[:, 0])) >= 2 * FEW - 1


def assert_compiles_once(prior, key):
    """A prior is a pytree: others with its shapes run through the same programs."""
    keys, sizes = jax.random.split(key, FEW), []
    for p in (prior, jax.tree.map(lambda leaf: leaf * 1.01, prior)):
        z = draw(p, keys)
        log_p = log_prob(p, z, key)
        assert (z.shape, z.dtype) == ((FEW, 2), jnp.float32)
        assert (log_p.shape, log_p.dtype) == ((FEW,), jnp.float32)
        sizes.append((_draw._cache_size(), _log_prob._cache_size()))
    assert sizes[0] == sizes[1]


def assert_density_has_gradients(prior, key):
    """Langevin dynamics over this base needs the gradient of log p by z."""
    z = draw_mixture(key, FEW)
    gradient = jax.jit(jax.grad(lambda z: prior.log_prob(z, key).sum()))(z)
    step = 1e-2
    for d in range(2):
        shift = step * jnp.eye(2)[d][None]
        ahead, behind = (log_prob(prior, z + s * shift, key) for s in (1.0, -1.0))
        slope = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(gradient[:, d], slope, rtol=0.05, atol=0.05)


def assert_resumes(fit, key, encodings, folder, finished, monkeypatch):
    """A fit whose last checkpoint is missing goes on from the one before.

    Args:
      fit: a `Settings`.
      key: of the finished fit.
      encodings: of the finished fit.
      folder: of the finished fit, which loses its newest checkpoint here; of one with
        members the last of them does.
      finished: the prior that came of it.
      monkeypatch: of pytest.
    """
    place = max(folder.glob("member-*"), default=folder)
    steps = [int(path.name) for path in place.iterdir()] if place.exists() else []
    if steps:
        assert len(steps) > 1
        shutil.rmtree(place / str(max(steps)))
    first_steps = []

    def spy(task, state, *args, **kwargs):
        first_steps.append(int(state.step))
        return loop_fit(task, state, *args, **kwargs)

    loop_fit = fitting.loop.fit
    monkeypatch.setattr(fitting.loop, "fit", spy)
    again = fit(key, encodings, folder)
    assert all(step > 0 for step in first_steps), "it began anew"
    jax.tree.map(np.testing.assert_array_equal, again, finished)


def draw(prior, keys):
    """Compiled `sample`."""
    return _draw(prior, keys)


def log_prob(prior, z, key):
    """Compiled `log_prob`."""
    return _log_prob(prior, z, key)


_draw = jax.jit(lambda prior, keys: prior.sample(keys))
_log_prob = jax.jit(lambda prior, z, key: prior.log_prob(z, key))


def _draw_means(key, number, stds):
    component = jax.random.categorical(
        rng.stream(key, "component"), jnp.log(jnp.asarray(WEIGHTS)), shape=(number,)
    )
    noise = jax.random.normal(rng.stream(key, "noise"), (number, 2))
    means, stds = (jnp.asarray(a, jnp.float32)[component] for a in (MEANS, stds))
    return means + stds * noise
