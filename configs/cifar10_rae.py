"""RAE's network on CIFAR-10, lossy, and priors on its 128 latents (Ghosh et al., 2020).

The kinds of stage 1 are those of `mnist_rae.py`, called as there, with the weights that
were published for CIFAR-10; `rae_gp` has the weight 0, as published.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/cifar10_rae.py:wae --workdir=wae

With the weights of a ResNet20 (docs, What is measured) 10,000 draws are scored against
the test set:

  --config.evaluate.feature_net=resnet20 --config.evaluate.feature_weights=RESNET20.npz

Made for two CPU cores: a sixteenth of the published widths, trained by 1,000 steps, and
priors by at most 3,000; NCP over the mixture resamples 200 proposals, where the paper's
Table 1 has 5,000.  Steps, rate and width are our choice, untuned; the mixture has ten
components, as published.  The published steps and widths are those of

  --config.vae.model.channels=128 --config.vae.num_steps=41667
  --config.vae.learning_rate=5e-4 --config.compare.max_steps=0

(1e-3 for `wae`; 100 epochs, of the VAE, WAE and RAE-GP 70), which is for a GPU and was
not run here.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets

# The published loss of the VAE: the sum of squares over three channels plus 0.024 KL.
STD = math.sqrt(3 * 0.024 / 2)
KINDS: dict[str, dict[str, Any]] = {
    "vae": {"likelihood_std": STD},
    "wae": {"regularizer_weight": 6e-3},
    "rae": {"embedding_weight": 1e-2},
    "rae_l2": {"embedding_weight": 1e-3, "regularizer_weight": 1e-6},
    "rae_gp": {"embedding_weight": 9e-4},
    "rae_sn": {"embedding_weight": 3e-2},
    "ae": {},
    "two_stage": {"kind": "vae", "likelihood_std": STD, "is_std_learned": True},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` a kind; "smoke", "smoke_KIND" take seconds."""
    config = config_lib.default(vae="rae")
    config.data.update(name="cifar10", shape=(32, 32, 3))
    config.vae.model.update(latent_dim=128, channels=8, kernel_size=4, num_doublings=2)
    config.vae.update(presets.SMALL_AUTOENCODER_TRAINING, num_steps=1_000)
    config.compare.update(
        num_fits=1,
        max_steps=3_000,
        max_examples=500,
        num_importance_samples=100,
        chunk_size=5,
    )
    return presets.as_autoencoder(
        config, variant, KINDS, num_components=10, num_proposals=200
    )
