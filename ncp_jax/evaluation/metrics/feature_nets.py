"""Small classifiers for Frechet distances of small pictures; none of them gives an FID.

A distance between the features of LeNet-5 or of a CIFAR ResNet orders models of one
data set; it compares with numbers of the same network and file only, so it bears its
name: "FD-LeNet", "FD-ResNet20".
"""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.evaluation.metrics import weights
from ncp_jax.evaluation.metrics.extractor import FeatureNet, Outputs

Array = jax.Array

CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
# LeNet-5 as a numbered sequence, by the names of the other file.
SEQUENCE = {"0": "conv1", "3": "conv2", "7": "fc1", "9": "fc2", "11": "fc3"}


class LeNet5(nn.Module):
    """LeNet-5 with ReLU: 28x28x1 to 84 features and 10 classes.

    Attributes:
      mean: subtracted from pictures in [0, 1].
      std: by which they are then divided.
    """

    mean: float = 0.0
    std: float = 1.0

    @nn.compact
    def __call__(self, images: Array) -> Outputs:
        """Maps [B, 28, 28, 1] in [0, 1] to features [B, 84] and logits [B, 10]."""
        x = (images - self.mean) / self.std
        for name, channels in (("conv1", 6), ("conv2", 16)):
            x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID", name=name)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # PyTorch flattens CHW
        x = nn.relu(nn.Dense(120, name="fc1")(x))
        x = nn.relu(nn.Dense(84, name="fc2")(x))
        return Outputs(x, nn.Dense(10, name="fc3")(x))


class CifarBlock(nn.Module):
    """Two convolutions and an identity, which new channels join as zeros."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, any] to [B, H / stride, W / stride, channels]."""
        y = nn.relu(conv_norm(x, self.channels, self.stride, "1"))
        y = conv_norm(y, self.channels, 1, "2")
        added = self.channels - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))
        return nn.relu(x + y)


class CifarResNet(nn.Module):
    """He et al. 2016, Sec. 4.2, of 6 n + 2 layers: pictures to 64 features, 10 classes.

    Attributes:
      num_blocks: n, per resolution.
    """

    num_blocks: int

    @nn.compact
    def __call__(self, images: Array) -> Outputs:
        """Maps [B, H, W, 3] in [0, 1] to features [B, 64] and logits [B, 10]."""
        mean, std = (jnp.array([[[v]]]) for v in (CIFAR_MEAN, CIFAR_STD))  # [1,1,1,3]
        x = (images - mean) / std
        x = nn.relu(conv_norm(x, 16, 1, "1"))
        for layer, channels in enumerate((16, 32, 64), start=1):
            for i in range(self.num_blocks):
                stride = 2 if layer > 1 and i == 0 else 1
                x = CifarBlock(channels, stride, name=f"layer{layer}_{i}")(x)
        x = x.mean((1, 2))
        return Outputs(x, nn.Dense(10, name="linear")(x))


def conv_norm(x: Array, channels: int, stride: int, suffix: str) -> Array:
    """A 3x3 convolution "conv" + suffix and a batch normalisation "bn" + suffix."""
    x = nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        name=f"conv{suffix}",
    )(x)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=f"bn{suffix}")(x)


class Kind(NamedTuple):
    """A network by its name."""

    label: str
    module: nn.Module
    image_shape: tuple[int, int, int]


KINDS = {
    "lenet5": Kind("FD-LeNet", LeNet5(), (28, 28, 1)),
    "resnet20": Kind("FD-ResNet20", CifarResNet(3), (32, 32, 3)),
    "resnet56": Kind("FD-ResNet56", CifarResNet(9), (32, 32, 3)),
}


def load(name: str, path: str | Path) -> FeatureNet:
    """Returns a small feature network.

    Args:
      name: "lenet5", "resnet20" or "resnet56".
      path: of its weights: an npz of PyTorch's names and layouts.  A LeNet-5 whose
        parts are numbered ("main.0") was trained on standardised pictures, one whose
        parts are named ("conv1") on pictures in [0, 1]; each gets what it knows.

    Raises:
      InputError: no such file, or weights of another network.
    """
    label, module, shape = KINDS[name]
    state, sha256 = weights.read(path, f"Put an npz of {name}'s weights there")
    if name == "lenet5" and "main.0.weight" in state:
        module, state = LeNet5(MNIST_MEAN, MNIST_STD), _named(state)
    variables = weights.to_variables(module, state, shape)
    return FeatureNet(label, module, variables, sha256, shape)


def _named(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a numbered LeNet-5 by names; what is unknown stays as it is."""
    split = {name: name.split(".") for name in state}
    return {
        f"{SEQUENCE[parts[1]]}.{parts[2]}"
        if len(parts) == 3 and parts[1] in SEQUENCE
        else name: state[name]
        for name, parts in split.items()
    }
