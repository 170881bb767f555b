"""The mixture of posteriors: where it starts, and its two ways to a density."""

import jax
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post import vamp
from ncp_jax.priors.ex_post.vamp import DiagonalMixture
from tests.priors.ex_post import suite


def test_without_training_it_is_the_mean_of_posteriors(key):
    encodings = suite.mixture()
    number = len(encodings.posterior.mean)
    mixture = vamp.Settings(number, training=None)(key, encodings)
    z = suite.draw_mixture(key, 5)
    each = jax.vmap(lambda one: encodings.posterior.log_prob(one[None]))(z)
    expected = jax.nn.logsumexp(each, axis=1) - np.log(number)
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=1e-5)
    # All N posteriors are the aggregate, 2,000 of them nearly the mixture.
    suite.assert_recovers_mixture(mixture, key, 0.02, number=5_000)


@pytest.mark.parametrize("center", [0.0, 30.0])
def test_the_rough_density_is_the_density(key, center):
    noise = jax.random.normal(key, (3, 4, 6))
    mixture = DiagonalMixture(noise[0, :, 0], center + noise[1], noise[2] - 2.0)
    z = center + jax.random.normal(jax.random.fold_in(key, 1), (8, 6))
    exact = mixture.log_prob(z)
    np.testing.assert_allclose(mixture.rough_log_prob(z), exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "hint"),
    [({"posterior": None}, "posterior"), ({}, "num_components")],
)
def test_what_is_missing_is_named(key, change, hint):
    with pytest.raises(InputError, match=hint):
        vamp.Settings(num_components=3_000)(key, suite.mixture()._replace(**change))
