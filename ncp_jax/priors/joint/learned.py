"""What VAEs that learn their prior have in common: log p(z) of the bound is its own."""

from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.base import Carry, ElboTerms, GroupPrior
from ncp_jax.models.distributions import Normal
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.shared import Shared
from ncp_jax.priors.ex_post import gaussian
from ncp_jax.priors.ex_post.gaussian import Gaussian

Array = jax.Array

STATE = "prior_state"  # the collection that a prior carries along; mutable in training


class LearnedPriorVAE(MLPVAE):
    """An `MLPVAE` whose prior is learned by the same bound, in the place of N(0, I).

    A subclass has the two methods below that raise `NotImplementedError`.
    """

    def elbo_terms(self, x: Array, key: Array) -> ElboTerms:
        """The terms of Eq. (1), that of the prior estimated from one z ~ q(z | x).

        Args:
          x: [B, *data_shape].
          key: PRNG key of z, and of what the prior draws; consumed here.
        """
        posterior = self.posterior(x)
        z = posterior.sample(rng.stream(key, "posterior"))
        kl = self.prior_kl(posterior, z, rng.stream(key, "prior"))
        return ElboTerms(log_likelihood=self.decode(z).log_prob(x), kl=kl[:, None])

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """The learned prior, one for all of the batch, with an empty context."""
        del block, k
        batch_size = carry.shape[0]
        base = Shared.of(self.latent_prior(), batch_size)
        return GroupPrior(base, jnp.zeros((batch_size, 0)))

    def latent_prior(self) -> Any:
        """The prior by itself, a `priors.ex_post.contract.LatentPrior`."""
        raise NotImplementedError

    def prior_kl(self, posterior: Normal, z: Array, key: Array) -> Array:
        """An estimate of KL(q(z | x) || p(z)), or of a bound above it: [B], nats.

        Args:
          posterior: q(z | x), [B, D].
          z: [B, D], a draw of it.
          key: PRNG key; consumed here.
        """
        raise NotImplementedError

    @property
    def proposal(self) -> Gaussian:
        """N(0, I), which some of the priors reweight."""
        return gaussian.standard(self.latent_dim)
