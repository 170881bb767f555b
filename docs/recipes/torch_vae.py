"""A VAE in PyTorch, called from compiled JAX by `jax.pure_callback`.

Stage 2 needs no gradient through the VAE, so this serves for every VAE with one group.
It is as slow as a call on the host for every batch: for large models export the
weights.  Langevin dynamics works, too: it differentiates p(z) and r(z) alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import ncp_jax


@jax.tree_util.register_static  # its weights are PyTorch's: nothing for JAX to trace
class TorchVAE:
    """One group of two latents; points in three dimensions."""

    blocks = (ncp_jax.Block(1, (2,), (0,)),)

    def __init__(self, encoder, decoder):
        self.encoder, self.decoder = encoder.eval(), decoder.eval()

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        mean, raw = jnp.split(call(self.encoder, x, 4), 2, axis=-1)
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
        mean = call(self.decoder, carry, 3)
        return ncp_jax.Normal(mean, jnp.ones_like(mean))


def call(module, x, num_features):
    """A PyTorch module on [B, D] from JAX: [B, num_features]."""

    def on_host(x):
        with torch.no_grad():
            return module(torch.tensor(np.asarray(x))).numpy()

    shape = jax.ShapeDtypeStruct((*x.shape[:-1], num_features), jnp.float32)
    return jax.pure_callback(on_host, shape, x, vmap_method="expand_dims")


torch.manual_seed(0)
vae = TorchVAE(torch.nn.Linear(3, 4), torch.nn.Linear(2, 3))  # trained elsewhere
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
