"""LARS trained with its VAE (Bauer and Mnih, 2019, "Resampled Priors", Eqs. 4 to 7)."""

import math

import jax
import jax.numpy as jnp

from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.models.distributions import Normal, standard_normal
from ncp_jax.priors.ex_post import rejection
from ncp_jax.priors.ex_post.contract import over_base
from ncp_jax.priors.joint.learned import STATE, LearnedPriorVAE
from ncp_jax.samplers.resampling import log_mean_exp

Array = jax.Array


class LARSVAE(LearnedPriorVAE):
    """The prior draws from N(0, I) until one is accepted, T times at most.

    log p(z) = log N(z; 0, I) + log(a(z) (1 - alpha) / Z + alpha) needs Z = E[a], which
    moves with a.  In training a running average stands for it, which every update moves
    by the mean of a over fresh draws, and whose gradient is that of these draws alone.
    `settle` computes Z of the weights as they are, and a pass outside training reads
    that.  All are in the collection "prior_state", and in every checkpoint.

    Attributes:
      prior_dims: widths of the hidden layers of the logit of a.
      prior_activation: name of a function in `jax.nn`.
      num_attempts: T, 2 or more.
      acceptance: a before training.
      num_draws: of N(0, I), for Z in an update.
      num_z_draws: for Z of the weights that are measured.
    """

    prior_dims: tuple[int, ...] = (100, 100)
    prior_activation: str = "tanh"
    num_attempts: int = 100
    acceptance: float = 0.1
    num_draws: int = 1_024
    num_z_draws: int = 1_000_000

    def setup(self) -> None:
        """Builds the networks of the VAE and that of a, and what is known of Z."""
        super().setup()
        self.accept = self.param(
            "accept",
            lambda key: rejection.accepting(
                self._network, self.acceptance, key, self.latent_dim
            ),
        )
        start, log_start = self.acceptance, math.log(self.acceptance)
        float32 = jnp.float32
        self.average = self.variable(STATE, "z_average", jnp.full, (), start, float32)
        self.log_z = self.variable(STATE, "log_z", jnp.full, (), log_start, float32)
        self.stderr = self.variable(STATE, "log_z_stderr", jnp.zeros, ())

    def latent_prior(self) -> rejection.LARS:
        """The prior by itself, of exact density but for the error of its log Z."""
        parts = self.proposal, self.accept, self._network, self.num_attempts
        return rejection.LARS(*parts, self.log_z.value, self.stderr.value)

    def prior_kl(self, posterior: Normal, z: Array, key: Array) -> Array:
        """KL(q, N(0, I)) less the log of what a does to the density: [B], nats."""
        prior, log_z = self.latent_prior(), self.log_z.value
        if self.is_mutable_collection(STATE) and not self.is_initializing():
            draws = over_base(prior.base, prior.log_a, key, self.num_draws)
            log_z, self.average.value = rejection.averaged_log_z(
                log_mean_exp(draws), self.average.value
            )
        excess = rejection.truncated(prior.log_a(z), log_z, self.num_attempts)
        return posterior.kl(standard_normal(z)) - excess

    def settle(self, key: Array) -> None:
        """Computes log Z of the weights as they are, with its standard error.

        Args:
          key: PRNG key; consumed here.
        """
        prior = self.latent_prior()
        draws = over_base(prior.base, prior.log_a, key, self.num_z_draws)
        self.log_z.value, self.stderr.value = rejection.with_stderr(draws)

    @property
    def _network(self) -> RatioMLP:
        return RatioMLP(self.prior_dims, self.prior_activation, parent=None)
