"""What stage 2, the samplers and the likelihoods may ask of a VAE.

A VAE of any architecture joins by offering its latent groups z_1 .. z_K, coarse to
fine, in `blocks`: runs of groups of equal structure.  Whatever loops over groups then
is one `lax.scan` per block, so program size does not grow with K.

At the end stands what VAEs of one vector under N(0, I) share, whatever their networks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models.distributions import (
    Distribution,
    Likelihood,
    Normal,
    standard_normal,
)

Array = jax.Array
Latents = tuple[Array, ...]  # one array per block: [num_groups, B, *latent_shape]
Carry = Any  # the VAE's own top-down state after some groups; opaque to everyone else


class Block(NamedTuple):
    """A run of groups of equal structure."""

    num_groups: int
    latent_shape: tuple[int, ...]
    context_shape: tuple[int, ...]  # (0,) where there is nothing to condition on


class GroupPrior(NamedTuple):
    """p(z_k | z_<k) and the feature c(z_<k) that discriminator k may read (Eq. 4)."""

    base: Distribution  # over z_k: [B, *latent_shape]
    context: Array  # [B, *context_shape]


class Encoding(NamedTuple):
    """One draw z ~ q(z | x) and its log density, group by group."""

    latents: Latents
    log_q: Array  # [B, K] log q(z_k | z_<k, x), nats


class ElboTerms(NamedTuple):
    """The terms of Eq. (2) for each example, which stage 1 weighs and sums."""

    log_likelihood: Array  # [B] log p(x | z), one z ~ q(z | x), nats
    kl: Array  # [B, K] KL(q(z_k | z_<k, x) || p(z_k | z_<k)) or its estimate, nats


class Objective(NamedTuple):
    """What stage 1 minimises where that is no evidence bound: the sum of these terms.

    Each counts as it is, in units of its own.  A module that is trained so offers
    `objective(x, key, mask)` in the place of `elbo_terms`.
    """

    of_examples: dict[str, Array]  # [B] each, averaged over the examples
    of_batch: dict[str, Array]  # [] each, of all the batch or of the weights


class LatentVariableModel(Protocol):
    """Five methods and `blocks`: all that a prior on top of a VAE needs.

    The model is a pytree of its variables and its methods are pure (`FrozenVAE` makes
    both of a Linen module).  `block` is a Python int; `k` counts the groups inside the
    block and may be traced.  `absorb` keeps the shapes and dtypes of the carry, its
    last call in a block included, so that a block is one `lax.scan`; where resolutions
    differ between blocks, the carry holds the state of every resolution.

    A VAE of one group may offer one method more, `posterior(x) -> Normal`: q(z | x)
    itself, which priors that are made of posteriors need.  One whose z is a function of
    x has the attribute `is_deterministic`, which is True: then q(z | x) has no density,
    and nothing asks for likelihoods.
    """

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The latent groups, coarse to fine."""
        ...

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x) for x [B, *data_shape]."""
        ...

    def root(self, batch_size: int) -> Carry:
        """The state before any group is known."""
        ...

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """p(z_k | z_<k), where `carry` has absorbed z_<k."""
        ...

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state after z_k [B, *latent_shape] is known."""
        ...

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z), once every group is absorbed."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenVAE:
    """A Linen VAE closed over its variables: a `LatentVariableModel`.

    Gradients reach z (Langevin needs them) but never the variables, so no stage-2 code
    can train stage 1.
    """

    module: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Any

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The latent groups, coarse to fine."""
        return self.module.blocks

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x)."""
        return self._apply("encode", x, key)

    def root(self, batch_size: int) -> Carry:
        """The state before any group is known."""
        return self._apply("root", batch_size)

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """p(z_k | z_<k), where `carry` has absorbed z_<k."""
        return self._apply("prior", block, k, carry)

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state after z_k is known."""
        return self._apply("absorb", block, k, carry, z_k)

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z), once every group is absorbed."""
        return self._apply("decode", carry)

    def posterior(self, x: Array) -> Normal | None:
        """q(z | x) of a module that says it; None of another."""
        if not hasattr(self.module, "posterior"):
            return None
        return self._apply("posterior", x)

    @property
    def is_deterministic(self) -> bool:
        """Whether q(z | x) is a point."""
        return is_deterministic(self.module)

    def _apply(self, method: str, *args: Any) -> Any:
        variables = jax.lax.stop_gradient(self.variables)
        return self.module.apply(variables, *args, method=method)


