"""Every setting once, with its default, and what values are allowed.

Keys are the argument names of what they configure; `wiring`, `sample_stage`,
`evaluate_stage` and `experiment` read them, and nothing below.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ncp_jax import optimizers
from ncp_jax.errors import InputError

VARIANTS = ("", "smoke")
ACTIVATIONS = ("tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "swish", "softplus")
# Where the same data lie and how they come there changes no result.
WITHOUT_EFFECT = ("data.dir", "data.download")


def default() -> ConfigDict:
    """Returns all settings with their defaults; an experiment overrides some.

    Locked: a misspelt field in an experiment is an error, not a new field.
    """
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                "name": "digits",
                "shape": (8, 8, 1),  # of one example
                "dir": "",  # else the environment variable NCP_JAX_DATA
                "download": False,
                "binarization": "dynamic",  # afresh on each access; or "fixed", "none"
            },
            "vae": {
                "model": {
                    "latent_dim": 50,
                    "hidden_dims": (300, 300),
                    "activation": "tanh",
                    "likelihood": "bernoulli",  # or "normal"
                    "likelihood_std": 0.1,  # of "normal"
                },
                "kl_warmup_steps": 0,
                **_training(batch_size=128, learning_rate=3e-4, schedule="constant"),
            },
            "ncp": {
                "discriminator": {"hidden_dims": (100, 100), "activation": "tanh"},
                "num_passes": 1,  # encodings of each validation example
                **_training(batch_size=1024, learning_rate=1e-3, schedule="cosine"),
            },
            "sample": {
                "num_images": 64,
                "batch_size": 64,  # chains at a time
                "temperature": 1.0,  # of the base prior's own samples
                "num_proposals": 5_000,
                "chunk_size": 500,  # proposals per chain at a time
                "langevin_step_size": 1e-2,
                "langevin_num_steps": 1_000,
            },
            "evaluate": {
                "batch_size": 100,
                "max_examples": 0,  # of the test set; 0 for all
                "num_importance_samples": 1_000,
                "chunk_size": 20,  # importance samples per example at a time
                "num_snis_proposals": 1_024,
                "num_log_z_draws": 1_000_000,
                "log_z_batch_size": 50_000,
                "num_passes": 4,  # encodings of each test example for the NCE loss
            },
            "benchmark": {"num_steps": 5_000, "num_repeats": 3},
        }
    ).lock()


def _training(**settings: Any) -> dict[str, Any]:
    return {
        "batch_size": 128,
        "num_steps": 10_000,
        "learning_rate": 1e-3,
        "schedule": "constant",  # or "cosine", "step"
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "ema_decay": 0.0,  # of the average of the weights; 0 for none
        "steps_per_dispatch": 500,
        "steps_per_eval": 1_000,
        **settings,
    }


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config itself for "" and a version that runs in seconds for "smoke".

    Raises:
      InputError: for another name.
    """
    if name not in VARIANTS:
        raise InputError(f"config variant {name!r}: there is only ':smoke'")
    if name == "smoke":
        small = {"num_steps": 60, "steps_per_dispatch": 30, "steps_per_eval": 30}
        config.vae.update(small, batch_size=min(config.vae.batch_size, 32))
        config.ncp.update(small, batch_size=min(config.ncp.batch_size, 64))
        config.ncp.num_passes = 1
        config.sample.update(
            num_images=16, batch_size=16, num_proposals=100, langevin_num_steps=20
        )
        config.benchmark.update(num_steps=60, num_repeats=1)
        config.evaluate.update(
            max_examples=150,
            num_importance_samples=20,
            num_snis_proposals=50,
            num_log_z_draws=20_000,
            log_z_batch_size=2_000,
            num_passes=1,
        )
    return config


def validate(config: ConfigDict) -> None:
    """Refuses settings that cannot work, naming the field and what is allowed.

    Raises:
      InputError: for the first such field.
    """
    may_be_zero = (
        "seed",
        "evaluate.max_examples",
        "sample.temperature",
        "vae.kl_warmup_steps",
        *(f"{s}.{n}" for s in ("vae", "ncp") for n in _ZERO_MEANS_OFF),
    )
    for name, value in flatten(config.to_dict()):
        if isinstance(value, tuple | list):
            if not value or not all(type(v) is int and v > 0 for v in value):
                raise InputError(
                    f"config.{name} must hold positive integers, got {value}"
                )
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_allowed = value > 0 or (name in may_be_zero and value == 0)
            if not (is_allowed and math.isfinite(value)):
                at_least = "zero or more" if name in may_be_zero else "positive"
                raise InputError(
                    f"config.{name} must be finite and {at_least}, got {value}"
                )
    if config.seed >= 2**32:
        raise InputError(f"config.seed must be below 2**32, got {config.seed}")
    for section in ("vae", "ncp"):
        _require_one_of(config, f"{section}.schedule", optimizers.SCHEDULES)
        if config[section].ema_decay >= 1.0:
            raise InputError(f"config.{section}.ema_decay must be below 1")
    _require_one_of(config, "data.binarization", ("dynamic", "fixed", "none"))
    _require_one_of(config, "vae.model.likelihood", ("bernoulli", "normal"))
    for part in ("vae.model", "ncp.discriminator"):
        _require_one_of(config, f"{part}.activation", ACTIVATIONS)


_ZERO_MEANS_OFF = ("warmup_steps", "weight_decay", "ema_decay")


def _require_one_of(config: ConfigDict, name: str, allowed: tuple[str, ...]) -> None:
    value = dict(flatten(config.to_dict()))[name]
    if value not in allowed:
        raise InputError(f"config.{name} must be one of {allowed}, got {value!r}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.field", value) for every field of a nested mapping."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as what `json.load` would give back."""
    return json.loads(config.to_json())


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: tuple[str, ...]
) -> list[str]:
    """Returns a line per field of `sections` that differs and has an effect."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"config.{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if name.split(".")[0] in sections
        and name not in WITHOUT_EFFECT
        and before.get(name) != after.get(name)
    ]


def fingerprint(config: Mapping[str, Any], sections: tuple[str, ...]) -> str:
    """Returns a hash of the fields of `sections` that have an effect."""
    fields = {
        name: value
        for name, value in flatten(config)
        if name.split(".")[0] in sections and name not in WITHOUT_EFFECT
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
