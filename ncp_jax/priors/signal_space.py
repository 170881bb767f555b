"""A hierarchical VAE in the few directions of its noise in which q and p differ.

Write e_k = (z_k - mean_k(z_<k)) / std_k(z_<k).  Under the prior all e_k are independent
and standard normal, whatever z_<k is.  With the signal directions U_k of each group
(`directions.Directions`), e_k = U_k u_k + (1 - U_k U_k^T) w_k, and u = (u_1 .. u_K) and
w are standard normal too.  So the same VAE has the latents u, then w: first K short
vectors, whose ratio r_k(u_k | u_<k) needs neither the decoder nor the rest of z, then
the groups as they were, which keep r = 1 and are filled in while the decoder runs once.

`SignalVAE` is that view, a `LatentVariableModel` like any other: samplers, bounds and
log Z take it as it is.  `SignalCoordinates` is its first part alone, which stage 2
trains on.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.base import (
    Block,
    Encoding,
    GroupPrior,
    Latents,
    LatentVariableModel,
)
from ncp_jax.models.distributions import Likelihood, Normal, sum_non_batch
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.latents import walk
from ncp_jax.priors.standardized import StandardizedCarry, StandardizedVAE

Array = jax.Array

LOG_2PI = 1.8378770664093453


class PaddedNormal(NamedTuple):
    """Standard normal coordinates where `std` is 1; where it is 0 they are 0."""

    std: Array  # [B, m] of zeros and ones, or times a temperature

    @property
    def mean(self) -> Array:
        """Zeros [B, m]."""
        return jnp.zeros_like(self.std)

    def sample(self, key: Array) -> Array:
        """One draw: [B, m]."""
        return self.std * jax.random.normal(key, self.std.shape, self.std.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log density of the coordinates that are there: [B], nats."""
        is_there = self.std > 0
        std = jnp.where(is_there, self.std, 1.0)
        each = -0.5 * ((value / std) ** 2 + LOG_2PI) - jnp.log(std)
        return sum_non_batch(jnp.where(is_there, each, 0.0))

    def standardization(self) -> tuple[Array, Array]:
        """(mean, std): mean + std * e with e ~ N(0, I) is a draw."""
        return self.mean, self.std

    def tempered(self, temperature: float | Array) -> Self:
        """The standard deviation times `temperature`."""
        return self._replace(std=self.std * temperature)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignalCoordinates:
    """The coordinates u of all groups alone: K groups of equal shape, no decoder.

    Its x are stored encodings u [B, K, m], so that "encoding" costs nothing.

    Attributes:
      is_used: [K, m] zeros and ones; the rest is padding.
      context_size: leading coordinates of every earlier group that r_k may read.
    """

    is_used: Array
    context_size: int = dataclasses.field(metadata={"static": True})

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One block of all groups; the context is that of all earlier groups."""
        num_groups, width = self.is_used.shape
        size = min(self.context_size, width)  # there may be fewer directions
        size = num_groups * size if num_groups > 1 else 0
        return (Block(num_groups, (width,), (size,)),)

    def encode(self, x: Array, key: Array) -> Encoding:
        """The stored coordinates themselves."""
        del key
        return Encoding((x.swapaxes(0, 1),), jnp.zeros(x.shape[:2]))

    def root(self, batch_size: int) -> Array:
        """No group is known: zeros [B, K, m]."""
        return jnp.zeros((batch_size, *self.is_used.shape))

    def prior(self, block: int, k: Array | int, carry: Array) -> GroupPrior:
        """N(0, 1) in every used coordinate, and the earlier groups' first ones."""
        std = jnp.broadcast_to(self.is_used[k][None], carry.shape[::2])
        _, _, (size,) = self.blocks[block]
        context = carry[..., : self.context_size] if size else carry[:, :0]
        return GroupPrior(PaddedNormal(std), context.reshape(len(carry), -1))

    def absorb(self, block: int, k: Array | int, carry: Array, z_k: Array) -> Array:
        """Writes u_k [B, m] in its place."""
        del block
        return carry.at[:, k].set(z_k)

    def decode(self, carry: Array) -> Likelihood:
        """There is no decoder here: `SignalVAE` has it."""
        raise NotImplementedError("coordinates alone cannot be decoded")


