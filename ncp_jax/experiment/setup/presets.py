"""What configs have in common: settings by purpose, and versions that take seconds."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.errors import InputError, did_you_mean

VARIANTS = ("", "smoke")
# Of RAE's networks in a size for two CPU cores; untuned.
SMALL_AUTOENCODER_TRAINING: dict[str, Any] = {
    "batch_size": 100,
    "learning_rate": 2e-3,
    "final_learning_rate": 2e-5,
    "schedule": "cosine",
    "steps_per_dispatch": 50,
    "steps_per_eval": 500,
}
# What NVAE's own configs, of whatever data, have in common ...
NVAE_TRAINING: dict[str, Any] = {
    "optimizer": "adamax",
    "learning_rate": 1e-2,
    "final_learning_rate": 1e-4,
    "schedule": "cosine",
    "weight_decay": 3e-4,
    "kl_warmup_fraction": 0.3,
    "kl_constant_fraction": 1e-4,
}
# ... and those of coloured pictures, whose numbers the paper gives for normal pixels.
COLOUR_NVAE: dict[str, Any] = {
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_postprocess_cells": 2,
    "likelihood": "normal",
    "dtype": "bfloat16",
}
# What the configs of autoencoders compare, in the order of the paper's Table 1.
ON_AUTOENCODERS = ("gaussian", "gmm", "flow", "ncp", "ncp_over_gmm", "two_stage")
# Stage 2 of a hierarchy on its signal directions, instead of the whole of z.
ON_DIRECTIONS: dict[str, Any] = {
    "ncp.discriminator.hidden_dims": (200, 200, 200),
    "ncp.discriminator.activation": "swish",
    "ncp.directions.cap": 32,
    "ncp.directions.share": 0.99,
    "ncp.directions.num_encodings": 8,
    "ncp.num_steps": 8_000,
    "ncp.learning_rate": 3e-3,
    "ncp.weight_decay": 0.05,
    "ncp.select_by": "gain",
    "ncp.num_passes": 2,
    "ncp.steps_per_dispatch": 100,
    "ncp.steps_per_eval": 200,
}


def variant(config: ConfigDict, name: str, *others: str) -> ConfigDict:
    """Returns the config itself for "" and a version that runs in seconds for "smoke".

    Args:
      config: to be used.
      name: of the variant.
      others: that the config's file has made already, for the message.

    Raises:
      InputError: for another name.
    """
    if name not in VARIANTS:
        known = [*others, "smoke"]
        there_are = ", ".join(f"':{one}'" for one in known)
        hint = did_you_mean(name, known)
        raise InputError(f"config variant {name!r}: there is {there_are}.{hint}")
    if name == "smoke":
        _shrink(config)
    return config


def as_autoencoder(
    config: ConfigDict,
    variant_name: str,
    kinds: Mapping[str, Mapping[str, Any]],
    num_components: int | None = None,
    num_proposals: int = 5_000,
) -> ConfigDict:
    """Returns the config of one kind of the model "rae", compared by its priors.

    As in the literature, 10,000 decoded draws are scored against the test set.

    Args:
      config: with the settings that all kinds have.
      variant_name: a kind, "" for the first one; "smoke", or "smoke_" and a kind.
      kinds: by name, the settings of the model that they change; the field `kind` is
        called so, too, where none is given.
      num_components: of the mixture, ten as published for RAE; None: those that the
        prior tries.
      num_proposals: of SIR over the mixture; the paper's Table 1 has 5,000.

    Raises:
      InputError: there is no such kind.
    """
    size = "smoke" if variant_name.split("_")[0] == "smoke" else ""
    name = variant_name.removeprefix(size).removeprefix("_") or next(iter(kinds))
    if name not in kinds:
        raise InputError(
            f"config variant {variant_name!r}: there are {', '.join(kinds)}, each with "
            "'smoke_' before it, too"
        )
    config.data.binarization = "none"
    config.vae.model.update({"kind": name, **kinds[name]})
    config.evaluate.update(
        fid_num_images=10_000, fid_reference="test", fid_num_reference=10_000
    )
    config.compare.names = ON_AUTOENCODERS
    over: dict[str, Any] = {"sampling": {"num_proposals": num_proposals}}
    priors = {"ncp_over_gmm": over}
    if num_components is not None:
        priors["gmm"] = over["base"] = {"num_components": (num_components,)}
    with config.unlocked():
        config.compare.priors = priors
    if config.vae.model.kind != "vae":  # every encoding of a picture is the same
        config.compare.update(num_encodings=1, num_valid_encodings=1)
    return variant(config, size)


def _shrink(config: ConfigDict) -> None:
    """Leaves of every stage what takes seconds."""
    small = {"num_steps": 60, "steps_per_dispatch": 30, "steps_per_eval": 30}
    config.vae.update(small, batch_size=min(config.vae.batch_size, 32))
    config.vae.warmup_steps = min(config.vae.warmup_steps, 10)
    config.ncp.update(small, batch_size=min(config.ncp.batch_size, 64))
    config.ncp.num_passes = 1
    config.ncp.directions.num_encodings = 1  # of each of perhaps 50,000 examples
    config.vaebm.update(
        channels=tuple(min(n, 8) for n in config.vaebm.channels),
        num_langevin_steps=2,
        num_sampling_steps=3,
        batch_size=16,
        num_steps=6,
        steps_per_eval=3,
        steps_per_dispatch=3,
        num_valid=20,
        num_chains=20,
        num_proposals=20,
        num_starts=20,
    )
    config.sample.update(
        num_images=16,
        batch_size=16,
        num_proposals=100,
        langevin_num_steps=20,
        mala_num_steps=20,
    )
    config.export.num_images = 16
    config.benchmark.update(
        num_steps=60,
        num_repeats=1,
        num_images=(1, 2),
        num_proposals=(5, 20),
        num_langevin_steps=(2, 20),
        num_chain_steps=40,
        num_chain_calls=2,
        num_groups=(1, 2),
        num_chains=(1, 4),
        latent_dims=(2, 4),
        batch_size=4,
        num_calls=2,
    )
    config.compare.update(
        num_fits=1,
        max_steps=60,
        max_draws=500,
        num_encodings=1,
        num_valid_encodings=1,
        num_proposals=4,
        max_examples=100,
        num_importance_samples=20,
        chunk_size=10,
        num_log_z_draws=5_000,
        log_z_batch_size=1_000,
        num_samples=300,
        sample_batch_size=100,
        num_mmd_samples=100,
        num_permutations=50,
        num_neighbour_queries=50,
    )
    config.evaluate.update(
        max_examples=150,
        num_importance_samples=20,
        num_snis_proposals=50,
        num_snis_samples=2,
        num_log_z_draws=20_000,
        log_z_batch_size=2_000,
        max_log_z_stderr=0.0,  # so few draws show that it runs, and no more
        num_passes=1,
        fid_num_images=200,
        fid_num_reference=1_000,
        num_mmd_samples=100,
        num_permutations=100,
        num_neighbour_queries=50,
        audit_num_images=min(config.evaluate.audit_num_images, 40),
        audit_num_draws=min(config.evaluate.audit_num_draws, 20),
        audit_num_steps=40,
    )
    if config.vae.model.name == "nvae":
        _shrink_nvae(config)
    if config.vae.model.name == "conv_hvae":
        config.vae.model.update(latent_dim=8, channels=4, hidden_dim=32)
    if config.vae.model.name == "rae":
        config.vae.model.channels = min(config.vae.model.channels, 2)


def _shrink_nvae(config: ConfigDict) -> None:
    """Leaves the scales and the likelihood of an NVAE and little else."""
    model, is_large = config.vae.model, max(config.data.shape[:2]) > 64
    model.update(
        groups_per_scale=tuple(
            min(n, 1 if is_large else 2) for n in model.groups_per_scale
        ),
        latent_channels=4,
        encoder_channels=2 if is_large else 4,
        decoder_channels=2 if is_large else 4,
        num_preprocess_cells=1,
        num_postprocess_cells=1,
        num_encoder_cells=1,
        num_decoder_cells=1,
        num_flows=min(model.num_flows, 1),
        num_mixtures=2,
        dtype="float32",  # CPUs only emulate bfloat16
    )
    few = {
        "num_steps": 4 if is_large else 8,
        "batch_size": 2 if is_large else 4,
        "steps_per_dispatch": 2 if is_large else 4,
        "steps_per_eval": 4 if is_large else 8,
    }
    config.vae.update(few, warmup_steps=min(config.vae.warmup_steps, 2))
    config.ncp.update(few)
    if config.ncp.discriminator.name == "residual":
        blocks = "B" if is_large else "AB"
        config.ncp.discriminator.update(channels=8, blocks=blocks, dtype="float32")
    if config.ncp.directions.cap:
        config.ncp.discriminator.hidden_dims = (16, 16)
        config.ncp.directions.update(cap=4, context_size=2)
    config.sample.update(
        num_images=4,
        batch_size=4,
        temperatures=(0.7,),
        num_proposals=6,
        num_iterations=2,
        langevin_num_steps=2,
        mala_num_steps=2,
    )
    config.evaluate.update(
        batch_size=4,
        max_examples=4,
        num_importance_samples=4,
        chunk_size=2,
        num_snis_proposals=5,
        num_log_z_draws=8,
        log_z_batch_size=4,
        num_mmd_samples=4,
        num_permutations=20,
    )
