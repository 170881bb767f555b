"""The leading directions of the decoder's feature of each group, over training draws.

With h_k the feature that a VAE offers discriminator k as context, P_k holds the leading
eigenvectors of Cov(h_k), z_<k ~ q(z_<k | x) and x from the training set, each divided
by the root of its eigenvalue: c = P_k^T (h_k - mean) has variance 1 in every
coordinate.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax.models.base import Block, Encoding, GroupPrior, LatentVariableModel
from ncp_jax.models.distributions import Likelihood, Normal
from ncp_jax.priors import signal_covariance
from ncp_jax.priors.latents import walk
from ncp_jax.priors.signal_covariance import Spectrum
from ncp_jax.priors.signal_sums import Batch, Prepare

Array = jax.Array

# Of a feature's mean square; a smaller variance is what float32 leaves of a constant.
LEAST_VARIANCE = 1e-5


class FeatureDirections(NamedTuple):
    """P_k and P_k^T mean, padded with zeros to one number of coordinates c."""

    basis: tuple[Array, ...]  # per block [num_groups, F, c]; F is 0 without a feature
    shift: tuple[Array, ...]  # per block [num_groups, c]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureVAE:
    """A VAE's features in the place of its latents: what `signal_covariance` reads.

    Attributes:
      vae: the model.
    """

    vae: LatentVariableModel

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the VAE's blocks that have a feature."""
        sizes = [_feature_size(block) for block in self.vae.blocks]
        return tuple(np.flatnonzero(sizes).tolist())

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those blocks, their features [F] as latents."""
        blocks = [self.vae.blocks[b] for b in self.numbers]
        return tuple(Block(b.num_groups, (_feature_size(b),), (0,)) for b in blocks)

    def encode(self, x: Array, key: Array) -> Encoding:
        """The features along one draw z ~ q(z | x)."""

        def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> Array:
            del b, k
            return prior.context.reshape(len(z_k), -1).astype(jnp.float32)

        features, _ = walk(self.vae, self.vae.encode(x, key).latents, visit)
        num_groups = sum(block.num_groups for block in self.blocks)
        found = tuple(features[b] for b in self.numbers)
        return Encoding(found, jnp.zeros((x.shape[0], num_groups)))

    def root(self, batch_size: int) -> Array:
        """Nothing: [B, 0]."""
        return jnp.zeros((batch_size, 0))

    def prior(self, block: int, k: Array | int, carry: Array) -> GroupPrior:
        """A standard normal, with which standardising changes nothing."""
        shape = (len(carry), *self.blocks[block].latent_shape)
        return GroupPrior(Normal(jnp.zeros(shape), jnp.ones(shape)), carry)

    def absorb(self, block: int, k: Array | int, carry: Array, z_k: Array) -> Array:
        """Nothing is kept."""
        del block, k, z_k
        return carry

    def decode(self, carry: Array) -> Likelihood:
        """There is no decoder here."""
        raise NotImplementedError("features alone cannot be decoded")


def fit_features(
    vae: LatentVariableModel,
    batches: Iterable[Batch],
    prepare: Prepare,
    key: Array,
    *,
    size: int,
    max_exact_dim: int = 1024,
    num_passes: int = 3,
    mesh: Mesh | None = None,
) -> FeatureDirections:
    """Finds the leading directions of every group's feature.

    A feature that does not move, such as that of the first group, has none.

    Args:
      vae: a frozen model.
      batches: (stored examples, mask), as of `directions.fit_directions`.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      size: c, the most directions of a feature.
      max_exact_dim: F up to which the covariance is formed; a randomised range finder
        takes its place above.
      num_passes: over the examples where a feature is larger.
      mesh: the devices that share a batch; None for one.

    Raises:
      InputError: see `directions.fit_directions`.
    """
    model = FeatureVAE(vae)
    bases = [
        np.zeros((block.num_groups, _feature_size(block), size), np.float32)
        for block in vae.blocks
    ]
    shifts = [np.zeros((len(basis), size), np.float32) for basis in bases]
    if model.numbers:
        spectra = signal_covariance.leading(
            model,
            batches,
            prepare,
            key,
            num_leading=size,
            max_exact_dim=max_exact_dim,
            num_passes=num_passes,
            num_draws=1,
            use_means=False,
            is_centred=True,
            mesh=mesh,
        )
        for b, spectrum in zip(model.numbers, spectra, strict=True):
            scaled = _scaled(spectrum)
            bases[b][..., : scaled.shape[2]] = scaled
            shifts[b] = np.einsum("nf,nfc->nc", spectrum.mean, bases[b]).astype(
                np.float32
            )
    return FeatureDirections(
        tuple(map(jnp.asarray, bases)), tuple(map(jnp.asarray, shifts))
    )


def no_features(vae: LatentVariableModel, size: int) -> FeatureDirections:
    """Zeros, of the shapes of `fit_features`: for benchmarks."""
    shapes = [(b.num_groups, _feature_size(b), size) for b in vae.blocks]
    return FeatureDirections(
        tuple(jnp.zeros(shape) for shape in shapes),
        tuple(jnp.zeros((n, size)) for n, *_ in shapes),
    )


def _scaled(spectrum: Spectrum) -> np.ndarray:
    """Eigenvectors [n, F, S] over the roots of their eigenvalues; 0 for rounding."""
    values = spectrum.values
    mean_square = np.sum(spectrum.mean**2, 1) + spectrum.total  # [n]
    is_there = values > LEAST_VARIANCE * mean_square[:, None]
    scale = np.where(is_there, 1 / np.sqrt(np.where(is_there, values, 1.0)), 0.0)
    return spectrum.vectors * scale[:, None]


def _feature_size(block: Block) -> int:
    return int(np.prod(block.context_shape, dtype=int))
