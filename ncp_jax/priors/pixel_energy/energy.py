"""The network of E(x), and what keeps it smooth."""

from typing import Any

import flax.linen as nn
import jax

from ncp_jax.models.halving import Halve

Array = jax.Array
PyTree = Any


class EnergyNet(nn.Module):
    """E(x) of pictures or points; 0 everywhere before training.

    Convolutions of stride 2 and dense layers, all with Swish: Langevin dynamics follows
    their slope, which must not jump.  No norms: those would tie the pictures of a batch
    to one another.

    Attributes:
      channels: of the convolutions; points pass none.
      hidden_dims: widths of the dense layers.
      mean: of training pictures, over all pixels.
      std: likewise; inputs are standardised.
    """

    channels: tuple[int, ...] = (8, 16, 32)
    hidden_dims: tuple[int, ...] = (64,)
    mean: float = 0.0
    std: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, *data_shape] to E(x) [B], nats."""
        h = (x - self.mean) / self.std
        if x.ndim == 4:
            for features in self.channels:
                h = nn.swish(Halve(features)(h))
        h = h.reshape(len(h), -1)
        for width in self.hidden_dims:
            h = nn.swish(nn.Dense(width)(h))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="last")(h)[:, 0]


def hidden_kernels(params: PyTree) -> PyTree:
    """Kernels [height, width, in, out] of all layers but the last, which is a vector.

    Args:
      params: of an `EnergyNet`.
    """
    kernels = {name: of["kernel"] for name, of in params.items() if name != "last"}
    return {
        name: kernel if kernel.ndim == 4 else kernel[None, None]
        for name, kernel in kernels.items()
    }
