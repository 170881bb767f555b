"""The fully connected VAE with one latent group of LARS and SNIS (Tab. 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.models.base import Block, Carry, ElboTerms, Encoding, GroupPrior
from ncp_jax.models.distributions import Bernoulli, Likelihood, Normal

Array = jax.Array

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


class MLPVAE(nn.Module):
    """p(z) = N(0, I), Gaussian q(z | x), and a Bernoulli or Gaussian p(x | z).

    The encoder reads x minus the training mean; the decoder's output is offset by that
    mean (by its logit for binary x), so both start from the average picture.  The mean
    is a constant of the model, in the collection "statistics".

    Attributes:
      data_shape: shape of one x.
      latent_dim: size of z.
      hidden_dims: widths of the encoder's hidden layers; the decoder's are reversed.
      activation: name of a function in `jax.nn`.
      likelihood: "bernoulli" for x in {0, 1}, "normal" for real x.
      likelihood_std: standard deviation of the "normal" likelihood.
    """

    data_shape: tuple[int, ...]
    latent_dim: int = 50
    hidden_dims: tuple[int, ...] = (300, 300)
    activation: str = "tanh"
    likelihood: str = "bernoulli"
    likelihood_std: float = 0.1

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One group and nothing to condition it on."""
        return (Block(1, (self.latent_dim,), (0,)),)

    def setup(self) -> None:
        """Builds both networks and the constant mean."""
        size = int(np.prod(self.data_shape))
        self.encoder = MLP((*self.hidden_dims, 2 * self.latent_dim), self.activation)
        self.decoder = MLP((*reversed(self.hidden_dims), size), self.activation)
        self.data_mean = self.variable(
            "statistics", "data_mean", jnp.zeros, self.data_shape
        )

    def __call__(self, x: Array, key: Array) -> ElboTerms:
        """Same as `elbo_terms`; what `init` runs."""
        return self.elbo_terms(x, key)

    def elbo_terms(self, x: Array, key: Array) -> ElboTerms:
        """The two terms of Eq. (1), the KL in closed form."""
        posterior = self.posterior(x)
        z = posterior.sample(key)
        return ElboTerms(
            log_likelihood=self.decode(z).log_prob(x),
            kl=posterior.kl(standard_normal(z))[:, None],
        )

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x)."""
        posterior = self.posterior(x)
        z = posterior.sample(key)
        return Encoding((z[None],), posterior.log_prob(z)[:, None])

    def root(self, batch_size: int) -> Carry:
        """Zeros in the place of z."""
        return jnp.zeros((batch_size, self.latent_dim))

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """N(0, I), with an empty context."""
        del block, k
        return GroupPrior(standard_normal(carry), jnp.zeros((carry.shape[0], 0)))

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state is z itself."""
        del block, k, carry
        return z_k

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for z [B, latent_dim]."""
        out = self.decoder(carry).reshape(-1, *self.data_shape)
        mean = self.data_mean.value
        return likelihood_around(out, mean, self.likelihood, self.likelihood_std)

    def posterior(self, x: Array) -> Normal:
        """q(z | x) of x [B, *data_shape]: mean and std [B, latent_dim]."""
        centred = (x - self.data_mean.value[None]).reshape(x.shape[0], -1)
        return normal_of(self.encoder(centred))


def standard_normal(z: Array) -> Normal:
    """N(0, I) of the shape of z."""
    return Normal(jnp.zeros_like(z), jnp.ones_like(z))


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
    """
    mean = data_mean[None]
    if likelihood == "bernoulli":
        clipped = jnp.clip(mean, MEAN_CLIP, 1.0 - MEAN_CLIP)
        return Bernoulli(out + jax.scipy.special.logit(clipped))
    return Normal(out + mean, jnp.full_like(out, likelihood_std))
