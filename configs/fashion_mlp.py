"""The model of `mnist_mlp.py` on Fashion-MNIST, binarised dynamically in the same way.

Literature, test NLL in nats after 10^7 steps: VAE 228.70, LARS 227.45, SNIS 227.51.
The full length was not run here.
"""

from ml_collections import ConfigDict

from configs import mnist_mlp


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` as of `mnist_mlp`."""
    config = mnist_mlp.get_config(variant)
    config.data.name = "fashion_mnist"
    return config
