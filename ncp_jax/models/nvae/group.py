"""One latent group of NVAE: its prior, its posterior and what absorbs its draw."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models.distributions import Normal
from ncp_jax.models.nvae.cells import DecoderCell
from ncp_jax.models.nvae.flows import FlowCell
from ncp_jax.models.nvae.layers import CellOptions, Conv

Array = jax.Array

MIN_STD = 1e-2


class GroupInput(NamedTuple):
    """What one step of the scan over groups reads.

    Attributes:
      tap: [B, H, W, C] encoder feature; None draws from the prior.
      key: of the draw; None takes the mean instead.
      temperature: [] factor on the prior's standard deviation.
    """

    tap: Array | None
    key: Array | None
    temperature: Array


class GroupOutput(NamedTuple):
    """One group's draw and its terms; without a tap all terms are zero."""

    z: Array  # [B, H, W, latent_channels]
    log_q: Array  # [B] log q(z_k | z_<k, x), nats
    log_p: Array  # [B] log p(z_k | z_<k), nats
    kl: Array  # [B] in closed form, or log_q - log_p where there are flows


def bounded_normal(mean: Array, log_std: Array) -> Normal:
    """Normal whose parameters are kept in (-5, 5) and whose std is above 0.01.

    Both pass 5 tanh(x / 5); even "N(0, I)" therefore has a std of 1.01.
    """
    mean, log_std = (5.0 * jnp.tanh(value / 5.0) for value in (mean, log_std))
    return Normal(mean, jnp.exp(log_std) + MIN_STD)


class LatentGroup(nn.Module):
    """The top-down cells, heads, flows and combiners of one group.

    Methods see the decoder tower as `feature` before this group's cells and as
    `context` after them, which is what the prior head reads.

    Attributes:
      is_first: the model's first group: no cells, and p(z_1) knows no parameters.
      latent_channels: channels of z.
      encoder_features: channels of the tap.
      decoder_features: channels of the decoder tower.
      num_cells: decoder cells before the heads.
      num_flows: flow cells on top of the Gaussian posterior.
      is_residual: posterior parameters are offsets from the prior's.
      options: shared by all cells.
    """

    is_first: bool
    latent_channels: int
    encoder_features: int
    decoder_features: int
    num_cells: int
    num_flows: int
    is_residual: bool
    options: CellOptions

    def setup(self) -> None:
        """Builds the submodules."""
        dtype = self.options.dtype
        num_cells = 0 if self.is_first else self.num_cells
        self.cells = [
            DecoderCell(self.decoder_features, options=self.options)
            for _ in range(num_cells)
        ]
        if not self.is_first:
            self.prior_head = Conv(2 * self.latent_channels, dtype=dtype)
        self.encoder_combiner = Conv(self.encoder_features, dtype=dtype)
        self.posterior_head = Conv(2 * self.latent_channels, 3, dtype=dtype)
        self.flows = [FlowCell(dtype) for _ in range(self.num_flows)]
        self.decoder_combiner = Conv(self.decoder_features, dtype=dtype)

    def __call__(self, feature: Array, inputs: GroupInput) -> tuple[Array, GroupOutput]:
        """Draws z from q (from p without a tap) and absorbs it; scanned over groups."""
        context = self.advance(feature)
        p_parameters = self.prior_parameters(context)
        prior = bounded_normal(*p_parameters)
        if inputs.tap is None:
            z = _draw(prior.tempered(inputs.temperature), inputs.key)
            zeros = jnp.zeros(z.shape[:1])
            return self.absorb(context, z), GroupOutput(z, zeros, zeros, zeros)
        posterior = self._posterior(context, inputs.tap, p_parameters)
        z = _draw(posterior, inputs.key)
        log_q = posterior.log_prob(z)
        for flow in self.flows:
            z = flow(z)
        log_p = prior.log_prob(z)
        kl = log_q - log_p if self.flows else posterior.kl(prior)
        return self.absorb(context, z), GroupOutput(z, log_q, log_p, kl)

    def advance(self, feature: Array) -> Array:
        """The context of this group."""
        for cell in self.cells:
            feature = cell(feature)
        return feature

    def prior(self, context: Array) -> Normal:
        """p(z_k | z_<k)."""
        return bounded_normal(*self.prior_parameters(context))

    def prior_parameters(self, context: Array) -> tuple[Array, Array]:
        """Unbounded mean and log std of p(z_k | z_<k)."""
        if self.is_first:
            zeros = jnp.zeros((*context.shape[:-1], self.latent_channels))
            return zeros, zeros
        return _halves(self.prior_head(nn.elu(context)))

    def absorb(self, context: Array, z: Array) -> Array:
        """The decoder tower once z is known."""
        both = jnp.concatenate([context, z.astype(context.dtype)], axis=-1)
        return self.decoder_combiner(both)

    def _posterior(
        self, context: Array, tap: Array, p_parameters: tuple[Array, Array]
    ) -> Normal:
        if self.is_first:
            hidden = nn.elu(self.encoder_combiner(nn.elu(tap)))
            return bounded_normal(*_halves(self.posterior_head(hidden)))
        hidden = tap + self.encoder_combiner(context)
        mean, log_std = _halves(self.posterior_head(hidden))
        if self.is_residual:
            mean, log_std = mean + p_parameters[0], log_std + p_parameters[1]
        return bounded_normal(mean, log_std)


def _halves(parameters: Array) -> tuple[Array, Array]:
    mean, log_std = jnp.split(parameters.astype(jnp.float32), 2, axis=-1)
    return mean, log_std


def _draw(normal: Normal, key: Array | None) -> Array:
    return normal.mean if key is None else normal.sample(key)
