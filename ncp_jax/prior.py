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
from ncp_jax.distributions import Distribution, Normal
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
      groups: numbers (of 0 .. K-1) of the groups that are reweighted, the others keep
        r_k = 1; None for all.
    """

    vae: LatentVariableModel
    discriminator: nn.Module = dataclasses.field(metadata={"static": True})
    params: tuple[PyTree, ...]
    groups: tuple[int, ...] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def log_ratio(self, block: int, k: Array | int, context: Array) -> LogRatio:
        """Returns z_k [B, *latent_shape] -> log r_k(z_k, c) [B], in nats.

        What depends on the context alone is computed here, once for all z_k.

        Args:
          block: of the group.
          k: its number in the block; may be traced.
          context: [B, *context_shape].
        """
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

    def is_reweighted(self, block: int, k: Array | int) -> Array:
        """Whether r_k counts: [] bool."""
        sizes = [block.num_groups for block in self.vae.blocks]
        chosen = range(sum(sizes)) if self.groups is None else self.groups
        return jnp.isin(k + sum(sizes[:block]), jnp.array(chosen, jnp.int32))

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
            log_r = prior.log_ratio(b, k, context)
            group_key = rng.at_step(block_key, k)
            if prior.groups is None:
                z_k, info = draw(group_key, base, log_r)
            else:
                z_k, info = jax.lax.cond(
                    prior.is_reweighted(b, k),
                    lambda: draw(group_key, base, log_r),
                    lambda: _from_base(group_key, base, draw),
                )
            return vae.absorb(b, k, carry, z_k), (z_k, info)

        carry, (z, info) = jax.lax.scan(step, carry, jnp.arange(block.num_groups))
        latents.append(z)
        infos.append(info)
    return Draws(tuple(latents), carry, tuple(infos))


def _from_base(key: Array, base: Distribution, draw: DrawGroup) -> tuple[Array, Any]:
    """A draw from p where r = 1, with zeros in the place of the sampler's info."""

    def log_r(z_k: Array) -> Array:
        return jnp.zeros(z_k.shape[0])

    _, info = jax.eval_shape(lambda: draw(key, base, log_r))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    return base.sample(key), zeros


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


def by_langevin(step_size: float, num_steps: int, in_noise: bool = False) -> DrawGroup:
    """Draws by Langevin dynamics started at the base prior; see `samplers.langevin`.

    Args:
      step_size: lambda.
      num_steps: updates.
      in_noise: moves e in z = mean + std * e instead of z, so that one step size suits
        groups of any scale; needs a `Normal` base prior.  The paper moves z.
    """

    def draw(
        key: Array, base: Distribution, log_r: LogRatio
    ) -> tuple[Array, samplers.LangevinInfo]:
        initial = base.sample(rng.stream(key, "initial"))
        to_z: Callable[[Array], Array] = _same
        log_p = base
        if in_noise:
            mean, std = base.mean, base.std  # type: ignore[attr-defined]
            initial = (initial - mean) / std
            log_p = Normal(jnp.zeros_like(mean), jnp.ones_like(std))
            to_z = partial(_scaled, mean, std)
        final, info = samplers.langevin(
            rng.stream(key, "langevin"),
            initial,
            lambda moved: log_p.log_prob(moved) + log_r(to_z(moved)),
            step_size=step_size,
            num_steps=num_steps,
        )
        return to_z(final), info

    return draw


def _same(z: Array) -> Array:
    return z


def _scaled(mean: Array, std: Array, noise: Array) -> Array:
    return mean + std * noise


def _sample_each(keys: Array, base: Distribution) -> Array:
    """One draw per chain, chain b from keys[b] alone: [B, *latent_shape]."""

    def draw(chain_key: Array, one: Distribution) -> Array:
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], one)
        return batch_of_one.sample(chain_key)[0]

    return jax.vmap(draw)(keys, base)
