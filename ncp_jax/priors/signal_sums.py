"""Second moments of standardised posterior means or draws, summed over the examples.

The devices sum one batch in float32, each its share; batches are added on the host in
float64.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, GroupPrior, Latents, LatentVariableModel
from ncp_jax.models.distributions import Distribution
from ncp_jax.priors.latents import walk
from ncp_jax.priors.standardized import moments

Array = jax.Array
Prepare = Callable[
    [Array, Array], Array
]  # (key, stored [B, ...]) -> x [B, *data_shape]
Batch = tuple[np.ndarray, np.ndarray]  # stored [B, ...], mask [B], False for padding


class Sums(NamedTuple):
    """Sums over examples, for the n groups of a block.

    Of an example, A [D, D] is e e^T for its one e, or the mean of e_r e_s^T over the
    ordered pairs r != s of its R > 1 draws.
    """

    image: Any  # [n, D, l] A times the probe
    diagonal: Any  # [n, D] of A
    mean: Any  # [n, D] the mean of its e
    square: Any  # [n, D] the mean of their squares
    trace_square: Any  # [n] the square of A's trace


def group_size(block: Block) -> int:
    """Returns D, how many latent variables a group of a block has."""
    return int(np.prod(block.latent_shape, dtype=int))


def standardise(block: int, base: Distribution, z_k: Array) -> Array:
    """Returns e_k = (z_k - mean) / std, which is N(0, I) under p(z_k | z_<k): [B, D].

    Args:
      block: of the group; named in the error.
      base: p(z_k | z_<k).
      z_k: [B, *latent_shape].

    Raises:
      InputError: for a base prior that is not `Normal`.
    """
    mean, std = moments(block, base)
    e = (z_k - mean) / std
    return e.reshape(len(z_k), -1).astype(jnp.float32)


def gives_means(vae: LatentVariableModel, x: Any) -> bool:
    """Whether `vae.encode(x, None)` works, so gives means; x [B, ...] or its shape."""
    encode: Any = vae.encode
    try:
        jax.eval_shape(lambda x: encode(x, None), x)
    except Exception:  # a model that knows no None fails in a way of its own
        return False
    return True


def over_batches(
    mesh: Mesh,
    vae: LatentVariableModel,
    batches: Sequence[Batch],
    prepare: Prepare,
    key: Array,
    probes: Sequence[np.ndarray | None],
    num_draws: int,
) -> tuple[Sums, ...]:
    """Sums over all examples.

    What example i adds depends on (key, i) alone: not on its batch or its device.

    Args:
      mesh: the devices that share a batch.
      vae: a frozen model.
      batches: stored examples and masks.
      prepare: (key, stored) -> x.
      key: PRNG key; may be used again, for the same draws.
      probes: per block [n, D, l], or None for the identity.
      num_draws: R, or 0 for the posterior means.

    Returns:
      Float64 sums per block.

    Raises:
      InputError: if encodings are not finite.
    """
    device_probes = [None if p is None else jnp.asarray(p, jnp.float32) for p in probes]
    impl = key.dtype  # of the generator
    # Processes can share what a key holds, not a key.
    everywhere = (vae, device_probes, jax.random.key_data(key))
    vae, device_probes, key_data = parallel.replicate(mesh, everywhere)
    totals: Any = None
    first = 0
    for stored, mask in batches:
        index = np.arange(first, first + len(mask), dtype=np.uint32)
        inputs = parallel.replicate(mesh, (index, stored, mask))
        found = _batch_sums(
            mesh, prepare, num_draws, impl, vae, device_probes, key_data, *inputs
        )
        found = jax.tree.map(
            lambda leaf: leaf.astype(np.float64), parallel.gather(found)
        )
        totals = jax.tree.map(np.add, totals, found) if first else found
        first += len(mask)
    for b, sums in enumerate(totals):
        if not np.isfinite(sums.square).all():
            raise InputError(
                f"encodings of block {b} are not finite: look for NaN in the examples "
                "or in the weights of stage 1"
            )
    return totals


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.default_matmul_precision("float32")  # TF32 has three digits
def _batch_sums(
    mesh: Mesh,
    prepare: Prepare,
    num_draws: int,
    impl: Any,
    vae: LatentVariableModel,
    probes: Sequence[Array | None],
    key_data: Array,
    index: Array,
    stored: Array,
    mask: Array,
) -> tuple[Sums, ...]:
    """The sums of one batch, the same on every device."""

    def share(
        vae: LatentVariableModel, probes: Any, key_data: Array, *inputs: Array
    ) -> tuple[Sums, ...]:
        key = jax.random.wrap_key_data(key_data, impl=impl)
        sums = _share_sums(prepare, num_draws, vae, probes, key, *inputs)
        return jax.lax.psum(sums, parallel.AXIS)

    whole, split = PartitionSpec(), PartitionSpec(parallel.AXIS)
    in_specs = (whole, whole, whole, split, split, split)
    sharded = jax.shard_map(
        share, mesh=mesh, in_specs=in_specs, out_specs=whole, check_vma=False
    )
    return sharded(vae, probes, key_data, index, stored, mask)


def _share_sums(
    prepare: Prepare,
    num_draws: int,
    vae: LatentVariableModel,
    probes: Sequence[Array | None],
    key: Array,
    index: Array,
    stored: Array,
    mask: Array,
) -> tuple[Sums, ...]:
    latents = _encoded(vae, prepare, key, index, stored, num_draws)
    num = max(num_draws, 1)

    def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> Sums:
        e = standardise(b, prior.base, z_k)
        e = jnp.where(mask[:, None, None], e.reshape(len(mask), num, -1), 0.0)
        rows, weights = e, jnp.ones((1, 1, 1))
        if num > 1:
            # sum_{r != s} e_r e_s^T = s s^T - sum_r e_r e_r^T with s = sum_r e_r
            rows = jnp.concatenate([jnp.sum(e, 1, keepdims=True), e], 1)
            signs = jnp.where(jnp.arange(num + 1) == 0, 1.0, -1.0)[None, :, None]
            weights = signs / (num * (num - 1))
        weighted = (weights * rows).reshape(-1, e.shape[-1])
        flat = rows.reshape(weighted.shape)
        probe = probes[b]
        trace = jnp.sum(weights * rows**2, (1, 2))  # [B]
        return Sums(
            image=weighted.T @ (flat if probe is None else flat @ probe[k]),
            diagonal=jnp.sum(weighted * flat, 0),
            mean=jnp.sum(e, (0, 1)) / num,
            square=jnp.sum(e**2, (0, 1)) / num,
            trace_square=jnp.sum(trace**2),
        )

    return walk(vae, latents, visit)[0]


def _encoded(
    vae: LatentVariableModel,
    prepare: Prepare,
    key: Array,
    index: Array,
    stored: Array,
    num_draws: int,
) -> Latents:
    """Means [n, B, *latent_shape], or the R draws of each x in a row [n, B R, ...]."""
    encode: Any = vae.encode

    def prepared(i: Array, one: Array) -> Array:
        return prepare(rng.at_step(rng.stream(key, "prepare"), i), one[None])[0]

    def draw(i: Array, r: Array, one: Array) -> Latents:
        draw_key = rng.at_step(rng.at_step(rng.stream(key, "posterior"), i), r)
        latents = encode(one[None], draw_key).latents
        return jax.tree.map(lambda leaf: leaf[:, 0], latents)

    x = jax.vmap(prepared)(index, stored)
    if not num_draws:
        return encode(x, None).latents
    of_each = jax.vmap(draw, (None, 0, None), 1)  # [n, R, *latent_shape]
    latents = jax.vmap(of_each, (0, None, 0), 1)(index, jnp.arange(num_draws), x)
    return jax.tree.map(
        lambda leaf: leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:]), latents
    )
