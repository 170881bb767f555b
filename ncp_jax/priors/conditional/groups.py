"""How signal coordinates of several groups lie side by side, and what each reads."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.priors.ex_post import gaussian
from ncp_jax.priors.ex_post.gaussian import Gaussian

Array = jax.Array
PyTree = Any
# (params of group k, k, groups before it [B, K, m], keys [B]) -> u_k [B, m]
DrawGroup = Callable[[PyTree, Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Groups:
    """A vector u [B, D] of K groups, coarse to fine; under the base prior N(0, I).

    Networks see it stacked, [B, K, m], each group padded with zeros to the widest.

    Attributes:
      widths: of each group, 1 or more; their sum is D.
      context_size: leading coordinates of every earlier group that a group reads.
    """

    widths: tuple[int, ...]
    context_size: int = 16

    @property
    def num_groups(self) -> int:
        """K."""
        return len(self.widths)

    @property
    def widest(self) -> int:
        """m."""
        return max(self.widths)

    @property
    def context_width(self) -> int:
        """C, of one group's context; 0 where there is one group or nothing is read."""
        size = min(self.context_size, self.widest)
        return self.num_groups * size if self.num_groups > 1 else 0

    @property
    def base(self) -> Gaussian:
        """N(0, I) over u."""
        return gaussian.standard(sum(self.widths))

    def is_used(self) -> Array:
        """[K, m], 1 where there is a coordinate and 0 where there is padding."""
        return jnp.asarray(self._is_used(), jnp.float32)

    def stack(self, u: Array) -> Array:
        """From u [B, D] to [B, K, m]."""
        stacked = jnp.zeros((len(u), self.num_groups * self.widest), u.dtype)
        places = np.flatnonzero(self._is_used())
        stacked = stacked.at[:, places].set(u)
        return stacked.reshape(len(u), self.num_groups, self.widest)

    def flatten(self, stacked: Array) -> Array:
        """Undoes `stack`."""
        places = np.flatnonzero(self._is_used())
        return stacked.reshape(len(stacked), -1)[:, places]

    def context(self, stacked: Array, k: Array | int) -> Array:
        """What group k reads: [B, C], zeros in the place of itself and later groups.

        Args:
          stacked: [B, K, m]; of later groups anything.
          k: may be traced.
        """
        if not self.context_width:
            return stacked[:, 0, :0]
        lead = stacked[:, :, : self.context_size]
        is_before = jnp.arange(self.num_groups) < k
        lead = jnp.where(is_before[None, :, None], lead, 0.0)
        return lead.reshape(len(stacked), -1)

    def ancestral(self, keys: Array, params: PyTree, draw: DrawGroup) -> Array:
        """Draws u [B, D], one per key, group after group.

        Args:
          keys: [B] PRNG keys; consumed here.
          params: stacked over the groups.
          draw: of one group, given those before.
        """

        def step(stacked: Array, of_group: tuple[PyTree, Array]) -> tuple[Array, None]:
            params, k = of_group
            u_k = draw(params, k, stacked, rng.at_step(keys, k))
            return stacked.at[:, k].set(u_k), None

        start = jnp.zeros((len(keys), self.num_groups, self.widest))
        stacked, _ = jax.lax.scan(step, start, (params, jnp.arange(self.num_groups)))
        return self.flatten(stacked)

    def _is_used(self) -> np.ndarray:
        return np.arange(self.widest)[None] < np.array(self.widths)[:, None]


def log_normal(stacked: Array, is_used: Array) -> Array:
    """log N(u_k; 0, I) of [B, K, m] without the padding: [B, K], nats."""
    each = -0.5 * (stacked**2 + jnp.log(2.0 * jnp.pi))
    return jnp.sum(each * is_used[None], axis=-1)
