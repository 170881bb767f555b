"""The model of `mnist_mlp.py` on Fashion-MNIST, binarised dynamically in the same way.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/fashion_mlp.py
    --workdir=runs/fashion --config.vae.num_steps=200000

took two CPU cores 31 minutes; docs/results.md has its numbers.  Without the last flag
stage 1 has 10^6 steps.

Literature, test NLL in nats after 10^7 steps: VAE 228.70, LARS 227.45, SNIS 227.51.
The full length was not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config_files


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` as of `mnist_mlp`."""
    return config_files.on_data("fashion_mnist", "mnist_mlp", variant)
