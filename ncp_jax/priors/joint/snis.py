"""SNIS trained with its VAE (Lawson et al., 2019, "Energy-Inspired Models", Eq. 5)."""

import jax

from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.models.distributions import Normal, standard_normal
from ncp_jax.priors.ex_post import snis
from ncp_jax.priors.joint.learned import LearnedPriorVAE

Array = jax.Array


class SNISVAE(LearnedPriorVAE):
    """The prior is what resampling one of K draws of N(0, I) follows.

    With p the normal, and K - 1 draws z_k of it that all examples of a batch share,

      log p_SNIS(z) >= E[log p(z) + log r(z) - log((r(z) + sum_k r(z_k)) / K)].

    KL(q, p) has a closed form, so only the ratio's part is estimated.

    Attributes:
      prior_dims: widths of the hidden layers of log r.
      prior_activation: name of a function in `jax.nn`.
      num_proposals: K, 2 or more, of the bound and of the sampler.
    """

    prior_dims: tuple[int, ...] = (100, 100)
    prior_activation: str = "tanh"
    num_proposals: int = 1_024

    def setup(self) -> None:
        """Builds the networks of the VAE and that of log r, which starts at r = 1."""
        super().setup()
        self.ratio = self.param(
            "ratio", lambda key: self._network.start(key, self.latent_dim)
        )

    def latent_prior(self) -> snis.SNIS:
        """The prior by itself, whose density is bounded from below."""
        return self._prior(snis.SNIS.num_sets)

    def prior_kl(self, posterior: Normal, z: Array, key: Array) -> Array:
        """KL(q, p) less the ratio's part of the bound: [B], nats."""
        return posterior.kl(standard_normal(z)) - self._prior(1).excess(z, key)

    def _prior(self, num_sets: int) -> snis.SNIS:
        sizes = self.num_proposals, num_sets
        return snis.SNIS(self.proposal, self.ratio, self._network, *sizes)

    @property
    def _network(self) -> RatioMLP:
        return RatioMLP(self.prior_dims, self.prior_activation, parent=None)
