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

torch.manual_seed(0)
encoder = torch.nn.Linear(3, 4).eval()  # trained elsewhere: points in three dimensions
decoder = torch.nn.Linear(2, 3).eval()


def call(module, x, num_features):
    """A PyTorch module on [B, D] from JAX: [B, num_features]."""

    def on_host(x):
        with torch.no_grad():
            return module(torch.tensor(np.asarray(x))).numpy()

    shape = jax.ShapeDtypeStruct((*x.shape[:-1], num_features), jnp.float32)
    return jax.pure_callback(on_host, shape, x, vmap_method="expand_dims")


def posterior(_, x):
    """q(z | x)."""
    mean, raw = jnp.split(call(encoder, x, 4), 2, axis=-1)
    return ncp_jax.Normal(mean, jax.nn.softplus(raw) + 1e-3)


def likelihood(_, z):
    """p(x | z)."""
    mean = call(decoder, z, 3)
    return ncp_jax.Normal(mean, jnp.ones_like(mean))


vae = ncp_jax.EncoderDecoder(posterior, likelihood, None, latent_shape=(2,))
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
