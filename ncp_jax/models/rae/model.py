"""Convolutional autoencoders of one latent vector: a VAE, and kinds without one.

One network, seven kinds.  Only "vae" has a density q(z | x).  The others encode to a
point and are trained by an error of reconstruction and something that keeps z near
N(0, I) or the decoder smooth, so that a prior can be put on z afterwards.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.base import (
    Carry,
    Encoding,
    GaussianVAE,
    Objective,
    OneVectorVAE,
)
from ncp_jax.models.distributions import Likelihood, Normal
from ncp_jax.models.rae import penalties
from ncp_jax.models.rae.networks import Decoder, Encoder, cropped, padded

Array = jax.Array

KINDS = ("vae", "wae", "rae", "rae_l2", "rae_gp", "rae_sn", "ae")


class Autoencoder(OneVectorVAE):
    """What all kinds share: the networks, p(z) = N(0, I), and the decoded picture.

    Batch norm uses, and updates, batch statistics exactly where the collection
    "batch_stats" is mutable.

    Attributes:
      data_shape: (height, width, channels) of x, which lies in [0, 1].
      latent_dim: size of z.
      kind: of `KINDS`.
      padding: black pixels that the model adds on every side of x.
      channels: of the encoder's first convolution; all other widths follow.
      kernel_size: of all convolutions; 4 is fast on CPUs.
      num_doublings: transposed convolutions of stride 2 in the decoder.
      is_centred: the encoder reads 2 x - 1 in the place of x.
      max_log_std: of "vae": log std of q(z | x) is this times tanh of the encoder's.
      reconstruction_weight: of the squared error, the mean over pixels and channels.
      embedding_weight: of |z|^2, the mean over the dimensions of z.
      regularizer_weight: of the kind's own term: the MMD of "wae", the decoder's
        kernels of "rae_l2", its slopes of "rae_gp".
      has_dense_penalty: the kernels of "rae_l2" are those of its dense layer, too.
      input_noise: std of what is added to the encoder's x in training, clipped to it.
      likelihood: "normal".
      likelihood_std: of a pixel given z, of "vae"; that of others is 1, and is nothing
        that they are trained by.
      is_std_learned: `likelihood_std` is where one learnt number starts.
    """

    latent_dim: int = 16
    kind: str = "vae"
    padding: int = 0
    channels: int = 128
    kernel_size: int = 4
    num_doublings: int = 2
    is_centred: bool = True
    max_log_std: float = 1.0
    reconstruction_weight: float = 1.0
    embedding_weight: float = 0.0
    regularizer_weight: float = 0.0
    has_dense_penalty: bool = False
    input_noise: float = 0.0
    likelihood: str = "normal"
    likelihood_std: float = 0.4
    is_std_learned: bool = False

    def __post_init__(self) -> None:
        """Checks the settings that are names, before anything is built."""
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.likelihood != "normal":
            raise InputError(f"likelihood must be 'normal', got {self.likelihood!r}")
        super().__post_init__()

    def setup(self) -> None:
        """Builds both networks."""
        shape = self._padded_shape()
        is_vae, is_spectral = self.kind == "vae", self.kind == "rae_sn"
        self.encoder = Encoder(
            (1 + is_vae) * self.latent_dim, self.channels, self.kernel_size, is_spectral
        )
        self.decoder = Decoder(
            shape, self.channels, self.kernel_size, self.num_doublings, is_spectral
        )
        if is_vae and self.is_std_learned:
            start = nn.initializers.constant(math.log(self.likelihood_std))
            self.log_std = self.param("log_std", start, ())

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z) for z [B, latent_dim]."""
        mean = cropped(self.decoder(carry), self.padding)
        return Normal(mean, self._pixel_std() * jnp.ones_like(mean))

    def features(self, x: Array) -> Array:
        """What the encoder makes of x [B, *data_shape], or of x with its padding."""
        if x.shape[1:] == tuple(self.data_shape):
            x = padded(x, self.padding)
        return self.encoder(2.0 * x - 1.0 if self.is_centred else x)

    def _pixel_std(self) -> Array:
        if self.kind != "vae":
            return jnp.ones(())
        if self.is_std_learned:
            return jnp.exp(self.log_std)
        return jnp.asarray(self.likelihood_std)

    def _padded_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of what the networks see.

        Raises:
          InputError: it is no picture, or its sides cannot be halved so often.
        """
        if len(self.data_shape) != 3:
            raise InputError(
                "the model 'rae' is for pictures [height, width, channels]; "
                f"data_shape is {tuple(self.data_shape)}"
            )
        height, width, channels = self.data_shape
        sides = (height + 2 * self.padding, width + 2 * self.padding)
        if any(side % 2**self.num_doublings for side in sides):
            raise InputError(
                f"num_doublings = {self.num_doublings} of the model "
                f"'rae' end at sides that 2**{self.num_doublings} divides; those of "
                f"data_shape with padding = {self.padding} are "
                f"{sides[0]} and {sides[1]}"
            )
        return (*sides, channels)


class ConvVAE(Autoencoder, GaussianVAE):
    """The kind "vae": Gaussian q(z | x) and normal pixels.

    The literature's loss is the squared error, summed over pixels and averaged over C
    channels, plus w KL.  Divided by w that is the negative evidence bound, but for a
    constant, of pixels with the variance C w / 2.
    """

    def posterior(self, x: Array) -> Normal:
        """q(z | x) of x [B, *data_shape]: mean and std [B, latent_dim]."""
        mean, raw = jnp.split(self.features(x), 2, axis=1)
        return Normal(mean, jnp.exp(self.max_log_std * jnp.tanh(raw)))


class PointAutoencoder(Autoencoder):
    """All other kinds: z is a function of x, and there are no likelihoods."""

    @property
    def is_deterministic(self) -> bool:
        """q(z | x) is a point."""
        return True

    def __call__(self, x: Array, key: Array) -> Objective:
        """Same as `objective`; what `init` runs."""
        return self.objective(x, key)

    def encode(self, x: Array, key: Array) -> Encoding:
        """Returns the point z(x), whose density is infinite; `key` is not used."""
        del key
        z = self.features(x)
        return Encoding((z[None],), jnp.full((len(z), 1), jnp.inf))

    def objective(self, x: Array, key: Array, mask: Array | None = None) -> Objective:
        """What this kind minimises, in no unit of information (Ghosh et al., 2020).

        Args:
          x: [B, *data_shape]; errors are those of the padded picture, as in the
            literature.
          key: PRNG key of what "wae" compares z with, and of `input_noise`.
          mask: [B], False for rows that do not count; None where all do.
        """
        mask = jnp.ones(len(x), bool) if mask is None else mask
        x = padded(x, self.padding)
        z = self.features(self._noisy(x, rng.stream(key, "input noise")))
        of_examples: dict[str, Array] = {}
        of_batch: dict[str, Array] = {}
        weight = self.regularizer_weight
        if self.kind == "rae_gp" and not self.is_initializing():
            out, slope = penalties.with_slope(self.decoder, z)
            of_examples["decoder_slope"] = weight * jnp.mean(slope**2, axis=1)
        else:
            out = self.decoder(z)
        error = jnp.mean((x - out) ** 2, axis=(1, 2, 3))
        of_examples["reconstruction"] = self.reconstruction_weight * error
        if self.kind in ("rae", "rae_l2", "rae_gp", "rae_sn"):
            of_examples["embedding"] = self.embedding_weight * jnp.mean(z**2, axis=1)
        if self.kind == "rae_l2":
            kernels = self.decoder.variables["params"]
            norm = penalties.squared_norm(kernels, self.has_dense_penalty)
            of_batch["decoder_norm"] = weight * norm
        if self.kind == "wae":
            draws = jax.random.normal(rng.stream(key, "prior"), z.shape)
            of_batch["mmd"] = weight * penalties.mmd(z, draws, mask)
        return Objective(of_examples, of_batch)

    def _noisy(self, x: Array, key: Array) -> Array:
        std = self.input_noise
        if not std or not self.is_mutable_collection("batch_stats"):
            return x
        return x + jnp.clip(std * jax.random.normal(key, x.shape), -std, std)


def of_kind(kind: str, **fields: Any) -> Autoencoder:
    """Returns the module of one of `KINDS`, with the other attributes given."""
    made = ConvVAE if kind == "vae" else PointAutoencoder
    return made(kind=kind, **fields)
