"""NVAE with 10 latent groups of 4x4 on dynamically binarised MNIST.

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_nvae.py --workdir=nvae

is the size for a GPU (NVAE's own MNIST model, of 15 groups, took 21 hours on two V100);
not run here.  Two CPU cores take about an hour for a small one:

  NCP_JAX_DATA=FOLDER python main.py --config=configs/mnist_nvae.py:cpu --workdir=nvae

whose numbers stand in docs/results.md.  A stage 1 of 10,000 steps and one of 30,000
come with the repository, `--config.vae.pretrained=mnist_nvae` and `mnist_nvae_30k`: the
longer it is, the better is its own prior, and the less is left for stage 2 to find.

Published, test NLL: NVAE 78.67, NCP 78.10 nats (standard deviation of log Z at most
0.23).  The optimiser, the batch size and the weights of the regularisers are NVAE's;
those of stage 2 are ours.
"""

from ml_collections import ConfigDict

from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import presets


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings.

    Args:
      variant: "cpu" for an hour there, "smoke" for seconds; "residual", "cpu_residual":
        the same with the paper's discriminators, which read whole latent maps.
    """
    size = variant.removesuffix("residual").removesuffix("_")
    is_residual = variant.endswith("residual")
    name = "residual" if is_residual else "mlp"
    config = config_lib.default(vae="nvae", discriminator=name)
    config.data.update(name="mnist", shape=(28, 28, 1))
    config.vae.model.update(
        padding=2,  # 28 x 28 enter as 32 x 32
        groups_per_scale=(10,),
        num_preprocess_blocks=3,  # 32 -> 4
        encoder_channels=32,
        decoder_channels=32,
    )
    config.vae.update(
        presets.NVAE_TRAINING,
        batch_size=400,
        num_steps=50_000,  # 400 epochs
        warmup_steps=625,  # 5 epochs
        penalty_weight=1e-2,
        steps_per_dispatch=25,
        steps_per_eval=500,
    )
    if is_residual:
        config.ncp.discriminator.update(channels=64)
        config.ncp.update(
            batch_size=400,
            num_steps=20_000,
            learning_rate=2e-3,
            steps_per_dispatch=25,
            steps_per_eval=500,
        )
    else:
        config.update_from_flattened_dict(presets.ON_DIRECTIONS)
        config.ncp.batch_size = 512
    config.sample.update(langevin_num_steps=500, langevin_in_noise=True)
    config.evaluate.update(
        num_importance_samples=1_000,
        chunk_size=10,
        num_log_z_draws=1_000_000,
        log_z_batch_size=1_000,
        num_passes=1,
    )
    if size == "cpu":
        _shrink_to_an_hour(config)
        return config
    others = ("cpu", "residual", "cpu_residual", "smoke_residual")
    return presets.variant(config, size, *others)


def _shrink_to_an_hour(config: ConfigDict) -> None:
    config.vae.model.update(
        encoder_channels=8,
        decoder_channels=4,
        num_preprocess_cells=1,
        num_postprocess_cells=1,
        num_encoder_cells=1,
        num_decoder_cells=1,
    )
    config.vae.update(batch_size=64, num_steps=3_000, warmup_steps=200)
    num_images = 2_500
    if config.ncp.discriminator.name == "residual":
        config.ncp.discriminator.update(channels=24, blocks="AAB")
        config.ncp.update(batch_size=128, num_steps=5_000)
        config.sample.update(langevin_num_steps=100)
        num_images = 500  # SIR and Langevin take a second each per picture
    config.sample.update(num_proposals=1_000)
    config.evaluate.update(
        max_examples=1_000,
        num_importance_samples=50,
        num_snis_proposals=32,
        num_snis_samples=4,
        num_log_z_draws=1_000_000,
        fid_num_images=num_images,
        fid_num_reference=20_000,
        num_mmd_samples=500,
        audit_num_images=8_000,
        audit_groups=(0, 1, 2, 3, 5),
        audit_num_draws=500,
        audit_samplers=("sir",),
    )
