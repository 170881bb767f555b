"""Layers of RAE: what they compute, and that a spectral norm is really 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.models.rae import layers

LAYERS = {
    "dense": (layers.Dense(5), (3, 6)),
    "down_4": (layers.Down(5, 4), (2, 6, 4, 3)),
    "down_5": (layers.Down(5, 5), (2, 6, 4, 3)),
    "up_4": (layers.Up(2, 4), (2, 3, 4, 6)),
    "up_5": (layers.Up(2, 5), (2, 3, 4, 6)),
    "last_4": (layers.Last(2, 4), (2, 5, 4, 6)),
    "last_5": (layers.Last(2, 5), (2, 5, 4, 6)),
}


def draw(shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def matrix_of(name, kernel):
    """What the spectral norm is that of, in float64."""
    kernel = np.asarray(kernel, np.float64)
    if name.startswith(("up", "last")):  # transposed: the columns are what comes in
        kernel = kernel.swapaxes(-1, -2)
    return kernel.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("name", ["dense", "down_4", "up_5", "last_4"])
def test_a_spectral_layer_has_the_norm_one(name, key):
    """Its output is that of the plain layer over the largest singular value."""
    layer, shape = LAYERS[name]
    spectral, x = layer.clone(is_spectral=True), draw(shape)
    fresh = jax.jit(spectral.init)(key, x)
    params = jax.tree.map(lambda leaf: 3.0 * leaf, fresh["params"])
    variables = {**fresh, "params": params}
    norm = np.linalg.norm(matrix_of(name, params["kernel"]), 2)
    out, plain = spectral.apply(variables, x), layer.apply({"params": params}, x)
    np.testing.assert_allclose(out * norm, plain, rtol=1e-3, atol=1e-5)
    assert norm > 2.0  # else the two would be the same


def test_the_vector_follows_the_kernel_in_training_alone(key):
    layer, x = layers.Dense(5, is_spectral=True), draw((3, 6))
    variables = layer.init(key, x)
    kernel = draw((6, 5), seed=1)
    moved = {**variables, "params": {**variables["params"], "kernel": kernel}}
    train = jax.jit(lambda v: layer.apply(v, x, mutable=["batch_stats"])[1])
    for _ in range(60):
        moved = {**moved, **train(moved)}
    before, after = (v["batch_stats"]["right"] for v in (variables, moved))
    right = np.linalg.svd(np.asarray(kernel, np.float64))[2][0]
    assert abs(float(jnp.vdot(after, right))) == pytest.approx(1.0, abs=1e-3)
    assert abs(float(jnp.vdot(before, right))) < 0.99
    norm = np.linalg.norm(np.asarray(kernel, np.float64), 2)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel) / norm
    np.testing.assert_allclose(layer.apply(moved, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["last_4", "last_5"])
def test_the_last_layer_is_a_mirrored_convolution(name, key):
    layer, shape = LAYERS[name]
    x, size = draw(shape), layer.size
    variables = jax.jit(layer.init)(key, x)
    pads = [(size // 2, (size - 1) // 2)] * 2
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"][::-1, ::-1],
        (1, 1),
        pads,
        dimension_numbers=layers.LAYOUT,
    )
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_sides_are_halved_and_doubled():
    for name, scale in (("down", 0.5), ("up", 2), ("last", 1)):
        for size in (4, 5):
            layer, shape = LAYERS[f"{name}_{size}"]
            x = jax.ShapeDtypeStruct((7, 6, 10, shape[-1]), jnp.float32)
            out, _ = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
            assert out.shape == (7, 6 * scale, 10 * scale, layer.features)
