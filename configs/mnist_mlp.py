"""The single-group VAE of the paper's Table 2 on dynamically binarised MNIST.

Networks, data protocol and stage-1 optimiser are those of LARS and SNIS: encoder and
decoder of two layers of 300 tanh units, 50 latents, energy network 50-100-100-1, Adam
3e-4 divided by 3 after 10^6 steps of batch 128.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_mlp.py --workdir=runs/mnist

trains stage 1 for 10^6 steps, which took two CPU cores 88 minutes, and stage 2 as
the paper does, in ten minutes.  `:ranking` adds the ranking loss, which bounds the gain
itself.  `:deep` trains a larger network by the paper's loss.  On the VAE of that run,
in another workdir, each is

  --config.vae.workdir=runs/mnist

Stage 1 need not be trained: files of 200,000 and of 10^6 steps come with this
repository, and one of 1.4 million more at a rate that falls to zero,

  --config.vae.pretrained=mnist_mlp
  --config.vae.pretrained=mnist_mlp_1m
  --config.vae.pretrained=mnist_mlp_annealed

The full length of the literature, for a GPU, is one flag more:

  --config.vae.num_steps=10000000

Literature, test NLL in nats after 10^7 steps: VAE 84.82, LARS 83.03, SNIS 82.52,
NCP-VAE 82.82.  The full length was not run here.  `mnist_mlp_annealed` has 84.95, and
with `:deep` 82.80 (docs/results.md).
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "ranking", "deep", or "smoke" for seconds."""
    config = config_lib.default()
    config.data.update(name="mnist", shape=(28, 28, 1))
    config.vae.model.update(latent_dim=50, hidden_dims=(300, 300), activation="tanh")
    config.vae.update(
        batch_size=128,
        num_steps=1_000_000,
        learning_rate=3e-4,
        schedule="step",
        steps_per_eval=10_000,
    )
    config.ncp.discriminator.update(hidden_dims=(100, 100), activation="tanh")
    config.ncp.update(
        batch_size=1_024, num_steps=60_000, learning_rate=4e-3, steps_per_eval=1_000
    )
    config.evaluate.update(num_importance_samples=1_000, num_log_z_draws=10_000_000)
    if variant == "ranking":
        config.ncp.update(num_negatives=8, ranking_weight=10.0)
        return config
    if variant == "deep":
        config.ncp.discriminator.update(hidden_dims=(300,) * 4, activation="swish")
        config.ncp.update(num_steps=8_000, weight_decay=0.3)
        return config
    return presets.variant(config, variant, "ranking", "deep")
