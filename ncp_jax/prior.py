"""The noise contrastive prior (1/Z) prod_k r_k(z_k | z_<k) p(z_k | z_<k), Sec. 4."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng, samplers
from ncp_jax.distributions import Distribution
from ncp_jax.latents import walk
from ncp_jax.models.base import Carry, GroupPrior, Latents, LatentVariableModel

Array = jax.Array
PyTree = Any
LogRatio = Callable[[Array], Array]  # z_k [B, *latent_shape] -> log r_k [B]
# One group: (key, p(z_k | z_<k), log r_k) -> (z_k, info)
DrawGroup = Callable[[Array, Distribution, LogRatio], tuple[Array, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NCPPrior:
    """A frozen VAE and one discriminator per latent group.

    Attributes:
      vae: the model whose base prior is reweighted.
      discriminator: the network; its parameters are apart, one set per group.
      params: per block, the discriminators' parameters stacked [num_groups, ...].
    """

    vae: LatentVariableModel
    discriminator: nn.Module = dataclasses.field(metadata={"static": True})
    params: tuple[PyTree, ...]

    def log_ratio(
        self, block: int, k: Array | int, z_k: Array, context: Array
    ) -> Array:
        """log r_k(z_k, c) for z_k [B, *latent_shape] and its context: [B], nats."""
        params = jax.tree.map(lambda stacked: stacked[k], self.params[block])
        log_r = self.discriminator.apply({"params": params}, z_k, context)
        chex.assert_shape(log_r, (z_k.shape[0],))
        return log_r

    def terms(self, latents: Latents) -> tuple[Array, Array, Carry]:
        """log p and log r of every group at given z, and the state to decode.

        Returns:
          log p(z_k | z_<k) [B, K], log r_k(z_k | z_<k) [B, K], both in nats, and what
          `vae.decode` takes.
        """

        def visit(
            b: int, k: Array, prior: GroupPrior, z_k: Array
        ) -> tuple[Array, Array]:
            log_r = self.log_ratio(b, k, z_k, prior.context)
            return prior.base.log_prob(z_k), log_r

        per_block, carry = walk(self.vae, latents, visit)
        log_p, log_r = (
            jnp.concatenate(parts).T for parts in zip(*per_block, strict=True)
        )
        return log_p, log_r, carry


class Draws(NamedTuple):
    """A batch of ancestral draws."""

    latents: Latents
    carry: Carry  # the model's state after the last group: what `decode` takes
    infos: tuple[Any, ...]  # per block, the sampler's info with a leading group axis


def ancestral(prior: NCPPrior, key: Array, num_chains: int, draw: DrawGroup) -> Draws:
    """Draws group after group, each given those before (Sec. 4.4); one scan per block.

    With one group exact draws follow p_NCP.  With several, group k is drawn from
    r_k p_k / Z_k(z_<k), and the product of those is p_NCP only as far as Z_k does not
    depend on z_<k; an ideal classifier has Z_k = 1.

    Args:
      prior: the NCP.
      key: PRNG key; consumed here.
      num_chains: B, how many z to draw.
      draw: how one group is drawn: `by_base`, `by_sir`, `by_langevin` or your own.
    """
    vae = prior.vae
    carry = vae.root(num_chains)
    latents, infos = [], []
    for b, block in enumerate(vae.blocks):
        block_key = rng.at_step(key, b)

        def step(
            carry: Carry, k: Array, b: int = b, block_key: Array = block_key
        ) -> tuple[Carry, tuple[Array, Any]]:
            base, context = vae.prior(b, k, carry)
            z_k, info = draw(
                rng.at_step(block_key, k),
                base,
                lambda z_k: prior.log_ratio(b, k, z_k, context),
            )
            return vae.absorb(b, k, carry, z_k), (z_k, info)

        carry, (z, info) = jax.lax.scan(step, carry, jnp.arange(block.num_groups))
        latents.append(z)
        infos.append(info)
    return Draws(tuple(latents), carry, tuple(infos))


class Generated(NamedTuple):
    """Pictures and where they came from, on the host."""

    images: np.ndarray  # [N, *data_shape] E[x | z]
    latents: tuple[np.ndarray, ...]  # per block [num_groups, N, *latent_shape]
    infos: tuple[Any, ...]  # per block, the sampler's info; chains are its last axis


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def generate(
    prior: NCPPrior, key: Array, num_images: int, batch_size: int, draw: DrawGroup
) -> Generated:
    """Draws and decodes `num_images`, `batch_size` chains at a time.

    Args:
      prior: the NCP.
      key: PRNG key; consumed here.
      num_images: N.
      batch_size: chains per compiled call.
      draw: how one group is drawn; see `ancestral`.
    """

    @jax.jit
    def one_batch(prior: NCPPrior, key: Array) -> tuple[Array, Latents, Any]:
        draws = ancestral(prior, key, batch_size, draw)
        return prior.vae.decode(draws.carry).mean, draws.latents, draws.infos

    num_batches = -(-num_images // batch_size)
    batches = [
        jax.device_get(one_batch(prior, rng.at_step(key, i)))
        for i in range(num_batches)
    ]

    def join(axis: int, *leaves: np.ndarray) -> np.ndarray:
        joined = np.concatenate(leaves, axis)
        return joined.take(range(num_images), axis)

    images, latents, infos = zip(*batches, strict=True)
    return Generated(
        images=join(0, *images),
        latents=jax.tree.map(partial(join, 1), *latents),
        infos=jax.tree.map(partial(join, -1), *infos),
    )


def base_draw_ratios(prior: NCPPrior, key: Array, num_draws: int) -> Array:
    """log r_k along `num_draws` ancestral draws from the base prior: [K, num_draws].

    The mean of exp of the sum over groups is unbiased for Z.
    """

    def draw(key: Array, base: Distribution, log_r: LogRatio) -> tuple[Array, Array]:
        z_k = base.sample(key)
        return z_k, log_r(z_k)

    return jnp.concatenate(ancestral(prior, key, num_draws, draw).infos)


def by_base(temperature: float = 1.0) -> DrawGroup:
    """Draws from the base prior, its standard deviation times `temperature`.

    A temperature other than 1 needs a base prior with the method `tempered`.
    """

    def draw(key: Array, base: Distribution, log_r: LogRatio) -> tuple[Array, None]:
        del log_r
        if temperature != 1.0:
            base = base.tempered(temperature)  # type: ignore[attr-defined]
        return base.sample(key), None

    return draw


def by_sir(num_proposals: int = 5_000, chunk_size: int = 500) -> DrawGroup:
    """Draws by sampling-importance-resampling; see `samplers.sir`."""

    def draw(
        key: Array, base: Distribution, log_r: LogRatio
    ) -> tuple[Array, samplers.SIRInfo]:
        return samplers.sir(
            key,
            lambda keys: _sample_each(keys, base),
            log_r,
            num_chains=jax.tree.leaves(base)[0].shape[0],
            num_proposals=num_proposals,
            chunk_size=chunk_size,
        )

    return draw


def by_langevin(step_size: float, num_steps: int) -> DrawGroup:
    """Draws by Langevin dynamics started at the base prior; see `samplers.langevin`."""

    def draw(
        key: Array, base: Distribution, log_r: LogRatio
    ) -> tuple[Array, samplers.LangevinInfo]:
        return samplers.langevin(
            rng.stream(key, "langevin"),
            base.sample(rng.stream(key, "initial")),
            lambda z: base.log_prob(z) + log_r(z),
            step_size=step_size,
            num_steps=num_steps,
        )

    return draw


def _sample_each(keys: Array, base: Distribution) -> Array:
    """One draw per chain, chain b from keys[b] alone: [B, *latent_shape]."""

    def draw(chain_key: Array, one: Distribution) -> Array:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], one)
        return batch_of_one.sample(chain_key)[0]

    return jax.vmap(draw)(keys, base)
