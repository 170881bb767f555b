"""Pictures from an NCP prior: in batches, on all devices, in the memory there is."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models import stacks
from ncp_jax.priors.ncp_prior import DrawGroup, NCPPrior, ancestral

Array = jax.Array

CPU_BYTES = 16 * 2**20  # of a chunk, near to caches: 64 MiB were up to twice as slow
FREE_SHARE = 0.5  # of an accelerator's free memory, for a chunk


class Generated(NamedTuple):
    """Pictures and where they came from, on the host; pictures lead everywhere."""

    images: np.ndarray | Array  # [N, *data_shape] E[x | z]
    latents: tuple[np.ndarray | Array, ...]  # per block [N, num_groups, *latent_shape]
    infos: tuple[Any, ...]  # per block, the sampler's info, leaves [N, num_groups, ...]


def generate(
    prior: NCPPrior,
    key: Array,
    num_images: int,
    batch_size: int,
    draw: DrawGroup,
    mesh: Mesh | None = None,
) -> Generated:
    """Draws and decodes `num_images`; see `batches`."""
    parts = batches(prior, key, num_images, batch_size, draw, mesh)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def batches(
    prior: NCPPrior,
    key: Array,
    num_images: int,
    batch_size: int,
    draw: DrawGroup,
    mesh: Mesh | None = None,
) -> Iterator[Generated]:
    """Draws and decodes, a batch of chains at a time.

    Picture i depends on (key, i) alone: not on the batch size, the number of devices or
    the chunks of the sampler, except for rounding.

    Args:
      prior: the NCP.
      key: PRNG key; consumed here.
      num_images: N.
      batch_size: chains per compiled call, of all devices together.
      draw: how one group is drawn; one of `group_samplers`, or your own, which must be
        hashable.  If it has a `chunk_size` and memory runs out, that is halved.
      mesh: the devices that share a batch; None for one.

    Yields:
      The next at most `batch_size` pictures.
    """
    mesh = mesh or parallel.mesh_of(jax.devices()[:1])
    padded = -(-min(batch_size, num_images) // mesh.size) * mesh.size
    for first in range(0, num_images, padded):
        keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(padded))
        while True:
            try:
                out = jax.device_get(draw_batch(mesh, draw, prior, keys))
                break
            except jax.errors.JaxRuntimeError as error:
                draw = _with_smaller_chunks(draw, error)
        kept = slice(num_images - first)
        yield jax.tree.map(lambda leaf, kept=kept: leaf[kept], out)


@partial(jax.jit, static_argnums=(0, 1))
def draw_batch(mesh: Mesh, draw: DrawGroup, prior: NCPPrior, keys: Array) -> Generated:
    """Draws and decodes one batch, compiled: a picture per key, on the devices."""

    def share(prior: NCPPrior, keys: Array) -> Generated:
        with jax.default_matmul_precision("float32"):  # TF32 would move log-weights
            draws = ancestral(prior, keys, draw)
            images = prior.vae.decode(draws.carry).mean
        return Generated(
            images,
            jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), draws.latents),
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), draws.infos),
        )

    return parallel.over_device_chains(mesh, share, prior, keys)


def _with_smaller_chunks(draw: Any, error: Exception) -> Any:
    """The same sampler with half the chunk, if that can help against the error."""
    chunk_size = getattr(draw, "chunk_size", 1)
    if "RESOURCE_EXHAUSTED" not in str(error) or chunk_size == 1:
        raise error
    print(f"out of memory: chunks of {chunk_size // 2} proposals from here on")
    return dataclasses.replace(draw, chunk_size=chunk_size // 2)


def fitting_chunk(
    prior: NCPPrior, num_chains: int, num_proposals: int, num_bytes: int = 0
) -> int:
    """Returns the most proposals per chain that can be weighed at a time.

    Args:
      prior: the NCP; nothing of it is computed, only compiled.
      num_chains: B on one device.
      num_proposals: M; there is no use in more.
      num_bytes: for what weighing takes; 0 for half of what the device has free.
    """
    num_bytes = num_bytes or _free_bytes()
    most = min(
        _most_proposals(prior, stack.blocks[0], num_chains, num_bytes)
        for stack in stacks.stack_blocks(prior.vae.blocks)
        if stack.blocks[0] in prior.reweighted_blocks
    )
    most = int(np.clip(most, 1, num_proposals))
    even = next(size for size in range(most, 0, -1) if num_proposals % size == 0)
    return even if 4 * even >= most else most  # the remainder is another program


def _most_proposals(
    prior: NCPPrior, block: int, num_chains: int, num_bytes: int
) -> int:
    """How many proposals of every chain XLA can weigh within so many bytes."""
    _, latent_shape, context_shape = prior.vae.blocks[block]

    def weigh(prior: NCPPrior, context: Array, z: Array) -> Array:
        return jax.vmap(prior.log_ratio(block, 0, context))(z)

    def needed(num_proposals: int) -> int:
        shapes = (
            jax.ShapeDtypeStruct((num_chains, *context_shape), jnp.float32),
            jax.ShapeDtypeStruct(
                (num_proposals, num_chains, *latent_shape), jnp.float32
            ),
        )
        compiled = jax.jit(weigh).lower(prior, *shapes).compile()
        analysis: Any = compiled.memory_analysis()
        return analysis.temp_size_in_bytes + shapes[1].size * 4

    few, many = 4, 16
    of_one = max((needed(many) - needed(few)) // (many - few), 1)
    return many + (num_bytes - needed(many)) // of_one


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:  # CPUs do not say
        return CPU_BYTES
    return int(FREE_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
