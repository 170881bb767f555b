"""`metrics/inception.py`, part by part, against NumPy and (where it is) PyTorch."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import extractor, inception, weights
from ncp_jax.evaluation.metrics.inception import InceptionV3
from tests.evaluation.metrics import inception_reference as reference

SIDE = 107  # 2x2 at the end: borders everywhere


@pytest.fixture(scope="module")
def state():
    return reference.random_state(0)


def pictures(*shape):
    return np.random.default_rng(1).random(shape, np.float32)


def outputs_of_parts(module, state, images):
    """Of every convolution and block, by PyTorch's names, [B, C, H, W]."""
    variables = weights.to_variables(module, state, (299, 299, 3))

    @jax.jit
    def apply(variables, images):
        def is_part(module, method):
            names = (inception.BasicConv.__name__, "Inception")
            return type(module).__name__.startswith(names) and method == "__call__"

        return module.apply(variables, images, capture_intermediates=is_part)

    final, collected = apply(variables, images)
    found = {"features": np.asarray(final.features), "logits": np.asarray(final.logits)}
    flat = jax.tree_util.tree_leaves_with_path(collected["intermediates"])
    for path, leaf in flat:
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if leaf.ndim == 4:
            found[".".join(names[:-1])] = np.asarray(leaf).transpose(0, 3, 1, 2)
    return found


def assert_parts_agree(found, expected):
    assert found.keys() == expected.keys()
    assert len(found) == 94 + 11 + 2  # convolutions, blocks, features and logits
    for name, value in expected.items():
        value = np.asarray(value)
        assert found[name].shape == value.shape, name
        scale = np.abs(value).max()
        assert scale > 0.1, f"{name} is dead"
        np.testing.assert_allclose(
            found[name] / scale, value / scale, atol=2e-5, err_msg=name
        )


def test_every_part_agrees_with_numpy(state):
    images = pictures(1, SIDE, SIDE, 3)
    x = 2.0 * images.transpose(0, 3, 1, 2).astype(np.float64) - 1
    expected = reference.run(reference.NumpyOps(), state, x)
    assert expected["Mixed_7c"].shape[2:] == (2, 2)
    assert_parts_agree(outputs_of_parts(InceptionV3(SIDE), state, images), expected)


@pytest.mark.parametrize("side", [SIDE, pytest.param(299, marks=pytest.mark.slow)])
def test_every_part_agrees_with_pytorch(state, side):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    images = pictures(2, 32, 40, 3)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    x = 2 * f.interpolate(x, (side, side), mode="bilinear", align_corners=False) - 1
    with torch.no_grad():
        expected = reference.run(reference.TorchOps(f, torch.cat), tensors, x)
    assert_parts_agree(outputs_of_parts(InceptionV3(side), state, images), expected)


def by_half_pixels(image, size):
    """Linear interpolation between pixel centres, the border's continued: [H, W]."""
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        n = len(image)
        place = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (place - low)[:, None]
        image = image[low] * (1 - share) + image[high] * share
        image = np.moveaxis(image, 0, axis)
    return image


@pytest.mark.parametrize("size", [8, 40])  # without antialiasing where it shrinks
def test_pictures_are_resized_between_pixel_centres_and_scaled(size):
    images = pictures(2, 20, 28, 3)
    found = np.asarray(InceptionV3(size).prepare(images))
    for image, resized in zip(images, found, strict=True):
        for c in range(3):
            expected = 2 * by_half_pixels(image[..., c].astype(np.float64), size) - 1
            np.testing.assert_allclose(resized[..., c], expected, atol=5e-6)


def test_grey_pictures_are_repeated():
    grey = pictures(2, 20, 20, 1)
    module = InceptionV3(30)
    np.testing.assert_allclose(
        module.prepare(grey), module.prepare(np.repeat(grey, 3, axis=3)), atol=5e-6
    )


def test_it_has_the_published_number_of_parameters():
    picture = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), picture)
    num = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert num == 21_785_568 + 2_049 * 1_008  # without and with the classes


def test_without_a_file_it_says_what_to_get_and_where_to_put_it(tmp_path):
    path = tmp_path / "inception.pth"
    with pytest.raises(InputError) as caught:
        inception.load(path)
    for part in (str(path), inception.URL, "put it there", "FD-LeNet"):
        assert part in str(caught.value)


def test_the_npz_is_loaded_and_hashed(tmp_path, state):
    path = tmp_path / "inception.npz"
    np.savez(path, **state)
    net = inception.load(path)
    assert net.label == "FID"
    assert net.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    kernel = net.variables["params"]["Mixed_7c"]["branch3x3_2a"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        kernel, state["Mixed_7c.branch3x3_2a.conv.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        net.variables["batch_stats"]["Conv2d_1a_3x3"]["bn"]["var"],
        state["Conv2d_1a_3x3.bn.running_var"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)},
            "other shapes of params/fc/bias, params/fc/kernel",
        ),
        (
            {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1))},
            "unknown params/AuxLogits/conv0/conv/kernel",
        ),
    ],
)
def test_torchvisions_weights_are_refused(tmp_path, state, change, message):
    np.savez(tmp_path / "other.npz", **{**state, **change})
    with pytest.raises(InputError, match=f"another network: the file has {message}"):
        inception.load(tmp_path / "other.npz")


@pytest.mark.parametrize("is_legacy", [True, False])
def test_pytorchs_file_becomes_an_npz(tmp_path, state, is_legacy):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    tensors["Mixed_5b.branch1x1.bn.num_batches_tracked"] = torch.tensor(7)
    source, target = tmp_path / "inception.pth", tmp_path / "inception.npz"
    torch.save(tensors, source, _use_new_zipfile_serialization=not is_legacy)
    sha256 = inception.convert(source, target)
    direct, converted = inception.load(source), inception.load(target)
    assert converted.sha256 == sha256 != direct.sha256
    jax.tree.map(np.testing.assert_array_equal, direct.variables, converted.variables)


@pytest.mark.slow
def test_features_of_pictures_of_any_size(tmp_path, state):
    np.savez(tmp_path / "inception.npz", **state)
    net = inception.load(tmp_path / "inception.npz")
    images = (255 * pictures(3, 28, 28, 1)).astype(np.uint8)
    features = extractor.extract(net, images, batch_size=2)
    x = 2 * np.repeat(images / 255, 3, axis=3) - 1
    x = np.stack(
        [by_half_pixels(c, 299) for c in x.transpose(0, 3, 1, 2).reshape(-1, 28, 28)]
    )
    expected = reference.run(reference.NumpyOps(), state, x.reshape(3, 3, 299, 299))
    scale = np.abs(expected["features"]).max()
    np.testing.assert_allclose(features, expected["features"], atol=2e-5 * scale)
