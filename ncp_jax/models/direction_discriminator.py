"""A classifier of the signal directions of a latent group that sees the whole group.

u_k = U_k^T e_k are the coordinates of the standardised noise in the group's signal
directions, c = P_k^T (feature - mean) the decoder's feature in its own leading ones:

  log r_k = f(u_k, c)  or  f(u_k, c) + g(e_k, feature)

with f an `MLPDiscriminator` and g a `ResidualDiscriminator`.  U_k and P_k are given,
not learned: among the parameters they are what `ONTO_DIRECTIONS` and `ONTO_FEATURES`
name, and whoever has the directions puts them there (`priors.directed`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import ResidualDiscriminator

Array = jax.Array
Feature = tuple[Array, ...]  # what f, and g where there is one, make of a context

ONTO_DIRECTIONS, ONTO_FEATURES = "onto_directions", "onto_features"


class Projection(nn.Module):
    """basis^T x - shift, in float32 proper.

    Attributes:
      num: of coordinates.
    """

    num: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, ...] to [B, num]."""
        flat = x.reshape(x.shape[0], -1).astype(jnp.float32)
        zeros = nn.initializers.zeros
        basis = self.param("basis", zeros, (flat.shape[1], self.num))
        shift = self.param("shift", zeros, (self.num,))
        image = jnp.matmul(flat, basis, precision=jax.lax.Precision.HIGHEST)
        return image - shift[None]


class DirectionDiscriminator(nn.Module):
    """Tells posterior from prior draws of e_k by few of its directions, or more.

    See `models.discriminator` for what all discriminators share.

    Attributes:
      num_directions: m, of u_k; directions that a group does not use are zero.
      context_size: of c.
      hidden_dims: widths of the hidden layers of f.
      activation: of f, a function in `jax.nn`.
      with_maps: whether g is added; then e_k is a map [H, W, C].
      channels: of g, as of `ResidualDiscriminator`.
      blocks: of g.
      dtype: of activations; parameters, projections and the logit are float32.
    """

    num_directions: int
    context_size: int = 16
    hidden_dims: tuple[int, ...] = (200, 200)
    activation: str = "swish"
    with_maps: bool = False
    channels: int = 32
    blocks: str = "AAB"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes f, g and the projections."""
        # Their parameters are called as these attributes are.
        self.onto_directions = Projection(self.num_directions)
        self.onto_features = Projection(self.context_size)
        self.of_coordinates = MLPDiscriminator(
            self.hidden_dims, self.activation, self.dtype
        )
        if self.with_maps:
            self.of_maps = ResidualDiscriminator(
                self.channels, self.blocks, dtype=self.dtype
            )

    def __call__(self, z: Array, context: Array) -> Array:
        """Maps e [B, *latent_shape] and feature [B, *context_shape] to log r_k [B]."""
        return self.log_ratio(z, self.embed(context))

    def embed(self, context: Array) -> Feature:
        """The contexts' parts of the first layers of f, and of g where there is one.

        Args:
          context: [B, *context_shape] the decoder's feature; [B, 0] where none is read.
        """
        c = self.onto_features(context) if context.size else context
        of_f = self.of_coordinates.embed(c)
        return (of_f, self.of_maps.embed(context)) if self.with_maps else (of_f,)

    def log_ratio(self, z: Array, feature: Feature) -> Array:
        """Maps e [B, *latent_shape] and what `embed` returned to log r_k [B], nats."""
        of_f, *of_g = feature
        log_r = self.of_coordinates.log_ratio(self.onto_directions(z), of_f)
        if self.with_maps:
            log_r += self.of_maps.log_ratio(z, *of_g)
        return log_r
