"""A small NVAE of three scales with normal pixels on grey Fashion-MNIST.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/fashion_nvae.py --workdir=fashion

The pixel decoder is that of the paper's colour pictures, where its NCP gained most, in
a size for two CPU cores: six latent groups, two each of 4x4, 8x8 and 16x16 with 8
channels.  Stage 1 took two CPU cores 88 minutes beside other work; docs/results.md has
the numbers.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` "smoke" shrinks them to seconds."""
    config = config_lib.default(vae="nvae")
    config.data.update(name="fashion_mnist", shape=(28, 28, 1), binarization="none")
    config.vae.model.update(
        padding=2,  # 28 x 28 enter as 32 x 32
        groups_per_scale=(2, 2, 2),
        latent_channels=8,
        encoder_channels=8,
        decoder_channels=8,
        num_preprocess_blocks=1,  # 32 -> 16
        num_preprocess_cells=1,
        num_postprocess_cells=1,
        num_encoder_cells=1,
        num_decoder_cells=1,
        likelihood="normal",
    )
    config.vae.update(
        presets.NVAE_TRAINING,
        batch_size=64,
        num_steps=3_000,
        warmup_steps=200,
        penalty_weight=1e-2,
        steps_per_dispatch=25,
        steps_per_eval=500,
    )
    config.update_from_flattened_dict(presets.ON_DIRECTIONS)
    config.ncp.batch_size = 512
    config.sample.update(
        num_proposals=1_000, langevin_num_steps=500, langevin_in_noise=True
    )
    config.evaluate.update(
        max_examples=500,
        num_importance_samples=50,
        chunk_size=10,
        num_snis_proposals=32,
        num_snis_samples=4,
        num_log_z_draws=100_000,
        log_z_batch_size=1_000,
        num_passes=1,
        fid_num_images=2_500,
        fid_num_reference=20_000,
        num_mmd_samples=500,
        audit_num_images=4_000,
        audit_num_draws=500,
        audit_samplers=("sir",),
    )
    return presets.variant(config, variant)
