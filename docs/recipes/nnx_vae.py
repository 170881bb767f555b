"""A VAE in Flax NNX: its state goes to `EncoderDecoder`, its graph into two functions.

A VAE of several groups is wrapped in the same way: the five methods of a pytree of the
state merge it with the graph, and call the module's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ncp_jax


class VAE(nnx.Module):
    """Two latents; points in three dimensions."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(3, 4, rngs=rngs)
        self.decoder = nnx.Linear(2, 3, rngs=rngs)


graph, state = nnx.split(VAE(nnx.Rngs(0)))  # train it first


def encoder(state, x):
    """q(z | x)."""
    mean, raw = jnp.split(nnx.merge(graph, state).encoder(x), 2, axis=-1)
    return ncp_jax.Normal(mean, jax.nn.softplus(raw) + 1e-3)


def decoder(state, z):
    """p(x | z)."""
    mean = nnx.merge(graph, state).decoder(z)
    return ncp_jax.Normal(mean, jnp.ones_like(mean))


vae = ncp_jax.EncoderDecoder(encoder, decoder, state, latent_shape=(2,))
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
