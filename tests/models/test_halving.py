"""`halving.py`: convolutions of stride 2 and their transposes, by XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.halving import Double, Halve, double, halve

LAYOUT = ("NHWC", "HWIO", "NHWC")


def by_xla(x, kernel, bias):
    out = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT
    )
    return out + bias[None, None, None]


def transposed_by_xla(x, kernel, bias):
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME") + bias[None, None, None]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(halve, by_xla), (double, transposed_by_xla)]
)
@pytest.mark.parametrize("sides", [(4, 6), (7, 4), (1, 5), (2, 1)])
def test_values_and_gradients_are_those_of_xla(ours, theirs, sides, key):
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (3, *sides, 2))
    kernel = jax.random.normal(keys[1], (4, 4, 2, 5))
    bias = jax.random.normal(keys[2], (5,))
    out, pull = jax.vjp(ours, x, kernel, bias)
    expected, expected_pull = jax.vjp(theirs, x, kernel, bias)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    slope = jax.random.normal(keys[3], out.shape)
    for ours_, theirs_ in zip(pull(slope), expected_pull(slope), strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-4)


def test_doubling_is_the_transpose_of_halving(key):
    """As the docstring has it: <halve(x), y> = <x, double(y)>, kernel for kernel."""
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (2, 8, 6, 3))
    y = jax.random.normal(keys[1], (2, 4, 3, 5))
    kernel = jax.random.normal(keys[2], (4, 4, 3, 5))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    down = np.sum(halve(x, kernel, jnp.zeros(5)) * y)
    np.testing.assert_allclose(
        down, np.sum(x * double(y, turned, jnp.zeros(3))), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("layer", "shape"), [(Halve, (4, 3, 6)), (Double, (14, 10, 6))]
)
def test_layers_have_one_kernel_and_one_bias(layer, shape, key):
    x = jnp.ones((2, 7, 5, 3))
    out, variables = layer(6).init_with_output(key, x)
    assert out.shape == (2, *shape)
    params = variables["params"]
    assert params["kernel"].shape == (4, 4, 3, 6)
    np.testing.assert_array_equal(params["bias"], np.zeros(6))
    bound = (6 / (16 * (3 + 6))) ** 0.5  # Glorot's, uniform
    assert 0.9 * bound < np.abs(params["kernel"]).max() <= bound
