"""`oracles.ConditionalHoleVAE`: its closed forms hold, so others may rely on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax.priors import latents, ncp_prior
from ncp_jax.priors.group_samplers import Base
from tests.oracles import ConditionalHoleVAE, conditional_hole
from tests.statistics import assert_mean

HOLES = {
    "three": conditional_hole(),
    "five": conditional_hole(5, latent_dim=12, num_directions=3, seed=1, told=0.5),
}
encode = jax.jit(ConditionalHoleVAE.encode)
log_ratio = jax.jit(ConditionalHoleVAE.log_ratio)


@pytest.fixture(params=HOLES)
def hole(request):
    return HOLES[request.param]


def draw(hole, key, number):
    x = hole.data(jax.random.fold_in(key, 0), number)
    return x, encode(hole, x, jax.random.fold_in(key, 1))


def test_the_hole_lies_in_few_directions_of_many(hole):
    num_groups, latent_dim, num_directions = hole.directions.shape
    assert num_groups >= 3 and latent_dim >= 4 * num_directions
    gram = jnp.swapaxes(hole.directions, 1, 2) @ hole.directions
    np.testing.assert_allclose(
        gram, np.stack([np.eye(num_directions)] * num_groups), atol=1e-5
    )
    assert (hole.spread < 0.8).all()
    gains = hole.gains()
    assert (gains > 0.3).all() and (gains < 5.0).all()
    assert hole.nll_gain() < gains.sum()
    # Of group k > 0 some of the gain needs the context.
    means, covariances = hole.signal_moments()
    for k in range(1, num_groups):
        mean, covariance = means[k], covariances[k]
        _, log_det = np.linalg.slogdet(covariance)
        alone = np.trace(covariance) + mean @ mean - num_directions - log_det
        assert 0.5 * alone < gains[k] - 0.02


def test_the_encoder_is_the_posterior_of_the_ncp(hole, key):
    """log p(z) + log r(z) + log p(x | z) - log q(z | x) = log p_NCP(x) at every z."""
    x, (z, log_q) = draw(hole, key, 200)
    log_p, carry = jax.jit(latents.log_prior)(hole, z)
    log_joint = (
        log_p.sum(1) + log_ratio(hole, z).sum(1) + hole.decode(carry).log_prob(x)
    )
    np.testing.assert_allclose(
        log_joint - log_q.sum(1), hole.log_marginal_ncp(x), rtol=1e-4, atol=2e-3
    )


def test_the_ncp_prior_has_these_ratios(hole, key):
    _, (z, _) = draw(hole, key, 50)
    log_p, log_r, _ = jax.jit(ncp_prior.NCPPrior.terms)(hole.ncp(), z)
    np.testing.assert_allclose(log_r, log_ratio(hole, z), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_p, jax.jit(latents.log_prior)(hole, z)[0], rtol=1e-4)


def test_log_r_is_q_against_p_of_the_whole_latent(hole, key):
    """By full covariances over all D dimensions, in float64."""
    _, (z, _) = draw(hole, key, 3)
    found = np.asarray(log_ratio(hole, z))
    before = np.zeros((3, hole.scale.shape[1]))
    u_before = np.zeros((3, hole.shift.shape[1]))
    f64 = {n: np.asarray(getattr(hole, n), np.float64) for n in vars(hole)}
    for k, z_k in enumerate(np.asarray(z[0], np.float64)):
        columns, scale = f64["directions"][k], f64["scale"][k]
        aim = u_before @ f64["transition"][k].T + f64["shift"][k]
        lost = np.diag(f64["spread"][k] ** 2) - np.eye(aim.shape[1])
        within = np.eye(len(scale)) + columns @ lost @ columns.T
        for b in range(3):
            mean = f64["gain"][k] * before[b]
            p = scipy.stats.multivariate_normal(mean, np.diag(scale**2))
            q = scipy.stats.multivariate_normal(
                mean + scale * (columns @ aim[b]), scale[:, None] * within * scale
            )
            expected = q.logpdf(z_k[b]) - p.logpdf(z_k[b])
            assert abs(found[b, k] - expected) < 2e-3
        before = (z_k - f64["gain"][k] * before) / scale
        u_before = before @ columns


def log_r_std(hole):
    """The exact standard deviation of log r_k under q: [K].

    log r = sum(u^2 - n^2) / 2 + constant with u = aim + spread n, n ~ N(0, I): a
    quadratic form of normals.
    """
    stds = []
    for mean, covariance, spread in zip(
        *hole.signal_moments(), np.asarray(hole.spread, np.float64), strict=True
    ):
        m = len(mean)
        joint = np.block([[np.eye(m), np.diag(spread)], [np.diag(spread), covariance]])
        form = 0.5 * np.diag(np.repeat([-1.0, 1.0], m)) @ joint
        shift = np.concatenate([np.zeros(m), 0.5 * mean])
        stds.append((2 * np.trace(form @ form) + 4 * shift @ joint @ shift) ** 0.5)
    return np.array(stds)


def test_the_gain_of_every_group_is_as_told(hole, key):
    _, (z, _) = draw(hole, key, 60_000)
    log_r = np.asarray(log_ratio(hole, z))
    for k, (gain, std) in enumerate(zip(hole.gains(), log_r_std(hole), strict=True)):
        assert_mean(log_r[:, k], gain, std)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * log_r[:, k], gain, std)


@pytest.mark.parametrize("name", HOLES)
def test_every_z_k_is_one_whatever_came_before(name, key):
    """E_p[r_k | z_<k] = 1 by quadrature over u_k, at a context that q has."""
    hole = HOLES[name]
    num_directions = hole.shift.shape[1]
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = np.stack(np.meshgrid(*[nodes] * num_directions), -1)
    u = jnp.asarray(grid.reshape(-1, num_directions), jnp.float32)
    mass = weights / weights.sum()
    for _ in range(num_directions - 1):
        mass = np.multiply.outer(mass, weights / weights.sum())

    @jax.jit
    def all_ratios(hole, z):
        carry, ratios = hole.root(1), []
        for k, z_k in enumerate(z):
            base, context = hole.prior(0, k, carry)
            many = base.mean + base.std * (u @ hole.directions[k].T)
            log_r = hole.ncp().log_ratio(0, k, jnp.repeat(context, len(u), 0))(many)
            ratios.append(jnp.exp(log_r))
            carry = hole.absorb(0, k, carry, z_k)
        return ratios

    _, ((z,), _) = draw(hole, key, 1)
    for r in all_ratios(hole, z):
        assert np.max(r) > 1.5  # it is not r = 1 that is integrated
        np.testing.assert_allclose(np.sum(mass.ravel() * r), 1.0, rtol=1e-3)


def test_the_base_priors_pictures_have_the_moments_of_its_marginal(hole, key):
    n = 40_000

    @jax.jit
    def pictures(hole, key):
        keys = jax.random.split(key, n)
        draws = ncp_prior.ancestral(hole.ncp(), keys, Base())
        return hole.decode(draws.carry).sample(jax.random.fold_in(key, 1))

    x = np.asarray(pictures(hole, key), np.float64).reshape(n, -1)
    mean, covariance = hole.base_marginal()
    white = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)  # [K m, n]
    for i, row in enumerate(white):
        assert_mean(row, 0.0, std=1.0)
        assert_mean(row**2, 1.0, std=2**0.5)
        for other in white[:i]:
            assert_mean(row * other, 0.0, std=1.0)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * white[0] ** 2, 1.0, std=2**0.5)


def test_the_gain_of_the_likelihood_is_as_told(hole, key):
    """And the mean over data of the two marginals' difference, within 10 %."""
    x = np.asarray(hole.data(key, 40_000))
    difference = hole.log_marginal_ncp(x) - hole.log_marginal(x)
    mean, covariance = hole.base_marginal()
    inverse = np.linalg.inv(covariance)
    # Variance of (x - mean)' inverse (x - mean) / 2 - x' x / 2 with x ~ N(0, I).
    excess = inverse - np.eye(len(mean))
    shift = inverse @ mean
    std = (0.5 * np.sum(excess**2) + shift @ shift) ** 0.5
    assert_mean(difference, hole.nll_gain(), std)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * difference, hole.nll_gain(), std)


def test_posterior_means_move_in_the_hidden_directions_alone(hole, key):
    """What signal directions are found from: E_q[e_k | x, z_<k] lies in U_k."""
    x = hole.data(key, 100)
    (z,), _ = encode(hole, x, None)
    carry = hole.root(len(x))
    for k, z_k in enumerate(z):
        e, columns = hole.standardised(k, carry, z_k), hole.directions[k]
        np.testing.assert_allclose(e, e @ columns @ columns.T, atol=1e-4)
        assert np.std(e @ columns, axis=0).min() > 0.1
        carry = hole.absorb(0, k, carry, z_k)