class UnderNormal:
    """What VAEs of one latent group under N(0, I) share; their state is z itself."""

    def root(self: Any, batch_size: int) -> Carry:
        """Zeros in the place of z."""
        (block,) = self.blocks
        return jnp.zeros((batch_size, *block.latent_shape))

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """N(0, I), with an empty context."""
        del block, k
        return GroupPrior(standard_normal(carry), jnp.zeros((carry.shape[0], 0)))

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state is z itself."""
        del block, k, carry
        return z_k


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderDecoder(UnderNormal):
    """A VAE of one latent group under p(z) = N(0, I), made of two functions.

    A `LatentVariableModel`.  Gradients reach z, and never the variables.

    Attributes:
      encoder: (variables, x [B, *data_shape]) -> q(z | x), a `Normal` whose mean is
        [B, *latent_shape], as its std is, or one number.
      decoder: (variables, z [B, *latent_shape]) -> p(x | z), such as `Bernoulli`.
      variables: a pytree of arrays, the weights of both; None where the functions hold
        them.
      latent_shape: of one z.
      is_deterministic: whether z is a function of x, as in an autoencoder: then std is
        0, and nothing asks for likelihoods.
    """

    encoder: Callable[[Any, Array], Normal] = dataclasses.field(
        metadata={"static": True}
    )
    decoder: Callable[[Any, Array], Likelihood] = dataclasses.field(
        metadata={"static": True}
    )
    variables: Any
    latent_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    is_deterministic: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One group and nothing to condition it on."""
        return (Block(1, self.latent_shape, (0,)),)

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x)."""
        return _drawn(self.posterior(x), key)

    def posterior(self, x: Array) -> Normal:
        """q(z | x)."""
        return self.encoder(jax.lax.stop_gradient(self.variables), x)

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z)."""
        return self.decoder(jax.lax.stop_gradient(self.variables), carry)


def is_deterministic(model: Any) -> bool:
    """Whether a model says that its q(z | x) is a point, which has no density."""
    return bool(getattr(model, "is_deterministic", False))


class OneVectorVAE(UnderNormal, nn.Module):
    """A Linen VAE whose z is one vector under N(0, I).

    A subclass has `encode` and `decode`.

    Attributes:
      data_shape: shape of one x.
      latent_dim: size of z.
    """

    data_shape: tuple[int, ...]
    latent_dim: int = 50

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One group and nothing to condition it on."""
        return (Block(1, (self.latent_dim,), (0,)),)


class GaussianVAE(OneVectorVAE):
    """The same with a normal q(z | x), and so an evidence bound.

    A subclass has `posterior` and `decode`.
    """

    def __call__(self, x: Array, key: Array) -> ElboTerms:
        """Same as `elbo_terms`; what `init` runs."""
        return self.elbo_terms(x, key)

    def elbo_terms(self, x: Array, key: Array) -> ElboTerms:
        """The two terms of Eq. (1), the KL in closed form."""
        posterior = self.posterior(x)
        z = posterior.sample(key)
        return ElboTerms(
            log_likelihood=self.decode(z).log_prob(x),
            kl=posterior.kl(standard_normal(z))[:, None],
        )

    def encode(self, x: Array, key: Array) -> Encoding:
        """Draws z ~ q(z | x)."""
        return _drawn(self.posterior(x), key)

    def posterior(self, x: Array) -> Normal:
        """q(z | x) of x [B, *data_shape]: mean and std [B, latent_dim]."""
        raise NotImplementedError

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for z [B, latent_dim]."""
        raise NotImplementedError


def _drawn(posterior: Normal, key: Array) -> Encoding:
    """A draw of the only group."""
    z = posterior.sample(key)
    return Encoding((z[None],), posterior.log_prob(z)[:, None])
