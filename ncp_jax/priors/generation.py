"""Pictures from an NCP prior: in batches, on all devices, in the memory there is."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError, number
from ncp_jax.models import stacks
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.models.check import check
from ncp_jax.priors.group_samplers import SIR
from ncp_jax.priors.ncp_prior import DrawGroup, NCPPrior, ancestral, checked

Array = jax.Array

# Of a chunk.  On two cores with 1 MiB of cache each and 32 MiB together 5 to 8 MiB were
# fastest, for MLPs of 100-100 and 300-300-300 and for residual networks on 4x4 maps:
# those took 1.4 times as long at 1.5 MiB, all took a little longer beyond 15 MiB.
CPU_BYTES = 8 * 2**20
FREE_SHARE = 0.5  # of an accelerator's free memory, for a chunk
DEFAULT_SAMPLER = SIR(num_proposals=5_000)


class Generated(NamedTuple):
    """Pictures and where they came from, on the host; latents as the VAE has them."""

    images: np.ndarray | Array  # [N, *data_shape] E[x | z], or what `finish` makes of z
    latents: tuple[np.ndarray | Array, ...]  # per block [num_groups, N, *latent_shape]
    infos: tuple[Any, ...]  # per block, the sampler's info, leaves [num_groups, N, ...]


def sample(
    ncp: NCPPrior,
    key: Array,
    num: int = 64,
    sampler: DrawGroup = DEFAULT_SAMPLER,
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> Generated:
    """Draws z from an NCP prior, group after group, and decodes it (Sec. 4.4).

    Draw i depends on (key, i) alone: ask for more under the same key, and the first
    ones stay what they were.  SIR's bias is O(1 / ESS) of its proposals, which
    `infos[block].ess` shows.

    Args:
      ncp: of `fit`.
      key: PRNG key; consumed here.
      num: N.
      sampler: `SIR`, `Langevin`, `MALA`, ... with its settings; `Base()` for the VAE's
        own prior.
      batch_size: draws at a time, of all devices together; bounds the memory.
      mesh: the devices that share a batch; None for all.

    Returns:
      images E[x | z] [N, *data_shape]; per block of the VAE itself, also where r reads
      signal directions, latents z [num_groups, N, *latent_shape]; and per block with
      ratios the sampler's info, leaves [num_groups, N, ...].

    Raises:
      InputError: the VAE is not as it should be, there is nothing to draw, the sampler
        is none, step sizes are not one for each group, or the sampler leaves the
        finite numbers.
    """
    ncp = checked(ncp)
    num, batch_size = (
        number(name, value, operator.index, "[1, inf)")
        for name, value in {"num": num, "batch_size": batch_size}.items()
    )
    if isinstance(sampler, type) or not callable(sampler):
        what = sampler.__name__ if isinstance(sampler, type) else repr(sampler)
        raise InputError(
            "sampler must be a sampler with its settings, such as ncp_jax.SIR(1_000) "
            f"or ncp_jax.Base(); got {what}"
        )
    _check_once(ncp.vae)
    _check_step_sizes(ncp, sampler)
    mesh = mesh or parallel.mesh_of()
    out = generate(ncp, rng.typed(key), num, batch_size, sampler, mesh)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)):
        remedy = "look for NaN or infinity in the weights of the ratios"
        is_drawn = all(np.isfinite(z).all() for z in out.latents)
        if is_drawn and not np.isfinite(out.images).all():
            raise InputError(
                "the VAE decodes finite latents to NaN or infinity: look at its decoder"
            )
        if hasattr(sampler, "step_size"):
            remedy = "lower its step size, or draw by SIR, which has none"
        raise InputError(f"{sampler} left the finite numbers: {remedy}")
    return out


def _check_step_sizes(ncp: NCPPrior, sampler: DrawGroup) -> None:
    sizes = getattr(sampler, "step_size", None)
    num_groups = sum(block.num_groups for block in ncp.vae.blocks)
    least = max(ncp.reweighted_groups, default=0) + 1
    if isinstance(sizes, tuple) and not least <= len(sizes) <= num_groups:
        raise InputError(
            f"{sampler}: {len(sizes)} step sizes for {least} groups: give one number, "
            "or one for each group"
        )


def _check_once(vae: LatentVariableModel) -> None:
    """Checks each kind of model once, since that takes as long as tracing it."""
    leaves, structure = jax.tree.flatten(vae)
    try:
        shapes = tuple(
            jax.ShapeDtypeStruct(jnp.shape(z), jnp.result_type(z)) for z in leaves
        )
        hash(structure)
    except (TypeError, ValueError):  # `jit` will not take it: let the check say why
        check(vae)
        return
    _check_kind(structure, shapes)


@lru_cache(maxsize=32)
def _check_kind(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> None:
    """Checks a model without its numbers, which the cache must not keep."""
    check(jax.tree.unflatten(structure, shapes))


def generate(
    prior: NCPPrior,
    key: Array,
    num_images: int,
    batch_size: int,
    draw: DrawGroup,
    mesh: Mesh | None = None,
) -> Generated:
    """Draws and decodes `num_images`; see `batches`."""
    parts = list(batches(prior, key, num_images, batch_size, draw, mesh))

    def joined(axis: int, trees: Iterable[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *trees)

    return Generated(
        joined(0, [part.images for part in parts]),
        joined(1, [part.latents for part in parts]),
        joined(1, [part.infos for part in parts]),
    )


def batches(
    prior: NCPPrior,
    key: Array,
    num_images: int,
    batch_size: int,
    draw: DrawGroup,
    mesh: Mesh | None = None,
    *,
    first: int = 0,
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
      first: number of the first picture; those before it are not drawn.

    Yields:
      The next at most `batch_size` pictures.
    """
    mesh = mesh or parallel.one_device()
    padded = -(-min(batch_size, num_images) // mesh.size) * mesh.size
    for start in range(first, num_images, padded):
        keys = jax.vmap(rng.at_step, (None, 0))(key, start + jnp.arange(padded))
        while True:
            try:
                out = jax.device_get(draw_batch(mesh, draw, prior, keys))
                break
            except jax.errors.JaxRuntimeError as error:
                draw = _with_smaller_chunks(draw, error)
        kept = slice(num_images - start)
        images, *of_groups = out
        of_groups = jax.tree.map(lambda leaf, kept=kept: leaf[:, kept], of_groups)
        yield Generated(images[kept], *of_groups)


@partial(jax.jit, static_argnums=(0, 1))
def draw_batch(mesh: Mesh, draw: DrawGroup, prior: NCPPrior, keys: Array) -> Generated:
    """Draws and decodes one batch, compiled: a picture per key, on the devices."""

    def share(prior: NCPPrior, keys: Array) -> Generated:  # pictures lead everywhere
        with jax.default_matmul_precision("float32"):  # TF32 would move log-weights
            done = prior.finish(keys, ancestral(prior, keys, draw))
        return Generated(
            done.images,
            jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), done.latents),
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), done.infos),
        )

    images, *of_groups = parallel.over_device_chains(mesh, share, prior, keys)
    of_groups = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), of_groups)
    return Generated(images, *of_groups)


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
    reweighted = [
        [block for block in stack.blocks if block in prior.reweighted_blocks]
        for stack in stacks.stack_blocks(prior.vae.blocks)
    ]
    most = min(  # blocks of one stack are alike
        (
            _most_proposals(prior, blocks[0], num_chains, num_bytes)
            for blocks in reweighted
            if blocks
        ),
        default=num_proposals,
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
