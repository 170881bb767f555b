"""The samplers as one would first write them, on the same weights, to compare with.

Every group in a Python loop, those with r = 1 from the base prior; all proposals at
once, each with the whole discriminator; every Langevin step a call.  The parts are
compiled: what these versions lack is the streaming and the loops inside one program,
not `jit`.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.benchmark.timing import num_bytes
from ncp_jax.models.base import GroupPrior
from ncp_jax.priors.ncp_prior import NCPPrior

Array = jax.Array


class Plain:
    """An NCP prior whose parts are compiled one by one.

    Args:
      ncp: the prior; its base priors are normal.
    """

    def __init__(self, ncp: NCPPrior):
        self._ncp = ncp
        sizes = [block.num_groups for block in ncp.vae.blocks]
        self._reweighted = [  # per block, counted within it
            {k - sum(sizes[:b]) for k in ncp.reweighted_in(b)}
            for b in range(len(sizes))
        ]

        def log_ratio(ncp: NCPPrior, b: int, k: int, z: Array, context: Array) -> Array:
            params = jax.tree.map(lambda leaf: leaf[k], ncp.params[b])
            return ncp.discriminator.apply({"params": params}, z, context)

        def weigh_all(
            ncp: NCPPrior, b: int, k: int, group: GroupPrior, key: Array, m: int
        ) -> tuple[Array, Array]:
            base: Any = group.base
            shape = base.mean.shape
            noise = jax.random.normal(key, (m, *shape))
            z = base.mean[None] + base.std[None] * noise  # [M, B, ...]
            context = jnp.broadcast_to(group.context, (m, *group.context.shape))
            flat = (a.reshape(m * shape[0], *a.shape[2:]) for a in (z, context))
            return z, log_ratio(ncp, b, k, *flat).reshape(m, shape[0])

        def choose(key: Array, z: Array, log_r: Array) -> Array:
            chosen = jax.random.categorical(key, log_r, axis=0)  # [B]
            return z[chosen, jnp.arange(z.shape[1])]

        def langevin_step(
            ncp: NCPPrior,
            b: int,
            k: int,
            group: GroupPrior,
            z: Array,
            key: Array,
            step_size: float,
        ) -> Array:
            def log_density(z: Array) -> Array:
                log_r = log_ratio(ncp, b, k, z, group.context)
                return jnp.sum(group.base.log_prob(z) + log_r)

            noise = jax.random.normal(key, z.shape)
            new = (
                z + 0.5 * step_size * jax.grad(log_density)(z) + step_size**0.5 * noise
            )
            base: Any = group.base
            return jnp.where(base.std > 0, new, z)  # padding stays where it is

        self.weigh_all = jax.jit(weigh_all, static_argnums=(1, 5))
        self._choose = jax.jit(choose)
        self.step = langevin_step
        self._jit_step = jax.jit(langevin_step, static_argnums=(1,))
        self._prior = jax.jit(
            lambda ncp, b, k, c: ncp.vae.prior(b, k, c), static_argnums=1
        )
        self._absorb = jax.jit(
            lambda ncp, b, k, c, z: ncp.vae.absorb(b, k, c, z), static_argnums=1
        )
        self._base_draw = jax.jit(lambda group, key: group.base.sample(key))
        self._decode = jax.jit(lambda ncp, c: ncp.vae.decode(c).mean)

    def sir(self, key: Array, num_images: int, num_proposals: int) -> Array:
        """Pictures by SIR: all proposals of a group at once."""

        def draw(b: int, k: int, group: GroupPrior, key: Array) -> Array:
            z, log_r = self.weigh_all(self._ncp, b, k, group, key, num_proposals)
            return self._choose(rng.stream(key, "choice"), z, log_r)

        return self._ancestral(key, num_images, draw)

    def langevin(
        self, key: Array, num_images: int, num_steps: int, step_size: float
    ) -> Array:
        """Pictures by Langevin dynamics: a call per step."""

        def draw(b: int, k: int, group: GroupPrior, key: Array) -> Array:
            z = group.base.sample(rng.stream(key, "initial"))
            for step_key in jax.random.split(rng.stream(key, "steps"), num_steps):
                z = self._jit_step(self._ncp, b, k, group, z, step_key, step_size)
            return z

        return self._ancestral(key, num_images, draw)

    def _ancestral(self, key: Array, num_images: int, draw: Any) -> Array:
        carry = self._ncp.vae.root(num_images)
        for b, k in self.groups():
            group = self._prior(self._ncp, b, k, carry)
            group_key = rng.at_step(rng.at_step(key, b), k)
            if k in self._reweighted[b]:
                z = draw(b, k, group, group_key)
            else:
                z = self._base_draw(group, group_key)
            carry = self._absorb(self._ncp, b, k, carry, z)
        return self._decode(self._ncp, carry)

    def groups(self) -> Iterator[tuple[int, int]]:
        """(block, number in it) of every group."""
        for b, block in enumerate(self._ncp.vae.blocks):
            for k in range(block.num_groups):
                yield b, k

    def weighing_bytes(self, num_images: int, num_proposals: int) -> int:
        """What the compiled weighing of the largest group holds at most."""
        carry = jax.eval_shape(lambda: self._ncp.vae.root(num_images))
        found = []
        for b in self._ncp.reweighted_blocks:
            group = jax.eval_shape(
                lambda ncp, c, b=b: ncp.vae.prior(b, 0, c), self._ncp, carry
            )
            lowered = self.weigh_all.lower(
                self._ncp, b, 0, group, jax.random.key(0), num_proposals
            )
            found.append(num_bytes(lowered.compile()))
        return max(found)
