"""NVAE with 30 latent groups in 3 scales on CelebA 64x64, as the paper has it.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/celeba64_nvae.py --workdir=c64

FOLDER holds img_align_celeba/ or img_align_celeba.zip with list_eval_partition.txt next
to it. Pictures are cropped to 148x148 and resized once, into a cache of 2.5 GB. For the
paper's models of 6 and of 15 groups append

  --config.vae.model.groups_per_scale="(2, 2, 2)"    or    "(5, 5, 5)"

Stage 1 is the reference NVAE's with a normal pixel decoder, which is what the paper's
numbers are of: 50 epochs in batches of 256, the learning rate rising over the first.
`--config.vae.model.likelihood=logistic_mixture` makes it the decoder of NVAE's own
paper. Activations are bfloat16 where the reference has float16; parameters, statistics,
latents and densities are float32. The reference trained on 8 V100 of 16 GB, 32 pictures
each; with 35 groups and 90 epochs it took 92 hours on those. A checkpoint of it may be
used in place of stage 1:

  ... --config.vae.checkpoint=FILE.pt --stage=import

Stage 2 reads signal directions, its settings those of `mnist_nvae.py`. `:residual` has
the paper's discriminators of maps: the paper gives their blocks; their width, the
number of steps, the batch size and the Langevin step are our choice, untuned. SIR with
5,000 proposals took the paper 96 s and 23 GB for 10 pictures on one GPU.

Published FID (50,000 draws, SIR with 5,000 proposals), base prior -> NCP prior: 6
groups 33.18 -> 18.68, 15 groups 14.96 -> 5.96, 30 groups 13.48 -> 5.25. Not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets

BATCH_SIZE = 256  # of all devices together
STEPS_PER_EPOCH = 162_770 / BATCH_SIZE


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
        name="celeba",
        shape=(64, 64, 3),
        crop="nvae",
        binarization="none",
        horizontal_flips=True,
    )
    config.vae.model.update(
        presets.COLOUR_NVAE,
        groups_per_scale=(10, 10, 10),
        encoder_channels=48,
        decoder_channels=48,
        num_flows=1,
    )
    config.vae.update(
        presets.NVAE_TRAINING,
        batch_size=BATCH_SIZE,
        num_steps=int(50 * STEPS_PER_EPOCH),
        warmup_steps=int(STEPS_PER_EPOCH),
        penalty_weight=1e-1,
        steps_per_dispatch=25,
        steps_per_eval=2_000,
    )
    if is_residual:
        config.ncp.discriminator.update(channels=32, blocks="AAABAAAB")
        config.ncp.update(
            batch_size=128,
            num_steps=50_000,
            steps_per_dispatch=25,
            steps_per_eval=2_000,
        )
    else:
        config.update_from_flattened_dict(presets.ON_DIRECTIONS)
        config.ncp.batch_size = 256
    config.sample.update(
        langevin_num_steps=500,
        langevin_in_noise=True,
    )
    config.evaluate.update(
        batch_size=25,
        max_examples=1_000,
        num_importance_samples=100,
        num_snis_proposals=100,
        num_snis_samples=4,
        chunk_size=4,
        num_log_z_draws=10_000,
        log_z_batch_size=500,
        num_mmd_samples=200,  # latents of 1.1 MB each, by SIR with 5,000 proposals
    )
    return presets.variant(config, size, "residual", "smoke_residual")
