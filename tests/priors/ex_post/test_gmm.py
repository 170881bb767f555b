"""The mixture fitted by EM: its density, its search, what it says of bad encodings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post import gmm
from ncp_jax.priors.ex_post.gmm import GaussianMixture
from tests.priors.ex_post import suite
from tests.statistics import assert_mean


def random_mixture(num_components, dim):
    generator = np.random.default_rng(0)
    factors = 0.5 * np.tril(generator.standard_normal((num_components, dim, dim)))
    factors += 2 * np.eye(dim)
    weights = generator.dirichlet(np.ones(num_components))
    return GaussianMixture(
        jnp.asarray(np.log(weights), jnp.float32),
        jnp.asarray(generator.standard_normal((num_components, dim)), jnp.float32),
        jnp.asarray(factors, jnp.float32),
    )


def test_the_density_is_that_of_scipy():
    mixture = random_mixture(3, 4)
    z = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    log_weights, means, factors = (
        np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(mixture)
    )
    components = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(z)
        for mean, factor in zip(means, factors, strict=True)
    ]
    expected = scipy.special.logsumexp(np.array(components).T + log_weights, axis=1)
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=1e-5)


def test_draws_have_the_covariance(key):
    mixture = random_mixture(1, 2)
    z = np.asarray(mixture.sample(jax.random.split(key, 20_000)))
    centred, factor = (z - np.asarray(mixture.means)).T, np.asarray(mixture.factors[0])
    white = np.linalg.solve(factor, centred)
    assert_mean(white[0] * white[1], 0.0, 1.0)
    assert_mean(white[0] ** 2, 1.0, 1.5)
    without_corner = np.linalg.solve(np.diag(np.diag(factor)), centred)
    with pytest.raises(AssertionError):
        assert_mean(without_corner[0] * without_corner[1], 0.0, 1.0)


def test_held_out_density_chooses_the_number_of_components(key):
    mixture = gmm.Settings((1, 3, 2))(key, suite.mixture())
    assert len(mixture.means) == 3


def test_a_stopped_search_fits_only_what_is_missing(key, tmp_path, monkeypatch):
    encodings, done = suite.mixture(), []
    fit_one = gmm.Settings._fit

    def spy(self, rows, num_components, seed):
        done.append(num_components)
        return fit_one(self, rows, num_components, seed)

    monkeypatch.setattr(gmm.Settings, "_fit", spy)
    gmm.Settings((1, 2))(key, encodings, tmp_path)
    gmm.Settings((1, 2, 3))(key, encodings, tmp_path)
    assert done == [1, 2, 3]
    with pytest.raises(InputError, match="encodings"):
        gmm.Settings((1,))(key, suite.tilted(), tmp_path)


def test_encodings_that_em_cannot_fit_are_named(key):
    encodings = suite.mixture()
    same = encodings._replace(train=jnp.ones_like(encodings.train))
    with pytest.raises(InputError, match="reg_covar"):
        gmm.Settings((2,), reg_covar=0.0)(key, same)
