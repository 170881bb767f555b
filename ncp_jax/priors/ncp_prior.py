"""The noise contrastive prior (1/Z) prod_k r_k(z_k | z_<k) p(z_k | z_<k), Sec. 4."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import Carry, GroupPrior, Latents, LatentVariableModel
from ncp_jax.models.distributions import Distribution
from ncp_jax.models.shared import sample_each
from ncp_jax.priors.latents import prior_of, walk
from ncp_jax.priors.standardized import itself, own_latents

Array = jax.Array
PyTree = Any
LogRatio = Callable[[Array], Array]  # z_k [B, *latent_shape] -> log r_k [B]


class Target(NamedTuple):
    """What one group is drawn from: r_k p(z_k | z_<k) / Z_k(z_<k), for every chain."""

    base: Distribution  # p(z_k | z_<k), of B chains
    log_r: LogRatio
    group: Array  # [] its number, of 0 .. K-1


# (keys [B], target) -> (z_k [B, *latent_shape], info)
DrawGroup = Callable[[Array, Target], tuple[Array, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NCPPrior:
    """A frozen VAE and one discriminator per latent group.

    Attributes:
      vae: the model whose base prior is reweighted.
      discriminator: the network; its parameters are apart, one set per group.
      params: per block, the discriminators' parameters stacked [num_groups, ...]; None
        for a block whose groups all keep r_k = 1.
      groups: numbers (of 0 .. K-1) of the groups that are reweighted, the others keep
        r_k = 1; None for all.

    Raises:
      InputError: the model has no group of such a number.
    """

    vae: LatentVariableModel
    discriminator: nn.Module = dataclasses.field(metadata={"static": True})
    params: tuple[PyTree | None, ...]
    groups: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def __post_init__(self) -> None:
        """Refuses groups that are not there."""
        if not self.groups:
            return
        try:
            blocks = self.vae.blocks
        except (AttributeError, TypeError, IndexError):  # placeholders of a pytree
            return
        num_groups = sum(block.num_groups for block in blocks)
        if any(k not in range(num_groups) for k in self.groups):
            raise InputError(
                f"groups = {self.groups}: the model has the groups 0 to "
                f"{num_groups - 1}; name some of them, or None for all"
            )

    def __repr__(self) -> str:
        """One line: the model, the groups, the network and its size."""
        num_groups = sum(block.num_groups for block in itself(self.vae).blocks)
        leaves = jax.tree.leaves(self.params)
        size = sum(getattr(leaf, "size", 1) for leaf in leaves)
        chosen = "" if self.groups is None else f", groups={self.groups}"
        return (
            f"NCPPrior({self.vae_name}, K={num_groups}, "
            f"{type(self.discriminator).__name__} with {size:,} weights in all{chosen})"
        )

    @property
    def vae_name(self) -> str:
        """What the VAE's class, or its module's, is called."""
        vae = itself(self.vae)
        return type(getattr(vae, "module", vae)).__name__

    def log_ratio(self, block: int, k: Array | int, context: Array) -> LogRatio:
        """Returns z_k [B, *latent_shape] -> log r_k(z_k, c) [B], in nats.

        What depends on the context alone is computed here, once for all z_k.

        Args:
          block: of the group.
          k: its number in the block; may be traced.
          context: [B, *context_shape].
        """
        if self.params[block] is None:
            return lambda z_k: jnp.zeros(z_k.shape[0])
        variables = {
            "params": jax.tree.map(lambda stacked: stacked[k], self.params[block])
        }
        feature = self.discriminator.apply(variables, context, method="embed")
        is_used = self.is_reweighted(block, k)

        def log_r(z_k: Array) -> Array:
            value = self.discriminator.apply(
                variables, z_k, feature, method="log_ratio"
            )
            chex.assert_shape(value, (z_k.shape[0],))
            return value if self.groups is None else jnp.where(is_used, value, 0.0)

        return log_r

    @property
    def reweighted_blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that have discriminators."""
        return tuple(b for b, params in enumerate(self.params) if params is not None)

    @property
    def reweighted_groups(self) -> tuple[int, ...]:
        """Numbers of the groups that are reweighted, in blocks with discriminators."""
        per_block = (self.reweighted_in(b) for b in self.reweighted_blocks)
        return tuple(k for groups in per_block for k in groups)

    @property
    def rows(self) -> dict[int, int]:
        """Of each reweighted group its row, where blocks with discriminators have rows.

        Infos of samplers and logits of discriminators are so.
        """
        every = dataclasses.replace(self, groups=None).reweighted_groups
        chosen = self.reweighted_groups
        return {k: row for row, k in enumerate(every) if k in chosen}

    def reweighted_in(self, block: int) -> tuple[int, ...]:
        """Numbers, of 0 .. K-1, of a block's groups that are reweighted."""
        if self.params[block] is None:
            return ()
        sizes = [each.num_groups for each in self.vae.blocks]
        first = sum(sizes[:block])
        groups = range(first, first + sizes[block])
        return tuple(k for k in groups if self.groups is None or k in self.groups)

    def is_reweighted(self, block: int, k: Array | int) -> Array:
        """Whether r_k counts: [] bool."""
        num_groups = sum(block.num_groups for block in self.vae.blocks)
        chosen = range(num_groups) if self.groups is None else self.groups
        return jnp.isin(self.number(block, k), jnp.array(chosen, jnp.int32))

    def number(self, block: int, k: Array | int) -> Array:
        """The number among all groups, [], of group k of a block."""
        before = sum(block.num_groups for block in self.vae.blocks[:block])
        return jnp.asarray(before + k)

    def terms(self, latents: Latents) -> tuple[Array, Array, Carry]:
        """log p and log r of every group at given z, and the state to decode.

        Returns:
          log p(z_k | z_<k) [B, K], log r_k(z_k | z_<k) [B, K], both in nats, and what
          `vae.decode` takes.
        """

        def visit(
            b: int, k: Array, prior: GroupPrior, z_k: Array
        ) -> tuple[Array, Array]:
            log_r = self.log_ratio(b, k, prior.context)(z_k)
            return prior.base.log_prob(z_k), log_r

        per_block, carry = walk(self.vae, latents, visit)
        log_p, log_r = (
            jnp.concatenate(parts).T for parts in zip(*per_block, strict=True)
        )
        return log_p, log_r, carry

    def finish(self, keys: Array, draws: "Draws") -> "Finished":
        """What is shown of ancestral draws: E[x | z], and z as the VAE has it.

        Args:
          keys: [B] PRNG keys of these draws, for what is random after them.
          draws: of `ancestral` under the same keys.
        """
        del keys
        images = self.vae.decode(draws.carry).mean
        latents = own_latents(self.vae, draws.latents, draws.carry)
        return Finished(images, latents, draws.infos)


