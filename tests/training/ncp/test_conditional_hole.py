"""Stage 2 finds a conditional hole that is known in closed form.

Three groups of 40 dimensions, in two of which q and p differ given the group before.
`python -m tests.training.ncp.test_conditional_hole` prints what the documentation says.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax import rng
from ncp_jax.priors.standardized import own_latents
from tests.oracles import conditional_hole

NUM_TRAIN, NUM_TEST = 20_000, 4_000


def found(directions, seed=0):
    """Gains of the groups, their log Z and the errors of log r, beside the truth."""
    hole, key = conditional_hole(), jax.random.key(seed)
    train = np.asarray(hole.data(rng.stream(key, "train"), NUM_TRAIN))
    test = np.asarray(hole.data(rng.stream(key, "test"), NUM_TEST))
    ncp = ncp_jax.fit(
        hole,
        train,
        key=rng.stream(key, "fit"),
        directions=directions,
        num_steps=3_000,
        learning_rate=2e-3,
        num_passes=2,
        patience=0,
        progress=False,
    )
    estimates = ncp_jax.evaluate(
        ncp, test, key=rng.stream(key, "evaluate"), num_importance_samples=100
    )
    return hole, ncp, test, estimates


def summary(directions, seed=0):
    """What stage 2 learned beside the truth: lists of one number per group, nats."""
    hole, ncp, test, estimates = found(directions, seed)
    num_groups = len(hole.gain)

    @jax.jit
    def both(ncp, x, key):
        latents = ncp.vae.encode(x, key).latents
        _, log_r, carry = ncp.terms(latents)
        exact = hole.log_ratio(own_latents(ncp.vae, latents, carry))
        return log_r[:, :num_groups], exact

    log_r, exact = both(ncp, jnp.asarray(test), jax.random.key(seed + 1))

    def of_groups(name):
        return [estimates[f"{name}/{k}"].value for k in range(num_groups)]

    return {
        "true_gain": hole.gains().tolist(),
        "gain": of_groups("nce_gain"),
        "log_z": of_groups("nce_log_z"),
        "rms_error_of_log_r": np.sqrt(np.mean((log_r - exact) ** 2, 0)).tolist(),
        "rms_of_log_r": np.sqrt(np.mean(exact**2, 0)).tolist(),
        "true_gain_nats": float(hole.nll_gain()),
        "gain_nats": estimates["gain_nats"].value,
        "gain_nats_stderr": estimates["gain_nats"].stderr,
        "num_directions": [
            estimates[f"num_directions/{k}"].value
            for k in range(num_groups)
            if f"num_directions/{k}" in estimates
        ],
    }


@pytest.mark.optimized
def test_signal_directions_find_the_hole_and_nothing_else():
    found = summary("auto")
    assert found["num_directions"] == [2, 2, 2]
    np.testing.assert_allclose(found["gain"], found["true_gain"], atol=0.06)
    np.testing.assert_allclose(found["log_z"], 0.0, atol=0.1)
    error = np.divide(found["rms_error_of_log_r"], found["rms_of_log_r"])
    assert (error < 0.2).all()
    off = found["gain_nats"] - found["true_gain_nats"]
    assert abs(off) < 0.06 + 5 * found["gain_nats_stderr"]


if __name__ == "__main__":
    for name, directions in (("signal directions", "auto"), ("all of z", None)):
        for seed in range(3):
            print(json.dumps({"discriminators read": name} | summary(directions, seed)))
