"""The gate over channels that NVAE's cells and the residual discriminator share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means (Hu et al., 2018)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        gate = jnp.mean(x, axis=(1, 2))  # [B, C]
        gate = nn.Dense(max(channels // 16, 4), dtype=self.dtype, name="reduce")(gate)
        gate = nn.Dense(channels, dtype=self.dtype, name="expand")(nn.relu(gate))
        return x * nn.sigmoid(gate)[:, None, None]
