"""A hierarchical VAE in the standardised noise of its groups, and views in general.

A view is a `LatentVariableModel` that shows another one, its `vae`, in other latents:
the same distributions of x and the same ratios q / p, so an NCP prior on the view is
one on the VAE.  Under the prior e_k = (z_k - mean_k(z_<k)) / std_k(z_<k) is standard
normal whatever z_<k is; so a discriminator of e_k need not learn mean and std first.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.base import (
    Block,
    Carry,
    Encoding,
    GroupPrior,
    Latents,
    LatentVariableModel,
)
from ncp_jax.models.distributions import Distribution, Likelihood, Normal, sum_non_batch
from ncp_jax.priors.latents import walk

Array = jax.Array


class StandardizedCarry(NamedTuple):
    """The state of a `StandardizedVAE`."""

    z: Latents  # per block [B, num_groups, *latent_shape], zeros for what is to come
    inner: Carry  # of the VAE itself


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StandardizedVAE:
    """A VAE whose latents are e_k = (z_k - mean_k(z_<k)) / std_k(z_<k).

    Attributes:
      vae: the model; its base priors are `Normal`.
    """

    vae: LatentVariableModel

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The VAE's own groups and contexts."""
        return self.vae.blocks

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x) and standardises it; the density follows."""
        latents, log_q = self.vae.encode(x, key)

        def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> tuple:
            mean, std = moments(b, prior.base)
            std = jnp.broadcast_to(std, z_k.shape)
            return (z_k - mean) / std, sum_non_batch(jnp.log(std))

        seen, _ = walk(self.vae, latents, visit)
        e, log_volume = zip(*seen, strict=True)
        return Encoding(e, log_q + jnp.concatenate(log_volume).T)

    def root(self, batch_size: int) -> StandardizedCarry:
        """The state before any group is known."""
        z = tuple(
            jnp.zeros((batch_size, block.num_groups, *block.latent_shape))
            for block in self.blocks
        )
        return StandardizedCarry(z, self.vae.root(batch_size))

    def prior(self, block: int, k: Array | int, carry: StandardizedCarry) -> GroupPrior:
        """N(0, 1), and the VAE's own context."""
        base, context = self.vae.prior(block, k, carry.inner)
        mean, _ = moments(block, base)
        return GroupPrior(Normal(jnp.zeros_like(mean), jnp.ones_like(mean)), context)

    def absorb(
        self, block: int, k: Array | int, carry: StandardizedCarry, z_k: Array
    ) -> StandardizedCarry:
        """Makes the VAE's own z_k of e_k, which the VAE absorbs."""
        mean, std = moments(block, self.vae.prior(block, k, carry.inner).base)
        own = mean + std * z_k
        z = list(carry.z)
        z[block] = z[block].at[:, k].set(own)
        return StandardizedCarry(tuple(z), self.vae.absorb(block, k, carry.inner, own))

    def decode(self, carry: StandardizedCarry) -> Likelihood:
        """p(x | z), once every group is absorbed."""
        return self.vae.decode(carry.inner)

    def own_latents(self, carry: StandardizedCarry) -> Latents:
        """z of the VAE, per block [num_groups, B, *latent_shape], at the end."""
        return tuple(z.swapaxes(0, 1) for z in carry.z)


def moments(block: int, base: Distribution) -> tuple[Array, Array]:
    """Returns mean and standard deviation of a base prior.

    Args:
      block: of the group; named in the error.
      base: p(z_k | z_<k).

    Raises:
      InputError: for a base prior that is not `Normal`.
    """
    if not isinstance(base, Normal):
        raise InputError(
            f"the base prior of block {block} is {type(base).__name__}, which has no "
            "signal directions: only models.distributions.Normal can be standardised; "
            "take a discriminator that reads z itself (directions=None of fit; "
            "in a config directions.cap=0 and standardize=False)"
        )
    return base.mean, base.std


def itself(model: LatentVariableModel) -> LatentVariableModel:
    """Returns the VAE behind a view; any other model is that itself."""
    shown: Any = model
    while hasattr(shown, "own_latents"):
        shown = shown.vae
    return shown


def with_vae(
    model: LatentVariableModel, vae: LatentVariableModel
) -> LatentVariableModel:
    """Returns the same view of another VAE; that VAE itself where there is no view."""
    view: Any = model
    if not hasattr(model, "own_latents"):
        return vae
    return dataclasses.replace(view, vae=with_vae(view.vae, vae))


def own_latents(model: LatentVariableModel, latents: Latents, carry: Carry) -> Latents:
    """Returns z as the VAE itself has it, at the end of a walk through the groups.

    Args:
      model: the VAE or a view of it.
      latents: of `model`.
      carry: its state once all of them are absorbed.
    """
    view: Any = model
    return view.own_latents(carry) if hasattr(model, "own_latents") else latents
