"""RAE's own network on MNIST, and priors on its 16 latents (Ghosh et al., 2020).

Pictures are grey, padded to 32x32 by the model.  Seven kinds of stage 1 by name: `:vae`
(the default), `:wae`, `:rae`, `:rae_l2`, `:rae_gp`, `:rae_sn`, `:ae`, each with the
published weights; and `:two_stage`, the VAE of Dai and Wipf (2019), whose pixels have
one learned variance.  A run trains one of them, fits six priors and scores decoded
draws; all kinds but `vae` and `two_stage` have no likelihoods.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_rae.py:rae_l2 --workdir=l2

With the weights of a LeNet-5 (docs, What is measured) 10,000 draws are scored against
the test set:

  --config.evaluate.feature_net=lenet5 --config.evaluate.feature_weights=LENET5.npz

Made for two CPU cores: a sixteenth of the published widths, trained on two cores by
2,500 steps.  A step of `vae` takes 0.17 s of CPU time, one of `rae_gp` 0.39 s (on a
busy machine).  Steps, rate and width are our choice, untuned.  The published ones are
those of

  --config.vae.model.channels=128 --config.vae.num_steps=50000
  --config.vae.learning_rate=5e-4

(1e-3 for `wae`), which is for a GPU and was not run here.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets

# The published loss of the VAE is the sum of squares plus 0.312 KL.
STD = math.sqrt(0.312 / 2)
KINDS: dict[str, dict[str, Any]] = {
    "vae": {"likelihood_std": STD},
    "wae": {"regularizer_weight": 3e-2},
    "rae": {"embedding_weight": 5e-4},
    "rae_l2": {"embedding_weight": 1e-4, "regularizer_weight": 1e-7},
    "rae_gp": {"embedding_weight": 1e-4, "regularizer_weight": 5e-8},
    "rae_sn": {"embedding_weight": 9e-3},
    "ae": {},
    "two_stage": {"kind": "vae", "likelihood_std": STD, "is_std_learned": True},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` a kind; "smoke", "smoke_KIND" take seconds."""
    config = config_lib.default(vae="rae")
    config.data.update(name="mnist", shape=(28, 28, 1))
    config.vae.model.update(
        padding=2, latent_dim=16, channels=8, kernel_size=4, num_doublings=2
    )
    config.vae.update(presets.SMALL_AUTOENCODER_TRAINING, num_steps=2_500)
    config.compare.update(
        num_fits=1, max_examples=1_000, num_importance_samples=100, chunk_size=10
    )
    return presets.as_autoencoder(config, variant, KINDS)
