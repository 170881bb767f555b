"""Means over fits."""

from ncp_jax.comparison import results
from ncp_jax.evaluation.importance import Estimate


def test_fits_that_saw_the_same_examples_do_not_shrink_the_error():
    fits = [{"mmd": Estimate(0.1 * i, 0.2, 50, "squared MMD")} for i in range(4)]
    found = results.over_fits("exact", fits, {}, ())
    assert abs(found.metrics["mmd"].stderr - 0.2) < 1e-12
