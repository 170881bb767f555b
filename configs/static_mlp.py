"""The model of `mnist_mlp.py` on statically binarised MNIST (`binarized_mnist`).

Literature, test NLL in nats after 10^7 steps: VAE 89.20, LARS 86.53, SNIS 86.28.
The full length was not run here.
"""

from ml_collections import ConfigDict

from configs import mnist_mlp


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` as of `mnist_mlp`."""
    config = mnist_mlp.get_config(variant)
    config.data.name = "binarized_mnist"
    return config
