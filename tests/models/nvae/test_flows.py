"""Flow cells are causal, hence volume preserving."""

import chex
import jax
import numpy as np
import pytest

from ncp_jax.models.nvae.flows import FlowCell, ShiftCell, causal_mask
from tests.random_variables import random_variables

SHAPE = (3, 4, 2)


def jacobian(cell, key):
    """d output / d input at a random point and random weights: [values, values]."""
    z = jax.random.normal(key, SHAPE)
    variables = random_variables(cell, z[None])
    jacobian = jax.jit(jax.jacrev(lambda z: cell.apply(variables, z[None])[0]))
    return np.asarray(jacobian(z), np.float64).reshape(z.size, z.size)


def order(is_reversed):
    """Rank of each value: by pixels, and by channels inside a pixel."""
    height, width, channels = SHAPE
    pixels = np.arange(height * width)
    pixels = (pixels[::-1] if is_reversed else pixels)[:, None] * channels
    return (pixels + np.arange(channels)).ravel()


@pytest.mark.parametrize("is_reversed", [False, True])
def test_shift_cell_is_causal_with_unit_diagonal(key, is_reversed):
    derivative = jacobian(ShiftCell(is_reversed), key)
    rank = order(is_reversed)
    derivative = derivative[np.argsort(rank)][:, np.argsort(rank)]
    np.testing.assert_array_equal(np.triu(derivative), np.eye(len(rank)))
    # It is not the identity either: a value reads its predecessor, but for the one
    # at the far end of the row above.
    assert np.count_nonzero(np.diagonal(derivative, -1)) == len(rank) - SHAPE[0]


def test_flow_cell_preserves_volume(key):
    derivative = jacobian(FlowCell(), key)
    sign, log_det = np.linalg.slogdet(derivative)
    assert sign == 1.0
    np.testing.assert_allclose(log_det, 0.0, atol=1e-4)
    assert np.any(np.triu(derivative, 1)) and np.any(np.tril(derivative, -1))


def test_mask_by_hand():
    mask = causal_mask(3, 2, 4, 2, is_strict=True, is_reversed=False)
    assert mask.shape == (3, 3, 2, 4)
    before = [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(mask[..., 0, 0], before)
    before[1][1] = 1  # outputs 2 and 3 belong to the second channel of z
    np.testing.assert_array_equal(mask[..., 0, 2], before)
    loose = causal_mask(1, 4, 2, 2, is_strict=False, is_reversed=True)[0, 0]
    np.testing.assert_array_equal(loose, [[1, 1], [1, 1], [0, 1], [0, 1]])


def test_initial_flow_is_near_the_identity(key):
    z = jax.random.normal(key, (64, 4, 4, 3))
    y = FlowCell().apply(jax.jit(FlowCell().init)(jax.random.key(0, impl="rbg"), z), z)
    chex.assert_equal_shape([y, z])
    assert np.std(y - z) < 0.3
