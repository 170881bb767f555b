"""A flow for each group, given the groups before: an exact p(u_k | u_<k).

The couplings are those of `ex_post.flow`; what chooses a coupling's map reads the
context beside the coordinates that pass.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.priors.conditional.groups import Groups, log_normal
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.flow import Conditioner, Spline, rational_quadratic

Array = jax.Array
PyTree = Any

TRAINING = Training(num_steps=6_000, batch_size=256)


class ContextCouplings(nn.Module):
    """An invertible map of u_k [B, m] for each context; the identity before training.

    Coordinates that are padding stay what they are, and add nothing to the Jacobian.

    Attributes:
      dim: m.
      num_couplings: layers.
      hidden_dims: of the networks that choose.
      num_bins: of a spline.
    """

    dim: int
    num_couplings: int
    hidden_dims: tuple[int, ...]
    num_bins: int

    def setup(self) -> None:
        """Makes the layers."""
        self.layers = [
            Conditioner(self.hidden_dims, len(moved), self.num_bins)
            for _, moved in self._halves()
        ]

    def __call__(self, u: Array, context: Array, is_used: Array) -> tuple[Array, Array]:
        """From u_k [B, m] to noise [B, m], and log |det| of that map: [B].

        Args:
          u: [B, m].
          context: [B, C].
          is_used: [m] ones, and zeros for padding.
        """
        log_det = jnp.zeros(len(u))
        for (passed, moved), layer in zip(self._halves(), self.layers, strict=True):
            log_scale, shift, spline = _of(layer, u[:, passed], context, is_used[moved])
            out, slope = rational_quadratic(
                u[:, moved] * jnp.exp(log_scale) + shift, spline
            )
            u = u.at[:, moved].set(out)
            log_det = log_det + jnp.sum(log_scale + slope, axis=1)
        return u, log_det

    def invert(self, noise: Array, context: Array, is_used: Array) -> Array:
        """From noise [B, m] to u_k [B, m]."""
        layers = list(zip(self._halves(), self.layers, strict=True))
        for (passed, moved), layer in reversed(layers):
            parts = _of(layer, noise[:, passed], context, is_used[moved])
            log_scale, shift, spline = parts
            before, _ = rational_quadratic(noise[:, moved], spline, is_inverse=True)
            noise = noise.at[:, moved].set((before - shift) * jnp.exp(-log_scale))
        return noise

    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Coordinates that pass, and those that move, by layer; none without any."""
        halves = []
        for layer in range(self.num_couplings):
            order = np.random.default_rng(layer // 2).permutation(self.dim)
            first, second = np.split(order, [self.dim // 2])
            halves.append((second, first) if layer % 2 else (first, second))
        return [half for half in halves if len(half[1])]


def _of(
    layer: Conditioner, passed: Array, context: Array, is_used: Array
) -> tuple[Array, Array, Spline]:
    """What one coupling does, which to padding is nothing."""
    log_scale, shift, spline = layer(jnp.concatenate([passed, context], axis=1))
    used = is_used[None]
    parts = (part * used[..., None] for part in spline)
    return log_scale * used, shift * used, Spline(*parts)


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
        groups, is_used = self.groups, self.groups.is_used()

        def step(stacked: Array, of_group: tuple[PyTree, Array]) -> tuple[Array, None]:
            params, k = of_group
            draw = jax.vmap(lambda key: jax.random.normal(key, (groups.widest,)))
            noise = draw(rng.at_step(keys, k)) * is_used[k][None]
            context = groups.context(stacked, k)
            u_k = self.net.apply(
                params, noise, context, is_used[k], method=ContextCouplings.invert
            )
            return stacked.at[:, k].set(u_k), None

        start = jnp.zeros((len(keys), groups.num_groups, groups.widest))
        numbers = jnp.arange(groups.num_groups)
        stacked, _ = jax.lax.scan(step, start, (self.params, numbers))
        return groups.flatten(stacked)


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
