"""A ladder of three groups of 4, 8 and 16 latents on dynamically binarised MNIST.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_ladder.py --workdir=ladder

The smallest hierarchy that has conditional holes: every group sees all before it, and
stage 2 has one MLP per group, on z_k and z_<k.  Fully connected, Adam 1e-3 with a
cosine to 1e-5, batch 128; the whole took some seventy minutes of two CPU
cores (docs/results.md).
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "smoke" shrinks them to seconds."""
    config = config_lib.default(vae="ladder")
    config.data.update(name="mnist", shape=(28, 28, 1))
    config.vae.model.update(latent_dims=(4, 8, 16), hidden_dims=(300, 300))
    config.vae.update(
        batch_size=128,
        num_steps=150_000,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        schedule="cosine",
        steps_per_eval=5_000,
    )
    config.ncp.discriminator.update(hidden_dims=(300, 300), activation="swish")
    config.ncp.update(
        batch_size=1_024,
        num_steps=8_000,
        learning_rate=2e-3,
        weight_decay=0.3,
        steps_per_eval=1_000,
    )
    config.sample.update(langevin_in_noise=True)
    config.evaluate.update(
        max_examples=2_000,
        num_importance_samples=200,
        num_snis_proposals=128,
        num_snis_samples=4,
        fid_num_images=5_000,
    )
    return presets.variant(config, variant)
