"""The encoder and the decoder that all kinds of autoencoder share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.models.rae.layers import Dense, Down, Last, NormRelu, Up

Array = jax.Array

NUM_HALVINGS = 4


class Encoder(nn.Module):
    """Four convolutions of stride 2 whose channels double, and a dense layer.

    Attributes:
      num_outputs: of the dense layer, which is linear.
      channels: of the first convolution.
      kernel_size: of all of them.
      is_spectral: every layer has the spectral norm 1.
    """

    num_outputs: int
    channels: int
    kernel_size: int
    is_spectral: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, num_outputs]."""
        for i in range(NUM_HALVINGS):
            x = Down(2**i * self.channels, self.kernel_size, self.is_spectral)(x)
            x = NormRelu()(x)
        return Dense(self.num_outputs, self.is_spectral)(x.reshape(x.shape[0], -1))


class Decoder(nn.Module):
    """A dense layer, transposed convolutions of stride 2, and one of stride 1.

    The dense layer's maps are 8 times as many as `channels`, and halve with every
    doubling of their sides.  There is neither batch norm nor ReLU after it.

    Attributes:
      shape: (height, width, channels) of the picture.
      channels: of the encoder's first convolution.
      kernel_size: of all convolutions.
      num_doublings: of the sides of the dense layer's maps.
      is_spectral: every layer has the spectral norm 1.
    """

    shape: tuple[int, ...]
    channels: int
    kernel_size: int
    num_doublings: int
    is_spectral: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps [B, latent_dim] to [B, *shape] in (0, 1)."""
        height, width = (side // 2**self.num_doublings for side in self.shape[:2])
        features = 8 * self.channels
        h = Dense(height * width * features, self.is_spectral)(z)
        h = h.reshape(-1, height, width, features)
        for _ in range(self.num_doublings):
            features = max(features // 2, 1)
            h = Up(features, self.kernel_size, self.is_spectral)(h)
            h = NormRelu()(h)
        h = Last(self.shape[-1], self.kernel_size, self.is_spectral)(h)
        return jax.nn.sigmoid(h)


def padded(x: Array, padding: int) -> Array:
    """Puts black pixels around pictures [B, H, W, C]."""
    margin = (padding, padding)
    return jnp.pad(x, ((0, 0), margin, margin, (0, 0)))


def cropped(x: Array, padding: int) -> Array:
    """Undoes `padded`."""
    end = -padding or None
    return x[:, padding:end, padding:end]
