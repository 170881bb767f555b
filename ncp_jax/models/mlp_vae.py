"""The fully connected VAE with one latent group of LARS and SNIS (Tab. 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.models.base import Carry, GaussianVAE
from ncp_jax.models.distributions import Bernoulli, Likelihood, Normal

Array = jax.Array

LIKELIHOODS = ("bernoulli", "normal")
MIN_STD = 1e-5  # of normals that a network parametrises
MEAN_CLIP = 1e-4  # keeps the logit of an always-black pixel finite


class MLP(nn.Module):
    """Dense layers with a nonlinearity between them; the last one is linear."""

    features: Sequence[int]
    activation: str = "tanh"

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, in] to [B, features[-1]]."""
        init = nn.initializers.glorot_uniform()
        for width in self.features[:-1]:
            h = getattr(jax.nn, self.activation)(nn.Dense(width, kernel_init=init)(h))
        return nn.Dense(self.features[-1], kernel_init=init)(h)


class MLPVAE(GaussianVAE):
    """p(z) = N(0, I), Gaussian q(z | x), and a Bernoulli or Gaussian p(x | z).

    The encoder reads x minus the training mean; the decoder's output is offset by that
    mean (by its logit for binary x), so both start from the average picture.  The mean
    is a constant of the model, in the collection "statistics".

    Attributes:
      data_shape, latent_dim: as of every `OneVectorVAE`.
      hidden_dims: widths of the encoder's hidden layers; the decoder's are reversed.
      activation: name of a function in `jax.nn`.
      likelihood: "bernoulli" for x in {0, 1}, "normal" for real x.
      likelihood_std: standard deviation of the "normal" likelihood.
    """

    hidden_dims: tuple[int, ...] = (300, 300)
    activation: str = "tanh"
    likelihood: str = "bernoulli"
    likelihood_std: float = 0.1

    def setup(self) -> None:
        """Builds both networks and the constant mean."""
        size = int(np.prod(self.data_shape))
        self.encoder = MLP((*self.hidden_dims, 2 * self.latent_dim), self.activation)
        self.decoder = MLP((*reversed(self.hidden_dims), size), self.activation)
        self.data_mean = self.variable(
            "statistics", "data_mean", jnp.zeros, self.data_shape
        )

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for z [B, latent_dim]."""
        out = self.decoder(carry).reshape(-1, *self.data_shape)
        mean = self.data_mean.value
        return likelihood_around(out, mean, self.likelihood, self.likelihood_std)

    def posterior(self, x: Array) -> Normal:
        """q(z | x) of x [B, *data_shape]: mean and std [B, latent_dim]."""
        centred = (x - self.data_mean.value[None]).reshape(x.shape[0], -1)
        return normal_of(self.encoder(centred))


def normal_of(parameters: Array) -> Normal:
    """The normal over [B, n] whose mean and raw scale a network returns: [B, 2 n].

    The standard deviation is the softplus of the raw scale, 1e-5 at least.
    """
    mean, raw = jnp.split(parameters, 2, axis=-1)
    return Normal(mean, jnp.maximum(jax.nn.softplus(raw), MIN_STD))


def likelihood_around(
    out: Array, data_mean: Array, likelihood: str, likelihood_std: float
) -> Likelihood:
    """p(x | z) that is the average picture where the decoder returns zeros.

    Args:
      out: [B, *data_shape] of the decoder.
      data_mean: [*data_shape] mean of the training set.
      likelihood: "bernoulli" for x in {0, 1}, "normal" for real x.
      likelihood_std: standard deviation of the "normal" likelihood.

    Raises:
      InputError: another likelihood.
    """
    if likelihood not in LIKELIHOODS:
        raise InputError(f"likelihood must be one of {LIKELIHOODS}, got {likelihood!r}")
    mean = data_mean[None]
    if likelihood == "bernoulli":
        clipped = jnp.clip(mean, MEAN_CLIP, 1.0 - MEAN_CLIP)
        return Bernoulli(out + jax.scipy.special.logit(clipped))
    return Normal(out + mean, jnp.full_like(out, likelihood_std))
