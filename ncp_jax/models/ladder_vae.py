"""VAEs of a few groups of vectors, each given all before it; here fully connected.

z_1 .. z_K may differ in size, so each is a block of its own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.models.base import Block, Carry, ElboTerms, Encoding, GroupPrior
from ncp_jax.models.distributions import Likelihood, Normal, standard_normal
from ncp_jax.models.mlp_vae import MLP, likelihood_around, normal_of

Array = jax.Array


class VectorGroupsVAE(nn.Module):
    """What VAEs of groups of vectors share; their networks are in the subclasses.

    The state is all of z side by side, [B, d_1 + .. + d_K], with zeros in the place of
    the groups to come; the context of a group is z_<k itself.  A subclass has the
    methods below that raise `NotImplementedError`, and the constant `data_mean`.
    """

    @property
    def sizes(self) -> tuple[int, ...]:
        """d_1 .. d_K, the sizes of the groups."""
        raise NotImplementedError

    def features(self, x: Array) -> Any:
        """What all posteriors read of x [B, *data_shape]."""
        raise NotImplementedError

    def group_posterior(
        self, k: int, features: Any, before: Array, p: Normal
    ) -> Normal:
        """q(z_k | z_<k, x), where `before` is z_<k side by side and `p` its prior."""
        raise NotImplementedError

    def conditional(self, k: int, before: Array) -> Normal:
        """p(z_k | z_<k) of k > 0."""
        raise NotImplementedError

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for all groups side by side."""
        raise NotImplementedError

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One block per group."""
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        return tuple(
            Block(1, (size,), (start,))
            for size, start in zip(self.sizes, starts, strict=True)
        )

    def __call__(self, x: Array, key: Array) -> ElboTerms:
        """Same as `elbo_terms`; what `init` runs."""
        return self.elbo_terms(x, key)

    def elbo_terms(self, x: Array, key: Array | None) -> ElboTerms:
        """The terms of Eq. (2), each KL in closed form given the draw of z_<k.

        Args:
          x: [B, *data_shape].
          key: of the draw of z; None takes every mean instead.
        """
        latents, groups = self.infer(x, key)
        return ElboTerms(
            log_likelihood=self.decode(jnp.concatenate(latents, 1)).log_prob(x),
            kl=jnp.stack([q.kl(p) for q, p in groups], 1),
        )

    def encode(self, x: Array, key: Array | None) -> Encoding:
        """Draws z ~ q(z | x), or takes every mean where `key` is None."""
        latents, groups = self.infer(x, key)
        log_q = [q.log_prob(z) for z, (q, _) in zip(latents, groups, strict=True)]
        return Encoding(tuple(z[None] for z in latents), jnp.stack(log_q, 1))

    def infer(
        self, x: Array, key: Array | None
    ) -> tuple[list[Array], list[tuple[Normal, Normal]]]:
        """Draws z ~ q(z | x), group after group.

        Returns:
          z_k [B, d_k] of each group, and with it q(z_k | z_<k, x) and p(z_k | z_<k).
        """
        features, carry = self.features(x), self.root(x.shape[0])
        latents, groups = [], []
        for k in range(len(self.sizes)):
            before = carry[:, : sum(self.sizes[:k])]
            p = self.base(k, before)
            q = self.group_posterior(k, features, before, p)
            z_k = q.mean if key is None else q.sample(rng.at_step(key, k))
            carry = self.absorb(k, 0, carry, z_k)
            latents.append(z_k)
            groups.append((q, p))
        return latents, groups

    def root(self, batch_size: int) -> Carry:
        """Zeros in the place of z."""
        return jnp.zeros((batch_size, sum(self.sizes)))

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """p(z_k | z_<k), N(0, I) for the first group, with z_<k as context."""
        del k
        before = carry[:, : sum(self.sizes[:block])]
        return GroupPrior(self.base(block, before), before)

    def base(self, k: int, before: Array) -> Normal:
        """p(z_k | z_<k) of any k."""
        if k == 0:
            return standard_normal(jnp.zeros((before.shape[0], self.sizes[0])))
        return self.conditional(k, before)

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """Writes z_k in its place."""
        del k
        start = sum(self.sizes[:block])
        return carry.at[:, start : start + self.sizes[block]].set(z_k)


class LadderVAE(VectorGroupsVAE):
    """A fully connected VAE of K groups, coarse to fine.

    One trunk reads x minus the training mean; q(z_k | z_<k, x) has a hidden layer on
    its feature and z_<k, p(z_k | z_<k) is an MLP, and so is p(x | z), on all of z.

    Attributes:
      data_shape: shape of one x.
      latent_dims: sizes of z_1 .. z_K.
      hidden_dims: widths of the trunk's layers and of the priors'; the decoder's are
        reversed.
      activation: name of a function in `jax.nn`.
      is_residual_posterior: q's mean and scale are offsets and factors in units of p's,
        as in NVAE; else they are free.
      likelihood: "bernoulli" for x in {0, 1}, "normal" for real x.
      likelihood_std: standard deviation of the "normal" likelihood.
    """

    data_shape: tuple[int, ...]
    latent_dims: tuple[int, ...] = (4, 8, 16)
    hidden_dims: tuple[int, ...] = (300, 300)
    activation: str = "swish"
    is_residual_posterior: bool = True
    likelihood: str = "bernoulli"
    likelihood_std: float = 0.1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the groups."""
        return self.latent_dims

    def setup(self) -> None:
        """Builds the networks and the constant mean."""
        width, size = self.hidden_dims[-1], int(np.prod(self.data_shape))
        self.trunk = MLP(self.hidden_dims, self.activation)
        self.posteriors = [MLP((width, 2 * d), self.activation) for d in self.sizes]
        self.priors = [
            MLP((*self.hidden_dims, 2 * d), self.activation) for d in self.sizes[1:]
        ]
        self.decoder = MLP((*reversed(self.hidden_dims), size), self.activation)
        self.data_mean = self.variable(
            "statistics", "data_mean", jnp.zeros, self.data_shape
        )

    def features(self, x: Array) -> Array:
        """The trunk's last layer: [B, width]."""
        centred = (x - self.data_mean.value[None]).reshape(x.shape[0], -1)
        return getattr(jax.nn, self.activation)(self.trunk(centred))

    def group_posterior(
        self, k: int, features: Array, before: Array, p: Normal
    ) -> Normal:
        """q(z_k | z_<k, x)."""
        q = normal_of(self.posteriors[k](jnp.concatenate([features, before], 1)))
        if not self.is_residual_posterior:
            return q
        return Normal(p.mean + p.std * q.mean, p.std * q.std)

    def conditional(self, k: int, before: Array) -> Normal:
        """p(z_k | z_<k)."""
        return normal_of(self.priors[k - 1](before))

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for z [B, d_1 + .. + d_K]."""
        out = self.decoder(carry).reshape(-1, *self.data_shape)
        mean = self.data_mean.value
        return likelihood_around(out, mean, self.likelihood, self.likelihood_std)
