"""Draws that stage 2 learns from: z_k ~ q against z_k ~ p, given the same z_<k."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models import shared
from ncp_jax.models.base import Carry, GroupPrior, Latents, LatentVariableModel

Array = jax.Array


class ContrastiveDraws(NamedTuple):
    """The two classes of Eq. (4) for the n groups of one block.

    Of each of the B examples there are m negatives, in a row.
    """

    positive: Array  # [n, B, *latent_shape] z_k ~ q(z_k | z_<k, x)
    negative: Array  # [n, B m, *latent_shape] z_k ~ p(z_k | z_<k), the same z_<k
    context: Array  # [n, B, *context_shape] c(z_<k)


def prior_of(
    vae: LatentVariableModel, b: int, k: Array | int, carry: Carry, batch_size: int
) -> GroupPrior:
    """p(z_k | z_<k) of group k of block b, for a batch of `batch_size`.

    Raises:
      InputError: arrays of the base prior do not lead with the batch.  Of batch 1 they
        would broadcast in silence, and all examples would share one draw.
    """
    prior = vae.prior(b, k, carry)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shared.of_batch(prior.base)):
        if jnp.shape(leaf)[:1] != (batch_size,):
            raise InputError(
                f"prior of block {b}: {jax.tree_util.keystr(path)} of the base prior "
                f"is {list(jnp.shape(leaf))} for a batch of {batch_size}; expected "
                "arrays that lead with [B]; broadcast it, as with jnp.broadcast_to("
                "value, (B, *latent_shape)), and ask `models.check` for what else"
            )
    return prior


def walk(
    vae: LatentVariableModel,
    latents: Latents,
    visit: Callable[[int, Array, GroupPrior, Array], Any],
) -> tuple[tuple[Any, ...], Carry]:
    """Goes through the groups with z given; one scan per block.

    Args:
      vae: the model.
      latents: one array [num_groups, B, *latent_shape] per block.
      visit: (block, k, p(z_k | z_<k) with its context, z_k) -> any pytree.

    Returns:
      Per block, what `visit` returned with a leading group axis; and the model's
      state after the last group, ready for `decode`.
    """
    batch_size = latents[0].shape[1]
    carry = vae.root(batch_size)
    visited = []
    for b, block in enumerate(vae.blocks):

        def step(
            carry: Carry, kz: tuple[Array, Array], b: int = b
        ) -> tuple[Carry, Any]:
            k, z_k = kz
            seen = visit(b, k, prior_of(vae, b, k, carry, batch_size), z_k)
            return vae.absorb(b, k, carry, z_k), seen

        chex.assert_shape(latents[b], (block.num_groups, None, *block.latent_shape))
        groups = jnp.arange(block.num_groups)
        carry, seen = jax.lax.scan(step, carry, (groups, latents[b]))
        visited.append(seen)
    return tuple(visited), carry


def contrastive_draws(
    vae: LatentVariableModel, x: Array, key: Array, *, num_negatives: int = 1
) -> tuple[ContrastiveDraws, ...]:
    """Draws both classes for every group, one element per block.

    Args:
      vae: a frozen model.
      x: [B, *data_shape].
      key: PRNG key; consumed here.
      num_negatives: m.
    """
    latents = vae.encode(x, rng.stream(key, "posterior")).latents
    noise_key = rng.stream(key, "negatives")

    def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> ContrastiveDraws:
        group_key = rng.at_step(rng.at_step(noise_key, b), k)
        base = shared.map_batch(
            lambda leaf: jnp.repeat(leaf, num_negatives, 0), prior.base
        )
        return ContrastiveDraws(z_k, base.sample(group_key), prior.context)

    draws, _ = walk(vae, latents, visit)
    return draws


def log_prior(vae: LatentVariableModel, latents: Latents) -> tuple[Array, Carry]:
    """log p(z_k | z_<k) of every group, [B, K] in nats, and the state to decode."""
    terms, carry = walk(vae, latents, lambda b, k, prior, z_k: prior.base.log_prob(z_k))
    return jnp.concatenate(terms).T, carry


def hybrid(
    vae: LatentVariableModel, latents: Latents, num_given: Array | int, key: Array
) -> tuple[Latents, Carry]:
    """Keeps the first groups of z and draws the others from the base prior.

    Args:
      vae: the model.
      latents: one array [num_groups, B, *latent_shape] per block.
      num_given: how many groups are kept, 0 .. K; may be traced.
      key: PRNG key; consumed here.

    Returns:
      z_k as given for k < num_given, the others z_k ~ p(z_k | z_<k), in the same
      shapes; and the model's state after the last group, ready for `decode`.
    """
    batch_size, before, kept = latents[0].shape[1], 0, []
    carry = vae.root(batch_size)
    for b, block in enumerate(vae.blocks):

        def step(
            carry: Carry, kz: tuple[Array, Array], b: int = b, before: int = before
        ) -> tuple[Carry, Array]:
            k, given = kz
            group_key = rng.at_step(rng.at_step(key, b), k)
            drawn = prior_of(vae, b, k, carry, batch_size).base.sample(group_key)
            z_k = jnp.where(before + k < num_given, given, drawn)
            return vae.absorb(b, k, carry, z_k), z_k

        groups = jnp.arange(block.num_groups)
        carry, z = jax.lax.scan(step, carry, (groups, latents[b]))
        kept.append(z)
        before += block.num_groups
    return tuple(kept), carry
