"""The model of `mnist_mlp.py` on statically binarised MNIST (`binarized_mnist`).

  NCP_JAX_DATA=FOLDER python main.py --config=configs/static_mlp.py
    --workdir=runs/static --config.vae.num_steps=200000

took two CPU cores 29 minutes; docs/results.md has its numbers.  Without the last flag
stage 1 has 10^6 steps.

Literature, test NLL in nats after 10^7 steps: VAE 89.20, LARS 86.53, SNIS 86.28.
The full length was not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config_files


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` as of `mnist_mlp`."""
    return config_files.on_data("binarized_mnist", "mnist_mlp", variant)
