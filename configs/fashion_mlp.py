"""The model of `mnist_mlp.py` on Fashion-MNIST, binarised dynamically in the same way.

Literature, test NLL in nats after 10^7 steps: VAE 228.70, LARS 227.45, SNIS 227.51.
The full length was not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config_files


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` as of `mnist_mlp`."""
    return config_files.on_data("fashion_mnist", "mnist_mlp", variant)
