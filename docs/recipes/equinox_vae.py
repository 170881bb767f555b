"""A VAE in Equinox, whose modules are pytrees: nothing has to be wrapped."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ncp_jax


class VAE(eqx.Module):
    """One group of two latents; points in three dimensions."""

    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear
    blocks = (ncp_jax.Block(1, (2,), (0,)),)

    def __init__(self, key):
        keys = jax.random.split(key)
        self.encoder = eqx.nn.Linear(3, 4, key=keys[0])
        self.decoder = eqx.nn.Linear(2, 3, key=keys[1])

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        mean, raw = jnp.split(jax.vmap(self.encoder)(x), 2, axis=-1)
        q = ncp_jax.Normal(mean, jax.nn.softplus(raw) + 1e-3)
        z = q.sample(key)
        return ncp_jax.Encoding((z[None],), q.log_prob(z)[:, None])

    def root(self, batch_size):
        """The state before z is known: a place for it."""
        return jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        """p(z) = N(0, I), and no context."""
        standard = ncp_jax.Normal(jnp.zeros_like(carry), jnp.ones_like(carry))
        return ncp_jax.GroupPrior(standard, carry[:, :0])

    def absorb(self, block, k, carry, z_k):
        """The state after z is known: z itself."""
        return z_k

    def decode(self, carry):
        """p(x | z)."""
        mean = jax.vmap(self.decoder)(carry)
        return ncp_jax.Normal(mean, jnp.ones_like(mean))


vae = VAE(jax.random.key(1))  # train it first: stage 2 leaves it as it is
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
