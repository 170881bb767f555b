"""A flow for each group, given the groups before: an exact p(u_k | u_<k).

The couplings are those of `ex_post.flow`; what chooses a coupling's map reads the
context beside the coordinates that pass.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.priors.conditional.groups import Groups, log_normal
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.flow import TRAINING, Conditioner, Couplings, Spline

Array = jax.Array
PyTree = Any


class ContextCouplings(Couplings):
    """An invertible map of u_k [B, m] for each context; the identity before training.

    Coordinates that are padding stay what they are, and add nothing to the Jacobian.
    Both ways take, after u_k or noise [B, m], the context [B, C] and which coordinates
    are used [m]: ones, and zeros for padding.
    """

    def _choose(
        self, layer: Conditioner, passed: Array, moved: np.ndarray, *given: Array
    ) -> tuple[Array, Array, Spline]:
        """What a layer does, which to padding is nothing."""
        context, is_used = given
        log_scale, shift, spline = layer(jnp.concatenate([passed, context], axis=1))
        used = is_used[moved][None]
        parts = (part * used[..., None] for part in spline)
        return log_scale * used, shift * used, Spline(*parts)

    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Coordinates that pass, and those that move, by layer; none without any."""
        halves = [(passed, moved) for moved, passed in super()._halves()]
        return [half for half in halves if len(half[1])]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConditionalFlow:
    """prod_k p(u_k | u_<k), each noise N(0, I) through couplings.

    Attributes:
      params: of `net`, stacked over the groups.
      net: the couplings of one group.
      groups: of u.
    """

    density: ClassVar[Density] = "exact"

    params: PyTree
    net: ContextCouplings = dataclasses.field(metadata={"static": True})
    groups: Groups = dataclasses.field(metadata={"static": True})

    def log_probs(self, u: Array) -> Array:
        """log p(u_k | u_<k) of u [B, D]: [B, K], nats."""
        stacked, is_used = self.groups.stack(u), self.groups.is_used()

        def of_group(params: PyTree, k: Array) -> tuple[Array, Array]:
            context = self.groups.context(stacked, k)
            return self.net.apply(params, stacked[:, k], context, is_used[k])

        numbers = jnp.arange(self.groups.num_groups)
        noise, log_det = jax.vmap(of_group)(self.params, numbers)
        return log_normal(noise.swapaxes(0, 1), is_used) + log_det.T

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(u) of u [B, D]: [B], nats."""
        del key
        return jnp.sum(self.log_probs(z), axis=1)

    def sample(self, keys: Array) -> Array:
        """Draws u [B, D], one per key, group after group."""
        is_used = self.groups.is_used()

        def draw(params: PyTree, k: Array, stacked: Array, keys: Array) -> Array:
            shape = (self.groups.widest,)
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            context = self.groups.context(stacked, k)
            return self.net.apply(
                params,
                *(noise * is_used[k][None], context, is_used[k]),
                method=ContextCouplings.invert,
            )

        return self.groups.ancestral(keys, self.params, draw)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Maximum likelihood of all groups at once; it starts as the base prior.

    Attributes:
      groups: of u.
      num_couplings: layers.
      hidden_dims: of the network of each.
      num_bins: of its splines.
      training: how long.  The weights that are kept are those of the lowest held-out
        sum over the groups.
    """

    groups: Groups
    num_couplings: int = 6
    hidden_dims: tuple[int, ...] = (128, 128)
    num_bins: int = 8
    training: Training = TRAINING

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> ConditionalFlow:
        """Returns the flows, fitted to encodings u [N, P, D]."""
        groups = self.groups
        net = ContextCouplings(
            groups.widest, self.num_couplings, self.hidden_dims, self.num_bins
        )

        def start(key: Array) -> PyTree:
            sizes = (1, groups.widest), (1, groups.context_width), (groups.widest,)
            return net.init(key, *map(jnp.zeros, sizes))

        keys = jax.random.split(rng.stream(key, "init"), groups.num_groups)
        params = fitting.minimise(
            "flow",
            lambda params, u, key: (
                -jnp.mean(ConditionalFlow(params, net, groups).log_prob(u))
            ),
            jax.jit(jax.vmap(start))(keys),
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            settings=self,
        )
        return ConditionalFlow(params, net, groups)
