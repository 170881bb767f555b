"""The ConvHVAE of LARS and SNIS, two groups of 50, on dynamically binarised MNIST.

Architecture, data protocol and stage-1 optimiser are those of the literature: Adam 3e-4
divided by 3 after 10^6 steps of batch 128, full KL from the start.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_convhvae.py --workdir=cv

is 10^6 steps, for a GPU; `--config.vae.num_steps=10000000` is the literature's length.
Neither was run here.  Two CPU cores in an hour or two, by a shorter schedule:

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_convhvae.py:cpu --workdir=cv

Literature, test NLL in nats after 10^7 steps: ConvHVAE 81.14, LARS 80.30, SNIS 80.19.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "cpu" is shorter, "smoke" takes seconds."""
    config = config_lib.default(vae="conv_hvae")
    config.data.update(name="mnist", shape=(28, 28, 1))
    config.vae.model.update(latent_dim=50, channels=32, hidden_dim=300)
    config.vae.update(
        batch_size=128,
        num_steps=1_000_000,
        learning_rate=3e-4,
        schedule="step",
        steps_per_dispatch=100,
        steps_per_eval=5_000,
    )
    config.update_from_flattened_dict(presets.ON_DIRECTIONS)
    config.ncp.batch_size = 512
    config.sample.update(langevin_in_noise=True)
    config.evaluate.update(
        max_examples=2_000,
        num_importance_samples=200,
        num_snis_proposals=128,
        num_snis_samples=4,
        fid_num_images=5_000,
    )
    if variant == "cpu":
        config.vae.update(
            num_steps=30_000,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            schedule="cosine",
            steps_per_eval=1_000,
        )
        return config
    return presets.variant(config, variant, "cpu")
