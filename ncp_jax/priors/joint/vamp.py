"""VampPrior: a mixture of q(z | u) over learned u (Tomczak and Welling, 2018)."""

import jax
import jax.numpy as jnp

from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post.vamp import DiagonalMixture
from ncp_jax.priors.joint.learned import STATE, LearnedPriorVAE

Array = jax.Array

MARGIN = 0.05  # of an example's pixels to 0 and to 1, where a logit has no end


class VampVAE(LearnedPriorVAE):
    """p(z) = (1 / K) sum_k q(z | u_k): the encoder's own posteriors, equally weighted.

    Inputs between 0 and 1 are sigmoids of what is learned.  The paper cuts them off
    there; what lies beyond such a cut has no gradient and never comes back.

    Attributes:
      num_components: K.
    """

    num_components: int = 500

    def setup(self) -> None:
        """Builds the networks of the VAE, and the pseudo-inputs u_k."""
        super().setup()
        self.raw = self.param(
            "pseudo_inputs",
            jax.nn.initializers.normal(0.05),
            (self.num_components, *self.data_shape),
        )

    def latent_prior(self) -> DiagonalMixture:
        """The mixture, of exact density."""
        raw = self.raw
        is_binary = self.likelihood == "bernoulli"
        q = self.posterior(jax.nn.sigmoid(raw) if is_binary else raw)
        return DiagonalMixture(jnp.zeros(self.num_components), q.mean, jnp.log(q.std))

    def prior_kl(self, posterior: Normal, z: Array, key: Array) -> Array:
        """log q(z | x) - log p(z): [B], nats; rounded more coarsely in training."""
        del key
        mixture = self.latent_prior()
        is_training = self.is_mutable_collection(STATE) and not self.is_initializing()
        log_p = mixture.rough_log_prob if is_training else mixture.log_prob
        return posterior.log_prob(z) - log_p(z)


def raw_inputs(examples: Array, is_binary: bool) -> Array:
    """The parameters with which pseudo-inputs are these examples, or near to them.

    Args:
      examples: [K, *data_shape], in [0, 1] where the likelihood is of zeros and ones.
      is_binary: whether it is.
    """
    if not is_binary:
        return examples
    inside = MARGIN + (1.0 - 2.0 * MARGIN) * examples
    return jax.scipy.special.logit(inside)
