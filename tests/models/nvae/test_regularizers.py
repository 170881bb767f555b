import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.nvae import regularizers


def kernels(key):
    """One stack of two 3x3 kernels, a single one of equal shape and a depthwise one."""
    keys = jax.random.split(key, 3)
    return {
        "stack": jax.random.normal(keys[0], (2, 3, 3, 4, 6)),
        "single": jax.random.normal(keys[1], (3, 3, 4, 6)),
        "depthwise": jax.random.normal(keys[2], (5, 5, 1, 8)),
    }


def matrices(tree):
    for leaf in jax.tree.leaves(tree):
        for kernel in np.asarray(leaf, np.float64).reshape(-1, *leaf.shape[-4:]):
            yield kernel.reshape(-1, kernel.shape[-1]).T


def test_spectral_penalty_approaches_the_svd_from_below(key):
    tree = kernels(key)
    exact = sum(np.linalg.norm(matrix, 2) for matrix in matrices(tree))
    state = regularizers.init_power_iteration(tree, key)
    assert {name: u.shape for name, u in state.items()} == {
        "6x36": (3, 6),
        "8x25": (1, 8),
    }
    penalty = jax.jit(regularizers.spectral_penalty)
    few, _ = penalty(tree, state, 1)
    many, state = penalty(tree, state, 200)
    again, _ = penalty(tree, state, 0)
    assert 0.5 * exact < few < many
    np.testing.assert_allclose(many, exact, rtol=1e-4)
    np.testing.assert_allclose(again, exact, rtol=1e-4)


def test_spectral_gradient_is_that_of_the_largest_singular_value(key):
    tree = {"kernel": jax.random.normal(key, (1, 1, 4, 3))}
    state = regularizers.init_power_iteration(tree, key)

    def penalty(tree):
        return regularizers.spectral_penalty(tree, state, 300)[0]

    gradient = jax.grad(penalty)(tree)["kernel"][0, 0].T
    u, _, vt = np.linalg.svd(np.asarray(tree["kernel"][0, 0], np.float64).T)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-3)


def test_batch_norm_penalty_takes_the_largest_scale_of_each_group():
    params = {
        "norm": {"scale": jnp.asarray([[1.0, -3.0], [2.0, 0.5]]), "bias": jnp.ones(2)},
        "conv": {"kernel": 9.0 * jnp.ones((1, 1, 1, 1))},
    }
    assert regularizers.batch_norm_penalty(params) == 5.0


def test_annealed_weight_is_log_linear():
    weight = regularizers.annealed_weight(jnp.asarray(0.5), 1e-2, 1.0)
    np.testing.assert_allclose(weight, 0.1, rtol=1e-5)
    constant = regularizers.annealed_weight(jnp.asarray(0.5), 1e-2)
    np.testing.assert_allclose(constant, 1e-2, rtol=1e-5)
