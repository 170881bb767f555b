"""From settings to networks and to what trains them."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ncp_jax.models.base import Block
from ncp_jax.models.conv_hvae import ConvHVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.ladder_vae import LadderVAE
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.models.rae.model import of_kind
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.priors.joint.lars import LARSVAE
from ncp_jax.priors.joint.snis import SNISVAE
from ncp_jax.priors.joint.vamp import VampVAE
from ncp_jax.training import kl_schedule, optimizers
from ncp_jax.training.vae_update import KLWarmup, Penalty

Array = jax.Array
Settings = Mapping[str, Any]

_VAES: dict[str, type[nn.Module]] = {
    "mlp": MLPVAE,
    "ladder": LadderVAE,
    "conv_hvae": ConvHVAE,
}
_LEARNED: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {  # and their settings
    "snis": (SNISVAE, ("hidden_dims", "activation", "num_proposals")),
    "lars": (
        LARSVAE,
        (
            *("hidden_dims", "activation", "num_attempts", "acceptance"),
            *("num_draws", "num_z_draws"),
        ),
    ),
    "vamp": (VampVAE, ("num_components",)),
}
_NAMES = {"hidden_dims": "prior_dims", "activation": "prior_activation"}
_DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "mlp": MLPDiscriminator,
    "residual": ResidualDiscriminator,
}


def build_vae(model: Settings, data_shape: tuple[int, ...], num_bits: int) -> nn.Module:
    """Returns the module that `vae.model` describes."""
    fields = _fields(model) | {"data_shape": tuple(data_shape)}
    if model["name"] == "nvae":
        return NVAE(num_bits=num_bits, **fields)
    if model["name"] == "rae":
        return of_kind(**fields)
    return _VAES[model["name"]](**fields)


def build_stage_1(
    section: Settings, data_shape: tuple[int, ...], num_bits: int
) -> nn.Module:
    """Returns the module that the section "vae" describes, with the prior it learns."""
    if section["prior"] == "gaussian":
        return build_vae(section["model"], data_shape, num_bits)
    kind, names = _LEARNED[section["prior"]]
    settings = section["prior_settings"]
    fields = {_NAMES.get(name, name): settings[name] for name in names}
    return kind(**_fields(section["model"]), data_shape=tuple(data_shape), **fields)


def build_discriminator(settings: Settings) -> nn.Module:
    """Returns the module that `ncp.discriminator` describes."""
    return _DISCRIMINATORS[settings["name"]](**_fields(settings))


def build_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns the optimiser of a section, "vae" or "ncp"."""
    learning_rate = optimizers.schedule(
        settings["schedule"],
        settings["learning_rate"],
        settings["num_steps"],
        settings["warmup_steps"],
        settings["final_learning_rate"],
    )
    of_groups = tuple(settings.get("weight_decays", ()))  # only "ncp" may have some
    return optimizers.optimizer(
        settings["optimizer"], learning_rate, of_groups or settings["weight_decay"]
    )


def build_warmup(settings: Settings, blocks: tuple[Block, ...]) -> KLWarmup:
    """Returns how the section "vae" weighs the KL terms."""
    alphas = None
    if settings["is_kl_balanced"]:
        sizes = [math.prod(b.latent_shape) for b in blocks for _ in range(b.num_groups)]
        alphas = kl_schedule.group_alphas(sizes)
    return KLWarmup(
        settings["num_steps"],
        settings["kl_warmup_fraction"],
        settings["kl_constant_fraction"],
        alphas,
    )


def build_penalty(settings: Settings) -> Penalty:
    """Returns the regularisers of the section "vae"."""
    return Penalty(settings["penalty_weight"], settings["initial_penalty_weight"])


def init_vae(module: nn.Module, data_shape: tuple[int, ...], key: Array) -> Any:
    """Returns fresh variables of a VAE."""
    # The same bits by another generator, which compiles ten times as fast where a
    # model has hundreds of parameters; MLPs keep what they had.
    if isinstance(module, NVAE):
        words = jnp.tile(jax.random.key_data(key), 2)
        key = jax.random.wrap_key_data(words, impl="rbg")
    x = jnp.zeros((1, *data_shape))
    return jax.jit(module.init)(key, x, key)


def _fields(settings: Settings) -> dict[str, Any]:
    """The attributes of a module: all settings but its name, dtypes by theirs."""
    fields = {name: value for name, value in settings.items() if name != "name"}
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    return fields
