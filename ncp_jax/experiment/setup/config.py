"""Every setting once, with its default.

Keys are the argument names of what they configure; this room reads them, and nothing
below.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ncp_jax.nested import flatten
from ncp_jax.training.checkpoint_records import short_hash

DIRECTIONS = {  # that stage 2 reads, of each group's standardised noise
    "cap": 0,  # the most of a group; 0: discriminators read z itself
    "share": 0.95,  # of the signal that a group's directions hold
    "floor": 0.015,  # of a direction's variance, the prior's being 1
    "context_size": 16,  # of each earlier group's coordinates, or of the feature's
    "is_joint": False,  # one ratio of all groups' coordinates
    "num_examples": 10_000,  # training examples that directions are found from
    "num_encodings": 5,  # of each training example, made before the first update
    "context": "coordinates",  # that r_k reads; "features" of the decoder, or "none"
    "with_maps": False,  # adds a ratio of the whole of e_k, for wide spectra
    "map_channels": 32,  # of that ratio's network
    "map_blocks": "AAB",  # as of the discriminator "residual"
}
JOINT = {  # of `vae.prior`, each field of those priors that know it
    "hidden_dims": (100, 100),  # of the ratio of "snis", the acceptance of "lars"
    "activation": "tanh",
    "num_proposals": 1_024,  # K of "snis"
    "num_attempts": 100,  # T of "lars"
    "acceptance": 0.1,  # of "lars" before training
    "num_draws": 1_024,  # of "lars", for Z in an update
    "num_z_draws": 1_000_000,  # of "lars", for Z in a validation
    "num_components": 500,  # pseudo-inputs of "vamp"
}
# Of them, what the comparison of priors on several groups has, too.
COMPARED_DIRECTIONS = ("cap", "share", "floor", "context_size", "num_examples")
# Where the same data lie and how they come there changes no result.
WITHOUT_EFFECT = (
    "data.dir",
    "data.download",
    "data.cache_dir",
    "data.on_device",
    "vae.checkpoint",  # known by its hash
    "vae.workdir",
    "vae.pretrained",  # known by its hash
    "vae.resume",  # what follows is what would have followed where it was written
    "vae.init_from",  # known by its hash
    "sample.chunk_size",
    "sample.memory_mib",
    "vae.extend",  # that a schedule may change; the length says how
    "ncp.extend",
)
PIXEL_ENERGY = {  # of VAEBM: how E(x) learns, and how its draws are made
    "channels": (8, 16, 32),  # of its convolutions
    "hidden_dims": (64,),  # of its dense layers
    "step_size": 0.03,  # of Langevin dynamics, in the noise that makes z and x
    "num_langevin_steps": 16,  # of an update's negatives
    "num_sampling_steps": 24,  # of draws
    "replay_share": 0.0,  # of negatives that go on from earlier ones
    "num_chains": 2_000,  # that are kept for that
    "energy_penalty": 0.1,  # of the mean square of the energies
    "spectral_penalty": 0.01,  # of the kernels' largest singular values
    "noise_std": 0.03,  # on pictures while E learns
    "batch_size": 64,
    "num_steps": 2_000,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "ema_decay": 0.99,  # of the average of the weights; 0 for none
    "max_energy": 1e3,  # nats; beyond it training has exploded, and ends
    "num_valid": 1_000,  # held-out pictures, and as many draws
    "patience": 5,  # validations without a lower distance, then training ends
    "steps_per_eval": 50,
    "steps_per_dispatch": 10,
    "num_proposals": 1_000,  # of SIR, for where the negatives of "sirvaebm" start
    "num_starts": 10_000,  # of those, drawn once
}
# Settings that came later, with the value that means what runs did without them: at
# that value they do not tell a run from one that was begun before.
ADDED: dict[str, Any] = {
    "ncp.negative_weight": 1.0,
    "ncp.select_by": "loss",
    "ncp.weight_decays": [],
    "ncp.standardize": False,
    **{f"ncp.directions.{name}": value for name, value in DIRECTIONS.items()},
    **{  # as JSON has them
        f"vaebm.{name}": list(value) if isinstance(value, tuple) else value
        for name, value in PIXEL_ENERGY.items()
    },
    **{f"compare.directions.{n}": DIRECTIONS[n] for n in COMPARED_DIRECTIONS},
    "compare.directions.cap": 32,
    "compare.resampled_by": "",
    "compare.num_rounds": 1,
    "compare.num_proposals": 64,
    "compare.num_resampled": 2,
    "vae.prior": "gaussian",
    **{
        f"vae.prior_settings.{name}": [*value] if isinstance(value, tuple) else value
        for name, value in JOINT.items()
    },
}
VAES: dict[str, dict[str, Any]] = {
    "mlp": {
        "latent_dim": 50,
        "hidden_dims": (300, 300),  # at least one layer, as of every network
        "activation": "tanh",
        "likelihood": "bernoulli",  # or "normal"
        "likelihood_std": 0.1,  # of "normal"
    },
    "ladder": {
        "latent_dims": (4, 8, 16),  # coarse to fine
        "hidden_dims": (300, 300),
        "activation": "swish",
        "is_residual_posterior": True,
        "likelihood": "bernoulli",  # or "normal"
        "likelihood_std": 0.1,  # of "normal"
    },
    "conv_hvae": {
        "latent_dim": 50,  # of each of the two groups
        "channels": 32,
        "hidden_dim": 300,
        "likelihood": "bernoulli",  # or "normal"
        "likelihood_std": 0.1,  # of "normal"
    },
    "rae": {
        "kind": "vae",  # "wae", "rae", "rae_l2", "rae_gp", "rae_sn", "ae": no density
        "padding": 0,  # pixels on every side of x
        "latent_dim": 16,
        "channels": 128,  # of the encoder's first convolution; all widths follow
        "kernel_size": 4,  # of all convolutions; 4 is fast on CPUs
        "num_doublings": 2,  # of the decoder's maps
        "is_centred": True,  # the encoder reads 2 x - 1
        "max_log_std": 1.0,  # of "vae": log std of q is this times a tanh
        "reconstruction_weight": 1.0,  # of the mean squared error, not of "vae"
        "embedding_weight": 0.0,  # of the mean of z^2, of "rae" and "rae_..."
        "regularizer_weight": 0.0,  # of what "wae", "rae_l2", "rae_gp" are named after
        "has_dense_penalty": False,  # "rae_l2": not of convolutions alone
        "input_noise": 0.0,  # std, of what the encoder reads in training; not of "vae"
        "likelihood": "normal",
        "likelihood_std": 0.4,  # of "vae", a pixel's
        "is_std_learned": False,  # of "vae": one number for all pixels
    },
    "nvae": {
        "padding": 0,  # pixels on every side of x
        "groups_per_scale": (5, 10),  # coarse to fine
        "latent_channels": 20,
        "encoder_channels": 32,
        "decoder_channels": 32,
        "num_preprocess_blocks": 2,
        "num_preprocess_cells": 3,
        "num_postprocess_cells": 3,
        "num_encoder_cells": 2,
        "num_decoder_cells": 2,
        "num_flows": 0,
        "use_se": True,
        "is_residual_posterior": True,
        "likelihood": "bernoulli",  # or "normal", "logistic_mixture"
        "num_mixtures": 10,
        "white": 0.999,  # of "logistic_mixture"; reference checkpoints have 0.99
        "is_rematerialized": False,
        "dtype": "float32",  # of activations; or "bfloat16"
    },
}
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_dims": (100, 100), "activation": "tanh", "dtype": "float32"},
    "residual": {
        "channels": 32,
        "blocks": "AAABAAAB",
        "norm": "group",
        "dtype": "float32",  # or "bfloat16"
    },
}


def default(vae: str = "mlp", discriminator: str = "mlp") -> ConfigDict:
    """Returns all settings with their defaults; an experiment overrides some.

    Locked: a misspelt field in an experiment is an error, not a new field.

    Args:
      vae: which model of `VAES` has its settings in `vae.model`.
      discriminator: which of `DISCRIMINATORS` has its own in `ncp.discriminator`.
    """
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",
                "shape": (8, 8, 1),  # of one example
                "dir": "",  # else the environment variable NCP_JAX_DATA
                "download": False,
                "cache_dir": "",  # for decoded pictures; else beside them
                "on_device": True,  # the training set; else batches are sent there
                "crop": "nvae",  # of CelebA: 148 pixels; or "rae": 140
                "num_bits": 8,  # per channel of x
                "horizontal_flips": False,  # of half the pictures, in training
                "binarization": "dynamic",  # afresh on each access; or "fixed", "none"
            },
            "vae": {
                "model": {"name": vae, **VAES[vae]},
                "prior": "gaussian",  # or learned with "mlp": "snis", "lars", "vamp"
                "prior_settings": dict(JOINT),
                "checkpoint": "",  # of the reference NVAE, for --stage=import
                "workdir": "",  # of another run, whose stage 1 is taken over
                "pretrained": "",  # a file of weights, by name or path, that is stage 1
                "resume": "",  # a file of a training's state, likewise, to go on from
                "init_from": "",  # a file of weights, likewise, that training begins at
                "kl_warmup_fraction": 0.0,  # of the steps; 0 for full KL at once
                "kl_constant_fraction": 0.0,  # of the steps, before the warm-up
                "is_kl_balanced": True,  # over the groups, while it warms up
                "penalty_weight": 0.0,  # of spectral and batch-norm regularisers
                "initial_penalty_weight": 0.0,  # falls with the warm-up; 0: constant
                **_training(batch_size=128, learning_rate=3e-4, schedule="constant"),
            },
            "ncp": {
                "discriminator": {
                    "name": discriminator,
                    **DISCRIMINATORS[discriminator],
                },
                "directions": dict(DIRECTIONS),
                "standardize": False,  # discriminators read (z_k - mean) / std
                "seed": 0,  # of this stage alone, beside that of the whole run
                "num_negatives": 1,  # prior draws of each group per example
                "ranking_weight": 0.0,  # of the ranking loss beside the NCE loss
                "negative_weight": 1.0,  # M, of prior draws in the NCE loss
                "num_passes": 1,  # encodings of each validation example
                "select_by": "loss",  # held-out, a group's best weights; or "gain"
                "weight_decays": (),  # of each group; () for weight_decay of all
                "patience": 0,  # validations; then a group rests. 0: all go to the end
                "formulation": "auto",  # of the groups: "vmap", "map" (one by one)
                **_training(batch_size=1024, learning_rate=1e-3, schedule="cosine"),
            },
            "vaebm": dict(PIXEL_ENERGY),
            "sample": {
                "num_images": 64,
                "batch_size": 64,  # chains at a time
                "groups": (),  # that are reweighted, from 0 on; () for all
                "num_readjust_iterations": 0,  # of batch norm, for the temperature
                "temperature": 1.0,  # of the base prior's own samples
                "temperatures": (0.7, 0.8, 1.0),  # of more of them, pictures to look at
                "samplers": ("sir", "langevin"),  # others: quantities.SAMPLERS
                "dtype": "float32",  # of the discriminators' activations; "bfloat16"
                "num_proposals": 5_000,  # of "sir", "isir", "sirmala"; most of "asir"
                "tolerance": 3e-3,  # chi^2 / M at which "asir" ends
                "chunk_size": 0,  # of them, per chain at a time; 0: what memory takes
                "memory_mib": 0,  # for a chunk; 0: half of what the device has free
                "num_iterations": 10,  # that "isir" shares its proposals between
                "langevin_step_size": 1e-2,
                "langevin_step_sizes": (),  # of each group; () for the same of all
                "langevin_num_steps": 1_000,
                "langevin_in_noise": False,  # e in z = mean + std * e, instead of z
                "mala_step_size": 1e-1,  # in noise, before it adapts
                "mala_num_steps": 200,  # of which a quarter adapts
            },
            "evaluate": {
                "split": "test",  # or "valid", to choose settings by
                "batch_size": 100,
                "max_examples": 0,  # of them; 0 for all
                "num_importance_samples": 1_000,
                "chunk_size": 20,  # importance samples per example at a time
                "num_snis_proposals": 1_024,
                "num_snis_samples": 10,  # that later groups' proposals are drawn for
                "num_binarizations": 1,  # passes over the test set, with other noise
                "num_log_z_draws": 1_000_000,
                "log_z_batch_size": 50_000,
                "max_log_z_stderr": 0.1,  # nats; above it no nll_ncp. 0: any will do
                "num_passes": 4,  # encodings of each test example for the NCE loss
                "feature_net": "",  # "inception", "lenet5", "resnet20", "resnet56"
                "feature_weights": "",  # the file of that network's weights
                "fid_num_images": 50_000,  # of every source that is scored
                "fid_samplers": (),  # that are scored; () for all of sample.samplers
                "fid_reference": "train",  # or "test"
                "fid_num_reference": 50_000,  # pictures of it, at most
                "num_mmd_samples": 5_000,  # of q, p and p_NCP in each group; 0: no MMD
                "num_permutations": 500,  # of its test
                "num_neighbour_queries": 1_000,  # samples and test pictures, at most
                "audit_num_images": 0,  # encodings, decoded against p's; 0: no audit
                "audit_num_steps": 1_000,  # of each of its classifiers, at most
                "audit_groups": (),  # that its hybrids draw from p on; () for a handful
                "audit_num_draws": 0,  # of each sampler that is audited, too; 0: none
                "audit_samplers": (),  # those; () for all of sample.samplers
            },
            "export": {  # of pictures for other programs
                "sampler": "sir",  # or "base", or another of sample.samplers' kinds
                "num_images": 50_000,
                "format": "png",  # numbered files; or "npz", one archive; or of stage
                # 1 "weights", the best, or "state", to go on from elsewhere
                "file": "",  # of "weights" and "state"; else in the workdir
                "dtype": "float32",  # of "weights"; or "float16", half the bytes
                "latents": False,  # z of each, too
            },
            "compare": {
                "names": (),  # of priors, the whole of --stage=all; (): --stage=compare
                "priors": {},  # by name, other settings than a prior's own
                "directions": {  # of several groups, as of ncp.directions
                    **{n: DIRECTIONS[n] for n in COMPARED_DIRECTIONS},
                    "cap": 32,
                },
                "num_fits": 3,  # of each prior, from other keys
                "max_steps": 0,  # of a fit, at most; 0: as the prior's settings say
                "max_draws": 0,  # in a fit and for a draw, likewise
                "split": "test",  # or "valid", to choose settings by
                "num_encodings": 10,  # of each training example
                "num_valid_encodings": 2,  # of each validation example
                "resampled_by": "",  # a prior, fitted first; "": draws of q themselves
                "num_rounds": 1,  # EM steps of that
                "num_proposals": 64,  # draws of q that encodings are resampled from
                "num_resampled": 2,  # encodings of each such set
                "max_examples": 2_000,  # for likelihoods; 0 for all
                "num_importance_samples": 1_000,
                "chunk_size": 50,  # of them at a time
                "batch_size": 100,
                "num_log_z_draws": 1_000_000,
                "log_z_batch_size": 50_000,
                "num_samples": 10_000,  # of each prior, decoded
                "sample_batch_size": 1_000,
                "num_mmd_samples": 2_000,  # 0: no MMD
                "num_permutations": 200,  # of its test
                "num_neighbour_queries": 1_000,
            },
            "report": {"workdirs": ""},  # A,B,C: those runs side by side
            "benchmark": {
                # also "chains"
                "parts": ("training", "samplers", "alone", "stage_two", "scaling"),
                "num_steps": 5_000,  # of the training loop
                "num_repeats": 3,  # of it
                "num_images": (1, 10),
                "num_proposals": (5, 50, 500, 5_000),
                "num_langevin_steps": (5, 50, 500, 1_000),
                "num_chain_steps": 1_000,  # of a warm-up and of a call, of "chains"
                "num_chain_calls": 20,
                "num_groups": (1, 2, 5, 10, 30),  # K of stage 2 and of "scaling"
                "num_chains": (1, 10, 100, 1_000),  # of "scaling"
                "latent_dims": (8, 32, 128),  # of "scaling": z's last axis
                "batch_size": 64,  # of stage 2
                "num_calls": 5,  # of each sampler and update
                "max_seconds": 60.0,  # longer calls are predicted and left out
                "max_gigabytes": 8.0,  # of the plain version, likewise
            },
        },
        type_safe=False,  # `schema.checked` takes more, and names what it refuses
    ).lock()


def _training(**settings: Any) -> dict[str, Any]:
    return {
        "batch_size": 128,
        "num_steps": 10_000,
        "optimizer": "adam",  # or "adamax"
        "learning_rate": 1e-3,
        "final_learning_rate": 0.0,  # of "cosine"
        "schedule": "constant",  # or "cosine", "step"
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "ema_decay": 0.0,  # of the average of the weights; 0 for none
        "steps_per_dispatch": 500,
        "steps_per_eval": 1_000,
        "extend": False,  # a trained stage, though its schedule then changes
        **settings,
    }


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as what `json.load` would give back."""
    return json.loads(config.to_json())


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: tuple[str, ...]
) -> list[str]:
    """Returns a line per field of `sections` that differs and has an effect."""
    return [
        f"config.{name}: {before} -> {after}"
        for name, (before, after) in changes(old, new, sections).items()
    ]


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Returns (before, after) of those fields by name; "absent" where one has none."""
    before, after = (ADDED | dict(flatten(config)) for config in (old, new))
    return {
        name: (before.get(name, "absent"), after.get(name, "absent"))
        for name in sorted(before.keys() | after.keys())
        if name.split(".")[0] in sections
        and name not in WITHOUT_EFFECT
        and before.get(name) != after.get(name)
    }


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, with those that came after it was written."""
    result = copy.deepcopy(dict(content))
    for name, value in ADDED.items():
        *sections, field = name.split(".")
        section = result
        for part in sections:
            section = section.setdefault(part, {})
        section.setdefault(field, value)
    return result


def fingerprint(config: Mapping[str, Any], sections: tuple[str, ...]) -> str:
    """Returns a hash of the fields of `sections` that have an effect."""
    fields = {
        name: value
        for name, value in flatten(config)
        if name.split(".")[0] in sections
        and name not in WITHOUT_EFFECT
        and not (name in ADDED and value == ADDED[name])
    }
    return short_hash(fields)
