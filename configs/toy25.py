"""25 Gaussians on a grid in the plane: the prior hole and its repair, to look at.

5x5 modes 2 apart, standard deviation 0.1; a 2-D latent.

  python main.py --config=configs/toy25.py --workdir=runs/toy25

Under five minutes on two CPU cores; expect 75 % of the base prior's samples off every
mode and 3 % of those of SIR, of Langevin and of decoded posterior draws
(docs/results.md).
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "smoke" shrinks them to seconds."""
    config = config_lib.default()
    config.data.update(name="toy25", shape=(2,))
    config.vae.model.update(
        latent_dim=2,
        hidden_dims=(128, 128),
        activation="relu",
        likelihood="normal",
        likelihood_std=0.12,
    )
    config.vae.update(
        batch_size=256, num_steps=10_000, learning_rate=1e-3, schedule="cosine"
    )
    config.ncp.discriminator.update(hidden_dims=(192, 192, 192), activation="relu")
    config.ncp.update(batch_size=512, num_steps=20_000, ema_decay=0.999)
    config.sample.update(num_images=10_000, batch_size=1_000, langevin_step_size=1e-3)
    config.evaluate.update(num_importance_samples=200)
    return presets.variant(config, variant)
