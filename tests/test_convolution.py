"""`models/convolution.py`: the fast forms are XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.convolution import convolve


def reference(x, kernel, stride, groups):
    pad = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("sides", [(8, 8), (7, 4), (1, 1)])
@pytest.mark.parametrize("groups", [1, 4])
def test_values_and_gradients_are_those_of_xla(key, sides, size, stride, groups):
    x_key, kernel_key, slope_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (3, *sides, 4))
    out = 4 if groups == 4 else 6
    kernel = jax.random.normal(kernel_key, (size, size, 4 // groups, out))
    ours, theirs = (
        jax.vjp(lambda x, k, f=f: f(x, k, stride, groups), x, kernel)
        for f in (convolve, reference)
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    slope = jax.random.normal(slope_key, theirs[0].shape)
    for mine, other in zip(ours[1](slope), theirs[1](slope), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_stack_of_them_is_one_after_another(key, groups):
    x = jax.random.normal(key, (2, 3, 5, 5, 4))
    kernels = jax.random.normal(key, (2, 3, 3, 4 // groups, 4))

    def loss(convolution, x, kernel):
        return jnp.sum(convolution(x, kernel, 1, groups) ** 2)

    def stacked(convolution):
        grad = jax.grad(loss, argnums=(1, 2))
        return jax.vmap(lambda x, k: grad(convolution, x, k))(x, kernels)

    for mine, other in zip(stacked(convolve), stacked(reference), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)
