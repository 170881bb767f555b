"""A frozen VAE of one latent vector: z [B, D] in and out, and its encodings."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation import diagnostics
from ncp_jax.models.base import (
    Block,
    Latents,
    LatentVariableModel,
    is_deterministic,
)
from ncp_jax.models.distributions import Distribution, Likelihood, Normal
from ncp_jax.models.shared import Shared
from ncp_jax.priors.ex_post.contract import Density, Encodings, LatentPrior
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.priors.latents import prior_of
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp.returned_numbers import FAULTS

Array = jax.Array


class Compared(Protocol):
    """A frozen VAE as the comparison sees it: z [B, D] in and out."""

    @property
    def is_deterministic(self) -> bool:
        """Whether z is a function of x, so that q(z | x) has no density."""
        ...

    def encode(self, x: Array, key: Array) -> tuple[Array, Array]:
        """Draws z ~ q(z | x): z [B, D] and log q(z | x) [B], nats."""
        ...

    def decode(self, z: Array) -> Likelihood:
        """p(x | z) of z [B, D]."""
        ...

    def base(self) -> LatentPrior:
        """What the VAE's own prior is over `learned(z)`."""
        ...

    def posterior(self, x: Array) -> Normal | None:
        """q of `learned(z)`, where the VAE says it."""
        ...

    def learned(self, z: Array) -> Array:
        """The part [B, D'] of z that priors are fitted to."""
        ...

    def whole(self, prior: LatentPrior) -> LatentPrior:
        """A prior over z from one over `learned(z)`."""
        ...

    def own_latents(self, z: Array) -> Latents:
        """z [B, D] as the VAE has it, per block [num_groups, B, *latent_shape]."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneVector:
    """A VAE whose only group, of any shape, is a vector here.

    Attributes:
      vae: the model.
    """

    vae: LatentVariableModel

    def encode(self, x: Array, key: Array) -> tuple[Array, Array]:
        """Draws z ~ q(z | x): z [B, D] and log q(z | x) [B], nats."""
        (z,), log_q = self.vae.encode(x, key)
        return z[0].reshape(len(x), -1), log_q[:, 0]

    def decode(self, z: Array) -> Likelihood:
        """p(x | z) of z [B, D]."""
        shape = self.vae.blocks[0].latent_shape
        root = self.vae.root(len(z))
        return self.vae.decode(self.vae.absorb(0, 0, root, z.reshape(-1, *shape)))

    @property
    def is_deterministic(self) -> bool:
        """Whether z is a function of x, so that q(z | x) has no density."""
        return is_deterministic(self.vae)

    def base(self) -> LatentPrior:
        """p(z) of the VAE itself."""
        base = prior_of(self.vae, 0, 0, self.vae.root(1), 1).base
        if isinstance(base, Normal):
            return Gaussian(base.mean.reshape(-1), base.std.reshape(-1))
        if isinstance(base, Shared):
            return base.one
        return OfVAE(base, tuple(self.vae.blocks[0].latent_shape))

    def posterior(self, x: Array) -> Normal | None:
        """q(z | x), mean and std [B, D]; None where it is not said, or a point."""
        method = None if self.is_deterministic else getattr(self.vae, "posterior", None)
        q = None if method is None else method(x)
        if not isinstance(q, Normal):
            return None
        std = jnp.broadcast_to(q.std, q.mean.shape)  # it may be one number
        return Normal(q.mean.reshape(len(x), -1), std.reshape(len(x), -1))

    def learned(self, z: Array) -> Array:
        """What of z [B, D] priors are fitted to: all of it."""
        return z

    def whole(self, prior: LatentPrior) -> LatentPrior:
        """A prior over z from one over `learned(z)`: itself."""
        return prior

    def own_latents(self, z: Array) -> Latents:
        """z [B, D] as the VAE has it: one block [1, B, *latent_shape]."""
        return (z.reshape(1, len(z), *self.vae.blocks[0].latent_shape),)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfVAE:
    """A VAE's own prior that is not `Normal`.

    Attributes:
      one: the distribution of a batch of one.
      latent_shape: of z.
    """

    density: ClassVar[Density] = "exact"

    one: Distribution
    latent_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""
        return jax.vmap(lambda key: self.one.sample(key).reshape(-1))(keys)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        z = z.reshape(-1, 1, *self.latent_shape)
        return jax.vmap(self.one.log_prob)(z)[:, 0]


def of(vae: LatentVariableModel) -> OneVector:
    """Returns the VAE as the comparison sees it.

    Raises:
      InputError: it has more than one group.
    """
    check(vae.blocks)
    return OneVector(vae)


def check(blocks: Sequence[Block]) -> None:
    """Refuses the groups of a VAE that has more than one.

    Raises:
      InputError: saying how many there are.
    """
    num_groups = sum(block.num_groups for block in blocks)
    if num_groups != 1:
        raise InputError(
            f"the VAE has {num_groups} latent groups: priors are compared on VAEs of "
            "one, since each is of one vector z; of several groups ncp_jax.fit "
            "(--stage=ncp) reweights each given those before"
        )


def encodings(
    model: Compared,
    train: np.ndarray,
    valid: np.ndarray,
    prepare: Prepare,
    key: Array,
    *,
    num_draws: int,
    num_valid_draws: int,
    batch_size: int,
) -> Encodings:
    """Draws z ~ q(z | x) of training and validation examples, what priors learn from.

    Args:
      model: the frozen VAE.
      train: [N, *data_shape] as stored.
      valid: [M, *data_shape].
      prepare: (key, stored) -> x; its noise is fresh in every draw.
      key: PRNG key; consumed here.
      num_draws: of each training example.
      num_valid_draws: of each validation example.
      batch_size: examples at a time.
    """
    z, q = _encoded(
        model, train, prepare, rng.stream(key, "train"), num_draws, batch_size
    )
    held_out, _ = _encoded(
        model, valid, prepare, rng.stream(key, "valid"), num_valid_draws, batch_size
    )
    return Encodings(jnp.asarray(z), jnp.asarray(held_out), jax.jit(_base)(model), q)


def _base(model: Compared) -> LatentPrior:
    return model.base()


def draws(
    model: Compared, stored: np.ndarray, prepare: Prepare, key: Array, batch_size: int
) -> np.ndarray:
    """One z ~ q(z | x) of each stored example, all of it: [N, D]."""
    parts = _encoded(model, stored, prepare, key, 1, batch_size, is_whole=True)
    return parts[0][:, 0]


def _encoded(
    model: Compared,
    stored: np.ndarray,
    prepare: Prepare,
    key: Array,
    num_draws: int,
    batch_size: int,
    is_whole: bool = False,
) -> tuple[np.ndarray, Normal | None]:
    encode = partial(_encode, prepare, num_draws, is_whole, model)
    batches = datasets.padded_batches(stored, min(batch_size, len(stored)))
    z, q = diagnostics.over_examples(encode, batches, key)
    is_finite = np.isfinite(z).reshape(len(z), -1).all(axis=1)
    if not is_finite.all():
        raise InputError(
            f"{FAULTS['latents']} (of {np.sum(~is_finite)} of {len(z)} examples)"
        )
    return z, None if q is None else Normal(*map(jnp.asarray, q))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    prepare: Prepare,
    num_draws: int,
    is_whole: bool,
    model: Compared,
    stored: Array,
    key: Array,
) -> tuple[Array, Normal | None]:
    """z of one batch [B, num_draws, D], and q(z | x) of its first x."""

    def draw(i: Array) -> Array:
        of_draw = rng.at_step(key, i)
        x = prepare(rng.stream(of_draw, "prepare"), stored)
        z, _ = model.encode(x, rng.stream(of_draw, "posterior"))
        return z if is_whole else model.learned(z)

    z = jax.lax.map(draw, jnp.arange(num_draws))
    x = prepare(rng.stream(rng.at_step(key, 0), "prepare"), stored)
    return z.swapaxes(0, 1), model.posterior(x)
