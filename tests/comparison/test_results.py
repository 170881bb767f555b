"""Means over fits."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.comparison import likelihoods, results
from ncp_jax.comparison.one_vector import OneVector
from ncp_jax.errors import InputError
from ncp_jax.evaluation import importance
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.models.base import EncoderDecoder
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.latents import walk
from tests.comparison.test_hierarchy import HOLE, model


def of_map(scale, z):  # a map [2, 2, 1] to points
    mean = scale * z.sum(axis=2)[..., 0]
    return Normal(mean, jnp.ones_like(mean))


MAPS = OneVector(EncoderDecoder(of_map, of_map, jnp.float32(2.0), (2, 2, 1)))


def test_fits_that_saw_the_same_examples_do_not_shrink_the_error():
    fits = [{"mmd": Estimate(0.1 * i, 0.2, 50, "squared MMD")} for i in range(4)]
    found = results.over_fits("exact", fits, {}, ())
    assert abs(found.metrics["mmd"].stderr - 0.2) < 1e-12


def test_a_gain_that_is_infinite_is_null_in_the_record():
    gain = Estimate(-math.inf, math.nan, 50, "nats")
    found = results.over_fits("exact", [{"gain": gain}] * 2, {"gain": gain}, ())
    written = results.Comparison({"box": found}, gain, {}, {}, MAPS).as_json()
    json.dumps(written, allow_nan=False)
    assert written["priors"]["box"]["spreads"] == {"gain": None}
    assert written["nll_base"]["value"] is None


def test_the_mean_of_fits_with_a_density_of_zero_is_minus_infinity():
    box, normal = np.array([-np.inf, -1.0]), np.array([-2.0, -3.0])
    np.testing.assert_array_equal(likelihoods._mean([box, box]), box)
    np.testing.assert_array_equal(likelihoods._mean([normal, box]), [-np.inf, -2.0])
    assert importance.mean_estimate(box, "nats").value == -math.inf


def compared(model, *priors):
    """A comparison that found nothing of fits of one prior."""
    found = results.over_fits("exact", [{}] * len(priors), {}, priors)
    return results.Comparison({"mine": found}, None, {}, {}, model)


def narrow(*mean):
    return Gaussian(jnp.array(mean), jnp.full(len(mean), 0.01))


def test_draws_of_a_map_have_its_shape(key):
    found = compared(MAPS, narrow(1.0, 2, 3, 4), narrow(5.0, 6, 7, 8))
    out = found.draw("mine", key, 7, batch_size=3)
    (z,) = out.latents
    assert z.shape == (1, 7, 2, 2, 1) and not out.infos
    np.testing.assert_allclose(z[0, :, 0, 1, 0], 2.0, atol=0.06)
    np.testing.assert_allclose(out.images, 2.0 * z[0].sum(2)[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(found.draw("mine", key, 2).latents[0], z[:, :2])
    (second,) = found.draw("mine", key, 7, fit=1).latents
    np.testing.assert_allclose(second[0, :, 0, 1, 0], 6.0, atol=0.06)


def test_draws_of_a_hierarchy_are_its_own_latents(key):
    """Not its signal coordinates: the VAE itself decodes them to the same."""
    of_groups = model()
    out = compared(of_groups, narrow(3.0, -2, 4)).draw("mine", key, 5, batch_size=2)
    (z,) = out.latents
    assert z.shape == (3, 5, 6)
    _, carry = walk(HOLE, (jnp.asarray(z),), lambda *_: ())
    np.testing.assert_allclose(out.images, HOLE.decode(carry).mean, rtol=1e-4)
    basis = of_groups.vae.directions.basis[0][0]  # of the first group
    base = HOLE.prior(0, 0, HOLE.root(5)).base
    u = (z[0] - base.mean) / base.std @ basis
    np.testing.assert_allclose(u, [[3.0, -2.0]] * 5, atol=0.06)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "other"}, "no prior 'other': mine"),
        ({"fit": 1}, "fit must be"),
        ({"num": 0}, "num must be"),
    ],
)
def test_draws_that_there_are_not_are_refused(key, asked, message):
    found = compared(MAPS, narrow(0.0, 0, 0, 0))
    with pytest.raises(InputError, match=message):
        found.draw(**{"name": "mine", "key": key, **asked})
