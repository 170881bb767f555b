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


class PlaneVAE:
    """One group of two latents; points in three dimensions."""

    blocks = (ncp_jax.Block(1, (2,), (0,)),)
    weights = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        mean = 0.5 * x @ self.weights.T
        q = ncp_jax.Normal(mean, jnp.full_like(mean, 0.5))
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
        mean = carry @ self.weights
        return ncp_jax.Normal(mean, jnp.ones_like(mean))


jax.tree_util.register_static(PlaneVAE)  # it has no variables
x = np.random.default_rng(0).normal(1.0, 1.0, (400, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(PlaneVAE(), x, key=keys[0], num_steps=200, batch_size=100)


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
