"""Binary classifiers whose logit is the log density ratio log r_k(z_k, c).

A classifier works in two steps, so that a sampler that weighs many proposals against
one context reads the context once:

  feature = embed(context)              all that depends on the context alone
  log_r = log_ratio(z, feature)         [B], nats

and `__call__(z, context)` does both.  At the optimum of the NCE loss (Eq. 4) the logit
equals log q(z_k | z_<k) - log p(z_k | z_<k), so it is returned as it is, without a
sigmoid.  The last layer starts at zero: before training r_k = 1 and the NCP prior is
exactly the VAE's own prior.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


class MLPDiscriminator(nn.Module):
    """Tells posterior draws of one latent group from prior draws, given its context.

    Attributes:
      hidden_dims: widths of the hidden layers.
      activation: name of a function in `jax.nn`.
      dtype: of activations; parameters and the logit are float32.
    """

    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers; they take their shapes from what they first see."""
        init = nn.initializers.glorot_uniform()
        first, *_ = self.hidden_dims
        # Checkpoints know the layers that every group has by these names.
        self.hidden = [
            nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"Dense_{i}")
            for i, width in enumerate(self.hidden_dims)
        ]
        self.last = nn.Dense(
            1, kernel_init=nn.initializers.zeros, name=f"Dense_{len(self.hidden_dims)}"
        )
        self.context = nn.Dense(
            first, kernel_init=init, use_bias=False, dtype=self.dtype
        )

    def __call__(self, z: Array, context: Array) -> Array:
        """Maps z [B, *latent_shape] and context [B, *context_shape] to log r_k [B]."""
        return self.log_ratio(z, self.embed(context))

    def embed(self, context: Array) -> Array:
        """The context's part of the first layer: [B, width], or zeros [B, 1] if empty.

        Args:
          context: [B, *context_shape]; of shape [B, 0] where there is none.
        """
        if not context.size:
            return jnp.zeros((context.shape[0], 1), self.dtype)
        return self.context(context.reshape(context.shape[0], -1))

    def log_ratio(self, z: Array, feature: Array) -> Array:
        """Maps z [B, *latent_shape] and its context's feature to log r_k [B]."""
        activation = getattr(jax.nn, self.activation)
        first, *others = self.hidden
        h = first(z.reshape(z.shape[0], -1)) + feature
        for layer in others:
            h = layer(activation(h))
        return self.last(activation(h).astype(jnp.float32))[:, 0]


class RatioMLP(MLPDiscriminator):
    """log r of vectors without a context, with dropout while it learns.

    Attributes:
      dropout: share of the last hidden units that is left out by a pass with a key.
    """

    dropout: float = 0.0

    def log_ratio(self, z: Array, feature: Array) -> Array:
        """Maps z [B, D] and the feature of no context to log r [B]."""
        activation = getattr(jax.nn, self.activation)
        first, *others = self.hidden
        h = activation(first(z) + feature)
        for layer in others:
            h = activation(layer(h))
        if self.dropout and self.has_rng("dropout"):
            share = 1.0 - self.dropout
            is_kept = jax.random.bernoulli(self.make_rng("dropout"), share, h.shape)
            h = jnp.where(is_kept, h / share, 0.0)
        return self.last(h)[:, 0]

    def start(self, key: Array, dim: int) -> PyTree:
        """Fresh parameters for z [B, dim], with which r = 1."""
        return self.init(key, jnp.zeros((1, dim)), jnp.zeros((1, 0)))["params"]

    def log_r(self, params: PyTree, z: Array, key: Array | None = None) -> Array:
        """log r of z [B, D] with these parameters: [B], nats; dropout with a key."""
        rngs = None if key is None else {"dropout": key}
        return self.apply({"params": params}, z, jnp.zeros((len(z), 0)), rngs=rngs)
