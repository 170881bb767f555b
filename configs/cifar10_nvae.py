"""NVAE with 30 latent groups of 16x16 on CIFAR-10, pixels normal, as the paper has it.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/cifar10_nvae.py --workdir=cifar

FOLDER holds cifar-10-batches-bin/ or -py/, or their tar.gz as published. The last 8,333
of the 50,000 training pictures validate.

Stage 1 is the reference NVAE's with a normal pixel decoder, which is what the paper's
numbers are of: 400 epochs of all 50,000 pictures in batches of 256, here 78,125 steps.
`--config.vae.model.likelihood=logistic_mixture --config.vae.penalty_weight=1e-2` makes
it the NVAE of its own paper. Activations are bfloat16 where the reference has float16;
parameters, statistics, latents and densities are float32. The reference took 55 hours
on 8 V100 of 16 GB, 32 pictures each. Its checkpoint may be used in place of stage 1:

  ... --config.vae.checkpoint=FILE.pt --stage=import

Stage 2 reads signal directions, its settings those of `mnist_nvae.py`. `:residual` has
the paper's discriminators of maps: the paper gives their blocks; their width, the
number of steps, the batch size and the Langevin step are our choice, untuned.

Published FID (50,000 draws, SIR with 5,000 proposals): 51.71 under the base prior,
24.08 under the NCP prior. Not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets

BATCH_SIZE = 256  # of all devices together
STEPS_PER_EPOCH = 50_000 / BATCH_SIZE


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings.

    Args:
      variant: "smoke" for seconds; "residual", "smoke_residual": the same with the
        paper's discriminators, which read whole latent maps.
    """
    size = variant.removesuffix("residual").removesuffix("_")
    is_residual = variant.endswith("residual")
    name = "residual" if is_residual else "mlp"
    config = config_lib.default(vae="nvae", discriminator=name)
    config.data.update(
        name="cifar10",
        shape=(32, 32, 3),
        binarization="none",
        horizontal_flips=True,
    )
    config.vae.model.update(
        presets.COLOUR_NVAE,
        groups_per_scale=(30,),
        encoder_channels=128,
        decoder_channels=128,
        num_flows=1,
    )
    config.vae.update(
        presets.NVAE_TRAINING,
        batch_size=BATCH_SIZE,
        num_steps=int(400 * STEPS_PER_EPOCH),
        warmup_steps=int(5 * STEPS_PER_EPOCH),
        penalty_weight=1e-1,
        steps_per_dispatch=25,
        steps_per_eval=3_125,
    )
    if is_residual:
        config.ncp.discriminator.update(channels=64, blocks="AAABAAAB")
        config.ncp.update(
            batch_size=128,
            num_steps=50_000,
            steps_per_dispatch=25,
            steps_per_eval=1_000,
        )
    else:
        config.update_from_flattened_dict(presets.ON_DIRECTIONS)
        config.ncp.batch_size = 512
    config.sample.update(
        langevin_num_steps=500,
        langevin_in_noise=True,
    )
    config.evaluate.update(
        batch_size=50,
        max_examples=1_000,
        num_importance_samples=100,
        num_snis_proposals=100,
        num_snis_samples=4,
        chunk_size=4,
        num_log_z_draws=20_000,
        log_z_batch_size=1_000,
        num_mmd_samples=500,  # latents of 0.6 MB each, by SIR with 5,000 proposals
    )
    return presets.variant(config, size, "residual", "smoke_residual")
