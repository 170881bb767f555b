"""A base prior and a likelihood of your own: which members they need.

A distribution is a pytree whose leaves lead with the batch.  Of a base prior `sample`
and `log_prob` are used, and for Langevin dynamics in the noise `standardization()`; of
a likelihood `log_prob` and `mean`, the picture that is shown.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ncp_jax


class Laplace(NamedTuple):
    """The base prior p(z): heavier tails than a normal."""

    centre: jax.Array  # [B, D]

    def sample(self, key):
        """One draw each: [B, D]."""
        return self.centre + jax.random.laplace(key, self.centre.shape)

    def log_prob(self, value):
        """Log density: [B], nats."""
        return jnp.sum(-jnp.abs(value - self.centre) - jnp.log(2.0), axis=1)


class Poisson(NamedTuple):
    """The likelihood p(x | z): counts."""

    log_rate: jax.Array  # [B, D]

    @property
    def mean(self):
        """E[x | z]: [B, D]."""
        return jnp.exp(self.log_rate)

    def sample(self, key):
        """One draw each: [B, D]."""
        return jax.random.poisson(key, self.mean).astype(jnp.float32)

    def log_prob(self, value):
        """Log mass: [B], nats."""
        each = value * self.log_rate - self.mean - jax.lax.lgamma(value + 1.0)
        return jnp.sum(each, axis=1)


class CountVAE(NamedTuple):
    """One group of two latents; three counts."""

    weights: jax.Array  # [2, 3]

    @property
    def blocks(self):
        """The latent groups."""
        return (ncp_jax.Block(1, (2,), (0,)),)

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        mean = jnp.log1p(x) @ self.weights.T
        q = ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))
        z = q.sample(key)
        return ncp_jax.Encoding((z[None],), q.log_prob(z)[:, None])

    def root(self, batch_size):
        """The state before z is known: a place for it."""
        return jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        """p(z), and no context."""
        return ncp_jax.GroupPrior(Laplace(jnp.zeros_like(carry)), carry[:, :0])

    def absorb(self, block, k, carry, z_k):
        """The state after z is known: z itself."""
        return z_k

    def decode(self, carry):
        """p(x | z)."""
        return Poisson(carry @ self.weights)


vae = CountVAE(jnp.array([[0.5, 0.2, 0.0], [0.0, 0.3, 0.6]]))
counts = np.random.default_rng(0).poisson(2.0, (400, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, counts[:300], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, counts[300:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
