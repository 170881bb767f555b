"""NVAE, the deep hierarchical VAE of Vahdat & Kautz (2020), written from the paper.

Groups of one scale have equal structure, so their parameters carry a leading group
axis and every pass is one `nn.scan` per scale: program size and compile time do not
grow with the number of groups.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.base import Block, Carry, ElboTerms, Encoding, GroupPrior
from ncp_jax.models.distributions import (
    WHITE,
    Bernoulli,
    DiscretisedLogisticMixture,
    Likelihood,
    PixelNormal,
)
from ncp_jax.models.nvae.group import GroupOutput, bounded_normal
from ncp_jax.models.nvae.layers import CellOptions
from ncp_jax.models.nvae.layout import Layout
from ncp_jax.models.nvae.topdown import TopDown
from ncp_jax.models.nvae.towers import Encoder, PixelDecoder

Array = jax.Array


class NVAE(nn.Module):
    """Top-down hierarchical VAE with residual normal posteriors.

    Batch norm uses, and updates, batch statistics exactly where the collection
    "batch_stats" is mutable: training is `apply(..., mutable=["batch_stats"])`, and a
    frozen model uses its running statistics.  With "kernels" mutable as well, the pass
    also returns every convolution's kernel, for the spectral regulariser.

    Compiling `init` takes ten times as long with a threefry key as with one of
    `jax.random.key(seed, impl="rbg")`.

    Attributes:
      data_shape: (height, width, channels) of x, which lies in [0, 1].
      padding: zero pixels that the model adds on every side of x; the likelihood is
        that of the picture without them.
      groups_per_scale: number of latent groups of each scale, coarse to fine.
      latent_channels: channels of every z_k.
      encoder_channels: after the stem; they double wherever the resolution halves.
      decoder_channels: likewise, at full resolution.
      num_preprocess_blocks: halvings between x and the finest latent scale.
      num_preprocess_cells: cells of each such block.
      num_postprocess_cells: cells of each doubling on the way back to x.
      num_encoder_cells: encoder cells per group.
      num_decoder_cells: decoder cells per group.
      num_flows: volume-preserving flow cells per group.
      use_se: squeeze and excite in every cell.
      is_residual_posterior: q's parameters are offsets from p's.
      likelihood: "bernoulli", "logistic_mixture" or "normal".
      num_mixtures: components of a "logistic_mixture".
      num_bits: per channel of x, for a "logistic_mixture".
      white: of a "logistic_mixture"; see there.
      is_rematerialized: trades compute for memory in the gradient.
      dtype: of activations; parameters, statistics, z and densities are float32.
      axis_name: axis of `shard_map` over which batch norm averages; see `CellOptions`.
    """

    data_shape: tuple[int, int, int]
    padding: int = 0
    groups_per_scale: tuple[int, ...] = (5, 10)
    latent_channels: int = 20
    encoder_channels: int = 32
    decoder_channels: int = 32
    num_preprocess_blocks: int = 2
    num_preprocess_cells: int = 3
    num_postprocess_cells: int = 3
    num_encoder_cells: int = 2
    num_decoder_cells: int = 2
    num_flows: int = 0
    use_se: bool = True
    is_residual_posterior: bool = True
    likelihood: str = "bernoulli"
    num_mixtures: int = 10
    num_bits: int = 8
    white: float = WHITE
    is_rematerialized: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The first group alone, then the (other) groups of each scale."""
        return self.layout.blocks(self.latent_channels, self.decoder_channels)

    @property
    def layout(self) -> Layout:
        """Sizes of the latent groups."""
        return Layout(
            self.data_shape,
            self.padding,
            self.num_preprocess_blocks,
            self.groups_per_scale,
        )

    @property
    def _num_outputs(self) -> int:
        """Parameters of p(x | z) per pixel; the mixture's are for RGB."""
        numbers = {
            "bernoulli": self.data_shape[-1],
            "normal": 2 * self.data_shape[-1],
            "logistic_mixture": 10 * self.num_mixtures,
        }
        if self.likelihood not in numbers:
            raise InputError(
                f"likelihood must be one of {tuple(numbers)}, got {self.likelihood!r}"
            )
        return numbers[self.likelihood]

    def setup(self) -> None:
        """Builds the submodules."""
        self.layout.check()
        options = CellOptions(self.use_se, self.dtype, self.axis_name)
        self.encoder = Encoder(
            self.encoder_channels,
            self.num_preprocess_blocks,
            self.num_preprocess_cells,
            self.groups_per_scale,
            self.num_encoder_cells,
            self.is_rematerialized,
            options,
        )
        self.top_down = TopDown(
            self.layout,
            self.latent_channels,
            self.encoder_channels,
            self.decoder_channels,
            self.num_decoder_cells,
            self.num_flows,
            self.is_residual_posterior,
            self.is_rematerialized,
            options,
        )
        self.pixels = PixelDecoder(
            self._num_outputs,
            self.decoder_channels,
            self.num_preprocess_blocks,
            self.num_postprocess_cells,
            options,
        )

    def __call__(self, x: Array, key: Array) -> ElboTerms:
        """Same as `elbo_terms`; what `init` runs."""
        return self.elbo_terms(x, key)

    def elbo_terms(self, x: Array, key: Array | None) -> ElboTerms:
        """The terms of Eq. (2) from one pass through both towers.

        Args:
          x: [B, *data_shape] in [0, 1], or already padded (then the pad is read by the
            encoder and left out of the likelihood).
          key: of the draw of z; None takes every mean instead.
        """
        feature, groups = self.infer(x, key)
        return ElboTerms(
            log_likelihood=self._likelihood(self.pixels(feature)).log_prob(
                self.layout.cropped(x)
            ),
            kl=jnp.concatenate([group.kl for group in groups]).T,
        )

    def encode(self, x: Array, key: Array | None) -> Encoding:
        """Draws z ~ q(z | x), or takes every mean where `key` is None."""
        _, groups = self.infer(x, key)
        log_q = jnp.concatenate([group.log_q for group in groups])  # [K, B]
        return Encoding(tuple(group.z for group in groups), log_q.T)

    def infer(self, x: Array, key: Array | None) -> tuple[Array, list[GroupOutput]]:
        """Draws z ~ q(z | x) and evaluates q and p along the way.

        Returns:
          The decoder tower's last feature, and for each block its groups' outputs with
          a leading [num_groups].
        """
        taps = self.layout.by_block(self.encoder(self.layout.padded(x)))
        return self.top_down(x.shape[0], key, taps)

    def generate(
        self, batch_size: int, key: Array | None, temperature: float | Array = 1.0
    ) -> Likelihood:
        """p(x | z) of `batch_size` draws of z from the base prior.

        Unlike a walk with `prior` and `absorb` it also serves where batch statistics
        are used and updated.

        Args:
          batch_size: number of draws.
          key: of the draws; None takes every mean instead.
          temperature: factor on the prior's standard deviations.
        """
        feature, _ = self.top_down(batch_size, key, None, temperature)
        return self._likelihood(self.pixels(feature))

    def root(self, batch_size: int) -> Carry:
        """The state before any group is known."""
        return self.top_down.root(batch_size)

    def prior(self, block: int, k: Array | int, carry: Carry) -> GroupPrior:
        """p(z_k | z_<k), and the tower just before its head as context."""
        return self.top_down.prior(block, k, carry)

    def absorb(self, block: int, k: Array | int, carry: Carry, z_k: Array) -> Carry:
        """The state after z_k is known."""
        return self.top_down.absorb(block, k, carry, z_k)

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z), once every group is absorbed."""
        return self._likelihood(self.pixels(carry[-1]))

    def logits(self, carry: Carry) -> Array:
        """The raw parameters of p(x | z), pad included: [B, H, W, outputs]."""
        return self.pixels(carry[-1])

    def _likelihood(self, outputs: Array) -> Likelihood:
        outputs = self.layout.cropped(outputs.astype(jnp.float32))
        if self.likelihood == "bernoulli":
            return Bernoulli(outputs)
        if self.likelihood == "normal":
            mean, log_std = jnp.split(outputs, 2, axis=-1)
            return PixelNormal(*bounded_normal(mean, log_std))
        return DiscretisedLogisticMixture.from_outputs(
            outputs, self.num_bits, self.white
        )
