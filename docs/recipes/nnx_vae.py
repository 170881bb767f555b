"""A VAE in Flax NNX: split into its graph, which is static, and its state.

The module keeps its five methods; `FrozenNNX` makes a pure pytree of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ncp_jax


class VAE(nnx.Module):
    """One group of two latents; points in three dimensions."""

    blocks = (ncp_jax.Block(1, (2,), (0,)),)

    def __init__(self, rngs):
        self.encoder = nnx.Linear(3, 4, rngs=rngs)
        self.decoder = nnx.Linear(2, 3, rngs=rngs)

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        mean, raw = jnp.split(self.encoder(x), 2, axis=-1)
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
        mean = self.decoder(carry)
        return ncp_jax.Normal(mean, jnp.ones_like(mean))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenNNX:
    """Any NNX module with the five methods: a `LatentVariableModel`."""

    graph: nnx.GraphDef = dataclasses.field(metadata={"static": True})
    state: nnx.State
    blocks: tuple = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, module):
        """Freezes a module as it is now."""
        return cls(*nnx.split(module), tuple(module.blocks))

    def _module(self):
        return nnx.merge(self.graph, jax.lax.stop_gradient(self.state))

    def encode(self, x, key):
        """Draws z ~ q(z | x)."""
        return self._module().encode(x, key)

    def root(self, batch_size):
        """The state before any group is known."""
        return self._module().root(batch_size)

    def prior(self, block, k, carry):
        """p(z_k | z_<k)."""
        return self._module().prior(block, k, carry)

    def absorb(self, block, k, carry, z_k):
        """The state after z_k is known."""
        return self._module().absorb(block, k, carry, z_k)

    def decode(self, carry):
        """p(x | z)."""
        return self._module().decode(carry)


module = VAE(nnx.Rngs(0))  # train it first: stage 2 leaves it as it is
vae = FrozenNNX.of(module)
x = np.random.default_rng(0).normal(2.0, 2.0, (1_200, 3)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), 3)
ncp = ncp_jax.fit(vae, x[:1_000], key=keys[0], num_steps=200, batch_size=100)
draws = ncp_jax.sample(ncp, keys[1], 8, ncp_jax.SIR(100, chunk_size=100))
numbers = ncp_jax.evaluate(ncp, x[1_000:], key=keys[2], num_log_z_draws=10_000)
print(numbers["gain_nats"])