class SignalCarry(NamedTuple):
    """The state of a `SignalVAE`."""

    u: Array  # [B, K', m'] of `SignalCoordinates`
    inner: StandardizedCarry  # of the VAE, once groups are filled in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignalVAE:
    """A VAE whose latents are the coordinates u, then the rest w of every group.

    Attributes:
      vae: the model; its base priors are `Normal`.
      directions: U_k of its groups.
      context_size: leading coordinates of every earlier group that r_k may read.
      is_joint: all of u is one group, for one ratio over all of it.
    """

    vae: LatentVariableModel
    directions: Directions
    context_size: int = dataclasses.field(default=16, metadata={"static": True})
    is_joint: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def coordinates(self) -> SignalCoordinates:
        """The first block alone."""
        width = self.directions.basis[0].shape[-1]
        is_used = jnp.arange(width)[None] < jnp.array(self.directions.widths)[:, None]
        is_used = is_used.astype(jnp.float32)  # [K, m]
        if self.is_joint:
            return SignalCoordinates(is_used.reshape(1, -1), 0)
        return SignalCoordinates(is_used, self.context_size)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The coordinates, then the VAE's own blocks, with nothing to condition on."""
        rest = (block._replace(context_shape=(0,)) for block in self.vae.blocks)
        return (*self.coordinates.blocks, *rest)

    def chosen(self, groups: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Those of some groups, None for all, that have a direction; None for all K.

        None at all, (), where no group has signal: the prior is the base prior.
        """
        if self.is_joint and any(self.directions.widths):
            return None
        return self.directions.chosen(groups)

    @property
    def standardized(self) -> StandardizedVAE:
        """The VAE in e, of which u and w are made."""
        return StandardizedVAE(self.vae)

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x) and turns it into u and w.

        w gets a standard normal draw of its own along U, which `absorb` drops; its
        density is the same under q and p.
        """
        latents, log_q = self.standardized.encode(x, rng.stream(key, "posterior"))
        noise_key = rng.stream(key, "complement")

        def parts(b: int, k: Array, e_k: Array) -> tuple[Array, Array, Array]:
            basis, e = self.directions.basis[b][k], e_k.reshape(len(e_k), -1)
            u, is_column = _times(e, basis), _is_column(basis)[None]
            group_key = rng.at_step(rng.at_step(noise_key, b), k)
            own = jax.random.normal(group_key, u.shape) * is_column
            w = e + _times(own - u, basis.T)
            log_own = sum_non_batch(-0.5 * (own**2 + LOG_2PI) * is_column)
            return u, w.reshape(e_k.shape), log_own

        seen = [
            jax.lax.map(lambda each, b=b: parts(b, *each), (jnp.arange(len(e)), e))
            for b, e in enumerate(latents)
        ]
        coordinates, rest, log_own = zip(*seen, strict=True)
        u = jnp.concatenate(coordinates)  # [K, B, m]
        log_q_of_rest = log_q + jnp.concatenate(log_own).T
        if self.is_joint:
            u = u.swapaxes(0, 1).reshape(1, u.shape[1], -1)
        of_u = jnp.zeros((u.shape[1], u.shape[0]), log_q.dtype)
        return Encoding((u, *rest), jnp.concatenate([of_u, log_q_of_rest], 1))

    def root(self, batch_size: int) -> SignalCarry:
        """The state before any group is known."""
        return SignalCarry(
            self.coordinates.root(batch_size), self.standardized.root(batch_size)
        )

    def prior(self, block: int, k: Array | int, carry: SignalCarry) -> GroupPrior:
        """p(u_k) with its context; or p(w_k), standard normal."""
        if block == 0:
            return self.coordinates.prior(0, k, carry.u)
        shape = (len(carry.u), *self.vae.blocks[block - 1].latent_shape)
        standard = Normal(jnp.zeros(shape), jnp.ones(shape))
        return GroupPrior(standard, jnp.zeros((len(carry.u), 0)))

    def absorb(
        self, block: int, k: Array | int, carry: SignalCarry, z_k: Array
    ) -> SignalCarry:
        """Keeps u_k; or makes z_k of u_k and w_k, and the VAE absorbs it."""
        if block == 0:
            return carry._replace(u=self.coordinates.absorb(0, k, carry.u, z_k))
        b = block - 1
        basis = self.directions.basis[b][k]
        before = sum(block.num_groups for block in self.vae.blocks[:b])
        u = carry.u.reshape(len(carry.u), -1, basis.shape[1])[:, before + k]  # [B, m]
        w = z_k.reshape(len(z_k), -1)
        e = (w + _times(u - _times(w, basis), basis.T)).reshape(z_k.shape)
        return carry._replace(inner=self.standardized.absorb(b, k, carry.inner, e))

    def decode(self, carry: SignalCarry) -> Likelihood:
        """p(x | z), once every group is filled in."""
        return self.standardized.decode(carry.inner)

    def own_latents(self, carry: SignalCarry) -> Latents:
        """z of the VAE, per block [num_groups, B, *latent_shape], at the end."""
        return self.standardized.own_latents(carry.inner)

    def to_z(self, latents: Latents) -> Latents:
        """z of the VAE, per block, from u and w as `encode` and samplers give them."""
        _, carry = walk(self, latents, lambda *_: ())
        return self.own_latents(carry)


def _times(rows: Array, matrix: Array) -> Array:
    """A product in float32 proper: with TF32 u and w would not add up to e."""
    return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)


def _is_column(basis: Array) -> Array:
    """Which columns of a padded basis [D, m] are directions: [m] zeros and ones."""
    return (jnp.sum(basis**2, 0) > 0.5).astype(basis.dtype)
