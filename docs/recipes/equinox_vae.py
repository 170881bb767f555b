"""A VAE in Equinox: its arrays go into `EncoderDecoder`, the rest into two functions.

A VAE of several groups needs no wrapper: an Equinox module is a pytree, and may have
the five methods itself.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import ncp_jax


class VAE(eqx.Module):
    """Two latents; points in three dimensions."""

    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.encoder = eqx.nn.Linear(3, 4, key=keys[0])
        self.decoder = eqx.nn.Linear(2, 3, key=keys[1])


model = VAE(jax.random.key(1))  # train it first
arrays, rest = eqx.partition(model, eqx.is_array)


def encoder(arrays, x):
    """q(z | x)."""
    encode = jax.vmap(eqx.combine(arrays, rest).encoder)
    mean, raw = jnp.split(encode(x), 2, axis=-1)
    return ncp_jax.Normal(mean, jax.nn.softplus(raw) + 1e-3)


def decoder(arrays, z):
    """p(x | z)."""
    mean = jax.vmap(eqx.combine(arrays, rest).decoder)(z)
    return ncp_jax.Normal(mean, jnp.ones_like(mean))


vae = ncp_jax.EncoderDecoder(encoder, decoder, arrays, latent_shape=(2,))
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
