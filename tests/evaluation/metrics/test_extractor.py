"""`metrics/extractor.py` on a network whose features are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation.metrics import extractor
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs

TRACES = []


class Sums(nn.Module):
    @nn.compact
    def __call__(self, images):
        TRACES.append(images.shape)
        scale = self.param("scale", nn.initializers.ones, ())
        return Outputs(scale * images.sum((1, 2)), images.mean((1, 2, 3))[:, None])


NET = FeatureNet("FD-sums", Sums(), {"params": {"scale": 2.0}}, "", (4, 4, None))


def pictures(n, channels=3):
    shape = (n, 4, 4, channels)
    return np.random.default_rng(n).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("n", [1, 5, 10, 12])
def test_every_picture_is_there_once_and_in_order(n):
    images = pictures(n)
    features = extractor.extract(NET, images, batch_size=5)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, images.sum((1, 2)) * 2 / 255, rtol=1e-5)


def test_outputs_are_batches_of_features_and_logits():
    images = pictures(7)
    batches = list(extractor.outputs(NET, images, batch_size=5))
    assert [b.features.shape for b in batches] == [(5, 3), (2, 3)]
    np.testing.assert_allclose(
        np.concatenate([b.logits for b in batches])[:, 0],
        images.mean((1, 2, 3)) / 255,
        rtol=1e-5,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_the_unit_interval_are_taken_as_they_are(dtype):
    images = (pictures(3) / 255).astype(dtype)
    features = extractor.extract(NET, images, batch_size=5)
    assert features.dtype == np.float32
    np.testing.assert_allclose(
        features, 2 * images.astype(np.float64).sum((1, 2)), rtol=1e-5
    )


def test_it_is_compiled_once_for_all_batches_types_and_calls():
    images = pictures(11, channels=1)
    TRACES.clear()
    for stored in (images, (images / 255).astype(np.float32), images[:2]):
        extractor.extract(NET, stored, batch_size=3)
    assert TRACES == [(3, 4, 4, 1)]


class Product(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        return Outputs(x @ x.T, x)


def test_products_are_of_float32():
    net = FeatureNet("", Product(), {}, "", (4, 4, 3))
    text = str(jax.make_jaxpr(extractor._apply, static_argnums=0)(
        net.module, net.variables, jnp.zeros((2, 4, 4, 3))
    ))  # fmt: skip
    assert "precision=float32" in text.replace(" ", "") or "HIGHEST" in text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(2)[..., 0], r"\[N, 4, 4, any\]; these are \[2, 4, 4\]"),
        (pictures(2)[:, :3], r"FD-sums is of pictures .* these are \[2, 3, 4, 3\]"),
        (pictures(2, channels=2), "neither grey nor of 3 colours"),
        (pictures(0), "are none"),
        (pictures(2).astype(np.int32), "not int32"),
        (pictures(2) / 100, r"lie in \[.*\] where \[0, 1\] is needed"),
        (pictures(2) / 255 - 0.01, r"lie in \[-0.0"),
        (np.full((2, 4, 4, 3), np.nan), "look for NaN"),
    ],
)
def test_other_pictures_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        extractor.extract(NET, images, batch_size=5)
