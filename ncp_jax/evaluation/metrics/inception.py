"""InceptionV3 as the standard FID uses it: TensorFlow's network of December 2015.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision"; its weights
are those of pytorch-fid's file, whose names its parts bear.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.evaluation.metrics import weights
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs
from ncp_jax.evaluation.metrics.inception_blocks import (
    BasicConv,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    max_pool,
)

Array = jax.Array

SIDE = 299
NUM_CLASSES = 1008
URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
REMEDY = (
    f"FID needs Inception's weights: download {URL} (91 MB) and put it there, or the "
    "npz that ncp_jax.evaluation.metrics.inception.convert makes of it; reading the "
    ".pth itself needs PyTorch. Distances of other networks (FD-LeNet, FD-ResNet20) "
    "need neither"
)


class InceptionV3(nn.Module):
    """Grey or RGB pictures in [0, 1] to 2048 features ("pool3") and 1008 logits.

    Attributes:
      side: pictures are resized to this many pixels, linearly and without antialiasing.
    """

    side: int = SIDE

    @nn.compact
    def __call__(self, images: Array) -> Outputs:
        """Maps [B, H, W, 1 or 3] to features [B, 2048] and logits [B, 1008]."""
        x = self.prepare(images)
        x = BasicConv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = BasicConv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(BasicConv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = BasicConv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = max_pool(BasicConv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, pool_channels in (("b", 32), ("c", 64), ("d", 64)):
            x = InceptionA(pool_channels, name=f"Mixed_5{name}")(x)
        x = InceptionB(name="Mixed_6a")(x)
        for name, channels in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = InceptionC(channels, name=f"Mixed_6{name}")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(is_max_pooled=False, name="Mixed_7b")(x)
        x = InceptionE(is_max_pooled=True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        return Outputs(features, nn.Dense(NUM_CLASSES, name="fc")(features))

    def prepare(self, images: Array) -> Array:
        """[B, H, W, 1 or 3] in [0, 1] to [B, side, side, 3] in [-1, 1]."""
        shape = (len(images), self.side, self.side, images.shape[3])
        resized = jax.image.resize(images, shape, "linear", antialias=False)
        return jnp.broadcast_to(2.0 * resized - 1.0, (*shape[:3], 3))


def load(path: str | Path) -> FeatureNet:
    """Returns the network of the standard FID.

    Args:
      path: of pytorch-fid's weight file, or of the npz that `convert` makes of it.

    Raises:
      InputError: no such file, with where to get it; or weights of another network.
    """
    state, sha256 = weights.read(path, REMEDY)
    variables = weights.to_variables(InceptionV3(), state, (SIDE, SIDE, 3))
    return FeatureNet("FID", InceptionV3(), variables, sha256, (None, None, None))


def convert(source: str | Path, target: str | Path) -> str:
    """Writes pytorch-fid's weights as an npz, which needs no PyTorch.

    Args:
      source: pytorch-fid's weight file.
      target: the npz, with PyTorch's names and layouts.

    Returns:
      The npz's sha256.

    Raises:
      InputError: no such file, or weights of another network.
    """
    state, _ = weights.read(source, REMEDY)
    weights.to_variables(InceptionV3(), state, (SIDE, SIDE, 3))
    with open(target, "wb") as file:
        np.savez(file, allow_pickle=False, **state)
    return weights.read(target, REMEDY)[1]
