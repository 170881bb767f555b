"""scikit-learn's 1,797 real 8x8 digits, the data set that needs no download.

1,297 train, 250 validate, 250 test, binarised afresh on each access.

  python main.py --config=configs/digits.py --workdir=runs/digits

Under a minute on two CPU cores; expect a gain of 0.24 nats, 0.05 either way
(docs/results.md).
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "smoke" shrinks them to seconds."""
    config = config_lib.default()
    config.data.update(name="digits", shape=(8, 8, 1))
    config.vae.model.update(latent_dim=16, hidden_dims=(200, 200), activation="tanh")
    config.vae.update(batch_size=128, num_steps=10_000, learning_rate=1e-3)
    config.ncp.discriminator.update(hidden_dims=(100, 100), activation="tanh")
    config.ncp.update(
        batch_size=1_024,
        num_steps=10_000,
        ema_decay=0.999,
        num_passes=16,  # 250 validation pictures alone would make a noisy judge
    )
    config.evaluate.update(num_passes=16)
    return presets.variant(config, variant)
