"""Binary classifiers whose logit is the log density ratio log r_k(z_k, c)."""

import flax.linen as nn
import jax

Array = jax.Array


class MLPDiscriminator(nn.Module):
    """Tells posterior draws of one latent group from prior draws, given its context.

    At the optimum of the NCE loss (Eq. 4) the logit equals
    log q(z_k | z_<k) - log p(z_k | z_<k), so it is returned as it is, without a
    sigmoid.  The last layer starts at zero: before training r_k = 1 and the NCP prior
    is exactly the VAE's own prior.

    Attributes:
      hidden_dims: widths of the hidden layers.
      activation: name of a function in `jax.nn`.
    """

    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, z: Array, context: Array) -> Array:
        """Maps z [B, *latent_shape] and context [B, *context_shape] to log r_k [B]."""
        activation = getattr(jax.nn, self.activation)
        init = nn.initializers.glorot_uniform()
        first, *others = self.hidden_dims
        h = nn.Dense(first, kernel_init=init)(z.reshape(z.shape[0], -1))
        if context.size:
            # Apart from z, so that it is computed once and not once per proposal.
            flat = context.reshape(context.shape[0], -1)
            h += nn.Dense(first, kernel_init=init, use_bias=False)(flat)
        for width in others:
            h = nn.Dense(width, kernel_init=init)(activation(h))
        log_r = nn.Dense(1, kernel_init=nn.initializers.zeros)(activation(h))
        return log_r[:, 0]
