"""Whether a VAE keeps what `LatentVariableModel` asks; calls its methods once."""

from typing import Any

import jax

from ncp_jax.errors import InputError
from ncp_jax.models.base import LatentVariableModel

METHODS = ("encode", "root", "prior", "absorb", "decode")


def check(vae: LatentVariableModel, x: jax.Array) -> None:
    """Refuses a VAE that lacks a method.

    Args:
      vae: the model.
      x: [B, *data_shape].

    Raises:
      InputError: listing every fault.
    """
    del x
    missing = [name for name in ("blocks", *METHODS) if not hasattr(vae, name)]
    if missing:
        raise InputError(f"the VAE lacks {', '.join(missing)}")


def check_discriminator(vae: LatentVariableModel, discriminator: Any) -> None:
    """Refuses a discriminator that lacks a method.

    Args:
      vae: the model.
      discriminator: (z_k, context) -> log r_k.

    Raises:
      InputError: listing every fault.
    """
    del vae
    missing = [n for n in ("embed", "log_ratio") if not hasattr(discriminator, n)]
    if missing:
        raise InputError(f"the discriminator lacks {', '.join(missing)}")
