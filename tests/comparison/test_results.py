"""Means over fits."""

import json
import math

import numpy as np

from ncp_jax.comparison import likelihoods, results
from ncp_jax.evaluation import importance
from ncp_jax.evaluation.importance import Estimate


def test_fits_that_saw_the_same_examples_do_not_shrink_the_error():
    fits = [{"mmd": Estimate(0.1 * i, 0.2, 50, "squared MMD")} for i in range(4)]
    found = results.over_fits("exact", fits, {}, ())
    assert abs(found.metrics["mmd"].stderr - 0.2) < 1e-12


def test_a_gain_that_is_infinite_is_null_in_the_record():
    gain = Estimate(-math.inf, math.nan, 50, "nats")
    found = results.over_fits("exact", [{"gain": gain}] * 2, {"gain": gain}, ())
    written = results.Comparison({"box": found}, gain, {}, {}).as_json()
    json.dumps(written, allow_nan=False)
    assert written["priors"]["box"]["spreads"] == {"gain": None}
    assert written["nll_base"]["value"] is None


def test_the_mean_of_fits_with_a_density_of_zero_is_minus_infinity():
    box, normal = np.array([-np.inf, -1.0]), np.array([-2.0, -3.0])
    np.testing.assert_array_equal(likelihoods._mean([box, box]), box)
    np.testing.assert_array_equal(likelihoods._mean([normal, box]), [-np.inf, -2.0])
    assert importance.mean_estimate(box, "nats").value == -math.inf
