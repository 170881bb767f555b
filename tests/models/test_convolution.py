"""`models/convolution.py`: the fast forms are XLA's own convolution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.convolution import convolve

TINY = ((4, 1), (3, 2), (1, 1))  # maps for which patches beat XLA's convolution


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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("sides", [(4, 4), (6, 2), (4, 1), (3, 2), (1, 1)])
def test_many_small_maps_are_one_product(key, sides, size, stride):
    x_key, kernel_key, slope_key = jax.random.split(key, 3)
    x = jax.random.normal(x_key, (2, 200, *sides, 3))
    kernel = jax.random.normal(kernel_key, (size, size, 3, 4))

    def of_batches(convolution):
        return lambda x, k: jax.vmap(lambda x: convolution(x, k, stride, 1))(x)

    ours, theirs = (jax.vjp(of_batches(f), x, kernel) for f in (convolve, reference))
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    slope = jax.random.normal(slope_key, theirs[0].shape)
    for mine, other in zip(ours[1](slope), theirs[1](slope), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)
    jaxpr = str(jax.make_jaxpr(of_batches(convolve))(x, kernel))
    assert ("conv_general_dilated" in jaxpr) == (size == 1 and sides not in TINY)


@pytest.mark.parametrize(("reads_once", "num_products"), [(False, 3), (True, 1)])
def test_what_is_dear_is_read_once(key, reads_once, num_products):
    """Halves of maps read x three times."""
    x = jax.random.normal(key, (400, 4, 4, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 5))

    def ours(x):
        return convolve(x, kernel, reads_once=reads_once)

    np.testing.assert_allclose(ours(x), reference(x, kernel, 1, 1), atol=2e-5)
    assert str(jax.make_jaxpr(ours)(x)).count("dot_general[") == num_products


def on_backend(monkeypatch, name):
    monkeypatch.setattr(jax, "default_backend", lambda: name)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_stack_of_them_is_one_after_another(
    key, backend, groups, stride, monkeypatch
):
    """One by one on CPUs, as a product of patches elsewhere: all formulations agree."""
    x = jax.random.normal(key, (2, 3, 5, 5, 4))
    kernels = jax.random.normal(key, (2, 3, 3, 4 // groups, 4))

    def stacked(convolution):
        def loss(x, kernel):
            y = convolution(x, kernel, stride, groups)
            return jnp.sum(y**2), y

        one = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(jax.vmap(one))(x, kernels)

    theirs = stacked(reference)
    on_backend(monkeypatch, backend)
    ours = stacked(convolve)
    for mine, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("backend", "expected"), [("cpu", {"scan"}), ("gpu", {"dot_general"})]
)
def test_no_stack_becomes_a_grouped_convolution(backend, expected, monkeypatch):
    """What XLA would make of `vmap`, thirty times slower on CPUs."""
    on_backend(monkeypatch, backend)
    x, kernels = jnp.ones((2, 3, 4, 4, 5)), jnp.ones((2, 3, 3, 5, 6))
    grad = jax.grad(lambda k, x: jnp.sum(convolve(x, k)))
    jaxpr = str(jax.make_jaxpr(jax.vmap(grad))(kernels, x))
    assert all(f"{name}[" in jaxpr for name in expected)
    for count in ("feature_group_count", "batch_group_count"):
        assert set(re.findall(rf"{count}=(\d+)", jaxpr)) <= {"1"}
    if backend == "gpu":
        assert "conv_general_dilated" not in jaxpr


def test_one_kernel_for_a_batch_of_batches_is_one_convolution(monkeypatch):
    """As SIR weighs a chunk of proposals: no patches, no loop."""
    for backend in ("cpu", "gpu"):
        on_backend(monkeypatch, backend)
        x, kernel = jnp.ones((2, 3, 4, 4, 5)), jnp.ones((3, 3, 5, 6))
        weigh = jax.vmap(convolve, in_axes=(0, None))
        jaxpr = str(jax.make_jaxpr(weigh)(x, kernel))
        assert "conv_general_dilated[" in jaxpr
        assert "scan[" not in jaxpr and "dot_general[" not in jaxpr
        assert set(re.findall(r"feature_group_count=(\d+)", jaxpr)) == {"1"}
        np.testing.assert_allclose(
            weigh(x, kernel), [reference(one, kernel, 1, 1) for one in x], rtol=1e-5
        )
