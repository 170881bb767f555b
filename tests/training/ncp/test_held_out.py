"""`held_out.py` against direct sums in float64 over all batches at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.training.ncp import held_out

NUM_BATCHES, B, M = 3, 8, 2


@pytest.fixture
def logits():
    """[batches, B], [batches, B m] of heavy tails, and a mask of 8 + 8 + 3."""
    rng = np.random.default_rng(0)
    logit_q = rng.normal(1.0, 2.0, (NUM_BATCHES, B)).astype(np.float32)
    logit_p = rng.normal(-1.0, 3.0, (NUM_BATCHES, B * M)).astype(np.float32)
    mask = np.arange(NUM_BATCHES * B).reshape(NUM_BATCHES, B) < 19
    return logit_q, logit_p, mask


def merged(logit_q, logit_p, mask):
    """Of one group, by batches."""
    losses = jax.nn.softplus(-jnp.asarray(logit_q))
    of_batches = jax.vmap(held_out.sums)(
        losses, jnp.asarray(logit_q), jnp.asarray(logit_p), jnp.asarray(mask)
    )
    of_batches = jax.tree.map(lambda leaf: leaf[:, None], of_batches)
    found = held_out.merge(of_batches, jnp.asarray(mask.sum(1)), M)
    assert all(value.shape == (1,) for value in found.values())
    return {name: float(value[0]) for name, value in found.items()}


def test_a_pass_over_batches_is_one_over_all_examples(logits):
    logit_q, logit_p, mask = logits
    found = merged(*logits)
    q = logit_q[mask].astype(np.float64)
    p = logit_p.reshape(NUM_BATCHES, B, M)[mask].astype(np.float64)  # [19, m]
    expected = {
        "loss": np.logaddexp(0, -q).mean(),
        "log_r_q": q.mean(),
        "log_z": np.log(np.exp(p).mean()),
        "gain": q.mean() - np.log(np.exp(p).mean()),
        "log_r_std": np.concatenate([q, p.ravel()]).std(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    of_batches = [
        np.log(np.exp(logit_p[i].reshape(B, M)[mask[i]]).mean())
        for i in range(NUM_BATCHES)
    ]
    assert np.mean(of_batches) < expected["log_z"] - 0.1  # what it is not


def test_padding_changes_nothing(logits):
    logit_q, logit_p, mask = logits
    other_q = np.where(mask, logit_q, 50.0).astype(np.float32)
    mask_p = np.repeat(mask, M, axis=1)
    other_p = np.where(mask_p, logit_p, 50.0).astype(np.float32)
    assert merged(other_q, other_p, mask) == merged(*logits)
    everywhere = np.ones_like(mask)
    assert merged(other_q, other_p, everywhere) != merged(logit_q, logit_p, everywhere)


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_a_constant_log_r_is_told_from_a_small_one(level):
    """Far from zero, too, where squares in float32 would hide it."""
    wiggle = np.random.default_rng(1).normal(size=(NUM_BATCHES, B * (1 + M)))
    mask = np.ones((NUM_BATCHES, B), bool)
    for std in (1e-4, 1e-2):
        values = (level + std * wiggle).astype(np.float32)
        found = merged(values[:, :B], values[:, B:], mask)["log_r_std"]
        np.testing.assert_allclose(found, std * wiggle.std(), rtol=0.01)
        metrics = {"log_r_std": np.array([1.0, found])}
        lines = held_out.remarks(metrics)
        assert len(lines) == (std < held_out.CONSTANT_STD)
        for line in lines:
            assert "group 1 is constant" in line and "config.ncp.weight_decay," in line
        assert not held_out.remarks(metrics, groups=(0,))  # group 1 reads nothing


def test_the_score_is_the_loss_or_minus_the_gain():
    metrics = {"loss": jnp.array([1.3]), "gain": jnp.array([0.2])}
    assert held_out.score(metrics, "loss") == metrics["loss"]
    assert held_out.score(metrics, "gain") == -metrics["gain"]


def test_log_z_of_several_steps_is_that_of_all_their_draws(logits):
    _, logit_p, _ = logits
    log_z = np.log(np.exp(logit_p).mean(1))[:, None]  # [steps, K = 1]
    log_r_q = np.array([[1.0], [2.0], [6.0]], np.float32)
    metrics = {"log_z": log_z, "log_r_q": log_r_q, "gain": log_r_q - log_z}
    found = held_out.mean_of_steps(metrics)
    expected = np.log(np.exp(logit_p.astype(np.float64)).mean())
    np.testing.assert_allclose(found["log_z"], [expected], rtol=1e-5)
    np.testing.assert_allclose(found["gain"], [3.0 - expected], rtol=1e-5)
    assert found["gain"] < metrics["gain"].mean() - 0.1