def checked(ncp: Any) -> NCPPrior:
    """Returns an NCP prior, as whoever calls may have given something near to one.

    Raises:
      InputError: it is something else.
    """
    if isinstance(ncp, NCPPrior):
        return ncp
    kind, hint = type(ncp).__name__, ""
    if hasattr(ncp, "draw"):
        hint = ": a comparison draws by its method draw(name, key, num)"
    elif hasattr(ncp, "decode"):
        hint = ": `fit` one to it first"
    raise InputError(f"ncp must be an NCPPrior, as `fit` returns; got a {kind}{hint}")


class Draws(NamedTuple):
    """A batch of ancestral draws."""

    latents: Latents
    carry: Carry  # the model's state after the last group: what `decode` takes
    infos: tuple[Any, ...]  # per reweighted block, the sampler's info, groups leading


class Finished(NamedTuple):
    """A batch of pictures and where they came from."""

    images: Array  # [B, *data_shape]
    latents: Latents  # of the VAE itself, per block [num_groups, B, *latent_shape]
    infos: tuple[Any, ...]  # leaves [num_groups, ..., B]


def ancestral(prior: NCPPrior, keys: Array, draw: DrawGroup) -> Draws:
    """Draws group after group, each given those before (Sec. 4.4); one scan per block.

    With one group exact draws follow p_NCP.  With several, group k is drawn from
    r_k p_k / Z_k(z_<k), and the product of those is p_NCP only as far as Z_k does not
    depend on z_<k; an ideal classifier has Z_k = 1.

    Args:
      prior: the NCP.
      keys: [B] PRNG keys, one per chain; consumed here.  What a chain draws depends on
        its own key alone.
      draw: how one group is drawn: one of `group_samplers`, or your own.
    """
    vae = prior.vae
    carry = vae.root(len(keys))
    latents, infos = [], []
    for b, block in enumerate(vae.blocks):
        block_keys = rng.at_step(keys, b)

        def step(
            carry: Carry, k: Array, b: int = b, block_keys: Array = block_keys
        ) -> tuple[Carry, tuple[Array, Any]]:
            base, context = prior_of(vae, b, k, carry, len(keys))
            log_r = prior.log_ratio(b, k, context)
            target = Target(base, log_r, prior.number(b, k))
            group_keys = rng.at_step(block_keys, k)
            if prior.params[b] is None:
                z_k, info = _plain(draw)(group_keys, base), ()
            elif prior.groups is None:
                z_k, info = draw(group_keys, target)
            else:
                z_k, info = jax.lax.cond(
                    prior.is_reweighted(b, k),
                    lambda: draw(group_keys, target),
                    lambda: _from_base(group_keys, target, draw),
                )
            return vae.absorb(b, k, carry, z_k), (z_k, info)

        carry, (z, info) = jax.lax.scan(step, carry, jnp.arange(block.num_groups))
        latents.append(z)
        if prior.params[b] is not None:
            infos.append(info)
    return Draws(tuple(latents), carry, tuple(infos))


def _from_base(keys: Array, target: Target, draw: DrawGroup) -> tuple[Array, Any]:
    """Draws from p where r = 1, with zeros in the place of the sampler's info."""

    def log_r(z_k: Array) -> Array:
        return jnp.zeros(z_k.shape[0])

    _, info = jax.eval_shape(lambda: draw(keys, target._replace(log_r=log_r)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    return _plain(draw)(keys, target.base), zeros


def _plain(draw: DrawGroup) -> Callable[[Array, Distribution], Array]:
    """How a sampler draws from p where r = 1: `sample_each`, or as it says."""
    return getattr(draw, "plain", sample_each)


def base_draw_ratios(prior: NCPPrior, keys: Array) -> Array:
    """log r_k along ancestral draws from the base prior, one per key: [K, B].

    K counts the groups of blocks that are reweighted, and may be 0.  The mean of exp of
    the sum over groups is unbiased for Z.
    """

    def draw(keys: Array, target: Target) -> tuple[Array, Array]:
        z_k = sample_each(keys, target.base)
        return z_k, target.log_r(z_k)

    none = jnp.zeros((0, len(keys)))
    return jnp.concatenate([none, *ancestral(prior, keys, draw).infos])
