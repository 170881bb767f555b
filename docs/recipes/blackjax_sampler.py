"""Any sampler of BlackJAX on an NCP prior: its log density comes from `terms`.

`terms` gives log p(z_k | z_<k) and log r_k of every group at given z, so their sum is
the log density of r(z) p(z) of all groups together, which group-by-group sampling only
approximates where Z_k depends on z_<k.
"""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import ncp_jax

W = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])  # two latents, three dimensions


def encoder(W, x):
    """q(z | x)."""
    mean = 0.5 * x @ W.T
    return ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))


def decoder(W, z):
    """p(x | z)."""
    mean = z @ W
    return ncp_jax.Normal(mean, jnp.ones_like(mean))


vae = ncp_jax.EncoderDecoder(encoder, decoder, W, latent_shape=(2,))
x = np.random.default_rng(0).normal(1.0, 1.0, (400, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x, key=keys[0], num_steps=200, batch_size=100)


def log_density(latents):
    """log r(z) p(z) up to a constant, of one chain."""
    log_p, log_r, _ = ncp.terms(jax.tree.map(lambda z: z[:, None], latents))
    return jnp.sum(log_p + log_r)


start = ncp_jax.sample(ncp, keys[1], 1, ncp_jax.SIR(100, chunk_size=100)).latents
start = jax.tree.map(lambda z: jnp.asarray(z[:, 0]), start)
kernel = blackjax.nuts(log_density, step_size=0.5, inverse_mass_matrix=jnp.ones(2))
state = kernel.init(start)


def step(state, key):
    """One transition; keeps z."""
    state, info = kernel.step(key, state)
    return state, (state.position, info.acceptance_rate)


_, (draws, acceptance) = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
    state, jax.random.split(keys[2], 200)
)
print(draws[0].mean((0, 1)), acceptance.mean())
