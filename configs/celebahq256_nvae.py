"""NVAE with 20 latent groups in 5 scales on CelebA-HQ 256x256 of 5 bits, pixels normal.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/celebahq256_nvae.py --workdir=hq

FOLDER holds celeba_hq_256/ (or one of the other usual names, folder or zip) with 27,000
pictures in train/ and 3,000 in valid/, half of which become the test set; or 30,000 in
one folder. They are resized once, into a cache of 6 GB that is read from disk batch by
batch.

Stage 1 is the reference NVAE's with a normal pixel decoder, which is what the paper's
numbers are of: 200 epochs in batches of 64, the regularisers' weight falling from 10 to
1e-2 as the KL's rises. `--config.vae.model.likelihood=logistic_mixture` makes it the
decoder of NVAE's own paper. Activations are bfloat16 where the reference has float16;
parameters, statistics, latents and densities are float32. The reference trained on 8
V100 of 32 GB, 8 pictures each (the NVAE of its own paper, of 36 groups, took 94 hours
on 24 of them). Where memory is short append --config.vae.model.is_rematerialized=True.
A checkpoint of the reference may be used in place of stage 1:

  ... --config.vae.checkpoint=FILE.pt --stage=import

Stage 2 reads signal directions, its settings those of `mnist_nvae.py`. `:residual` has
the paper's discriminators of maps: the paper gives their blocks; their width, their
precision, the number of steps, the batch size and the Langevin step are our choice,
untuned.

Published FID (SIR with 5,000 proposals): 40.26 under the base prior, 24.79 under the
NCP prior. Not run here.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets

BATCH_SIZE = 64  # of all devices together
STEPS_PER_EPOCH = 27_000 / BATCH_SIZE


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
        name="celebahq",
        shape=(256, 256, 3),
        num_bits=5,
        binarization="none",
        horizontal_flips=True,
        on_device=False,
    )
    config.vae.model.update(
        presets.COLOUR_NVAE,
        groups_per_scale=(4, 4, 4, 4, 4),
        encoder_channels=32,
        decoder_channels=32,
        num_flows=2,
    )
    config.vae.update(
        presets.NVAE_TRAINING,
        batch_size=BATCH_SIZE,
        num_steps=int(200 * STEPS_PER_EPOCH),
        learning_rate=6e-3,
        warmup_steps=int(5 * STEPS_PER_EPOCH),
        penalty_weight=1e-2,
        initial_penalty_weight=10.0,
        steps_per_dispatch=15,
        steps_per_eval=3_375,
    )
    if is_residual:
        config.ncp.discriminator.update(
            channels=32, blocks="AAABAAAB", dtype="bfloat16"
        )
        config.ncp.update(
            batch_size=32, num_steps=50_000, steps_per_dispatch=20, steps_per_eval=2_000
        )
    else:
        config.update_from_flattened_dict(presets.ON_DIRECTIONS)
        config.ncp.batch_size = 64
    config.sample.update(
        num_images=16,
        batch_size=8,
        langevin_num_steps=500,
        langevin_in_noise=True,
    )
    config.evaluate.update(
        batch_size=8,
        max_examples=200,
        num_importance_samples=100,
        num_snis_proposals=100,
        num_snis_samples=4,
        chunk_size=2,
        num_log_z_draws=1_000,
        log_z_batch_size=50,
        num_mmd_samples=0,  # latents of 7 MB each: three thousand would fill 20 GB
    )
    return presets.variant(config, size, "residual", "smoke_residual")
