"""The convolutional VAE with two latent groups of LARS and SNIS ("ConvHVAE")."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax.errors import InputError
from ncp_jax.models.base import Carry
from ncp_jax.models.distributions import Likelihood, Normal
from ncp_jax.models.halving import Double, Halve
from ncp_jax.models.ladder_vae import VectorGroupsVAE
from ncp_jax.models.mlp_vae import MLP, likelihood_around, normal_of

Array = jax.Array

NUM_HALVINGS = 3


class Tower(nn.Module):
    """Three convolutions 4x4 of stride 2, each with ReLU, flattened."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, h w channels]."""
        for _ in range(NUM_HALVINGS):
            x = jax.nn.relu(Halve(self.channels)(x))
        return x.reshape(x.shape[0], -1)


class PictureDecoder(nn.Module):
    """Three transposed convolutions 4x4 of stride 2, with ReLU between them.

    Where a side of the tower's maps was odd, the doubled map loses its last row or
    column.

    Attributes:
      channels: of the hidden maps.
      data_shape: (height, width, channels) of the picture.
    """

    channels: int
    data_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Maps [B, h w channels] to [B, *data_shape]."""
        *sizes, smallest = map_sizes(self.data_shape)
        h = h.reshape(-1, *smallest, self.channels)
        for height, width in reversed(sizes[1:]):
            h = jax.nn.relu(Double(self.channels)(h)[:, :height, :width])
        height, width, channels = self.data_shape
        return Double(channels)(h)[:, :height, :width]


class ConvHVAE(VectorGroupsVAE):
    """p(z_2) p(z_1 | z_2) p(x | z_1, z_2), top down: the first group here is z_2.

    The architecture is that of Lawson et al. (2019), after Bauer & Mnih (2019):
    q(z_2 | x) and the x-path of q(z_1 | x, z_2) are towers of their own, and the
    decoder has no ReLU after its last layer.  Both towers read x minus the training
    mean; the decoder's output is offset by that mean (by its logit for binary x).

    Attributes:
      data_shape: (height, width, channels) of x.
      latent_dim: size of each of the two groups.
      channels: of the convolutions.
      hidden_dim: width of the hidden layers, tanh.
      likelihood: "bernoulli" for x in {0, 1}, "normal" for real x.
      likelihood_std: standard deviation of the "normal" likelihood.
    """

    data_shape: tuple[int, ...]
    latent_dim: int = 50
    channels: int = 32
    hidden_dim: int = 300
    likelihood: str = "bernoulli"
    likelihood_std: float = 0.1

    @property
    def sizes(self) -> tuple[int, ...]:
        """z_2, then z_1."""
        return (self.latent_dim, self.latent_dim)

    def setup(self) -> None:
        """Builds the networks and the constant mean."""
        if len(self.data_shape) != 3:
            raise InputError(
                f"the model 'conv_hvae' is for pictures [height, width, channels]; "
                f"data_shape is {tuple(self.data_shape)}; the model 'ladder' "
                "takes any"
            )
        height, width = map_sizes(self.data_shape)[-1]
        flat, hidden = height * width * self.channels, self.hidden_dim
        self.towers = [Tower(self.channels) for _ in range(2)]
        self.top_posterior = MLP((2 * self.latent_dim,))
        self.top_to_posterior = MLP((flat,))
        self.bottom_posterior = MLP((hidden, 2 * self.latent_dim))
        self.bottom_prior = MLP((hidden, hidden, 2 * self.latent_dim))
        self.to_decoder = [MLP((hidden,)) for _ in range(2)]
        self.joint_to_decoder = MLP((flat,))
        self.pixels = PictureDecoder(self.channels, self.data_shape)
        self.data_mean = self.variable(
            "statistics", "data_mean", jnp.zeros, self.data_shape
        )

    def features(self, x: Array) -> tuple[Array, Array]:
        """Both towers' outputs, for q(z_2 | x) and q(z_1 | x, z_2)."""
        centred = x - self.data_mean.value[None]
        top, bottom = (tower(centred) for tower in self.towers)
        return top, bottom

    def group_posterior(
        self, k: int, features: tuple[Array, Array], before: Array, p: Normal
    ) -> Normal:
        """q(z_2 | x), then q(z_1 | x, z_2)."""
        del p
        if k == 0:
            return normal_of(self.top_posterior(features[0]))
        from_top = jnp.tanh(self.top_to_posterior(before))
        joint = jnp.concatenate([features[1], from_top], 1)
        return normal_of(self.bottom_posterior(joint))

    def conditional(self, k: int, before: Array) -> Normal:
        """p(z_1 | z_2)."""
        del k
        return normal_of(self.bottom_prior(before))

    def decode(self, carry: Carry) -> Likelihood:
        """p(x | z_1, z_2) for z_2 and z_1 side by side, [B, 2 latent_dim]."""
        groups = jnp.split(carry, 2, axis=1)
        paths = [
            jnp.tanh(layer(z)) for layer, z in zip(self.to_decoder, groups, strict=True)
        ]
        joint = jnp.tanh(self.joint_to_decoder(jnp.concatenate(paths, 1)))
        out, mean = self.pixels(joint), self.data_mean.value
        return likelihood_around(out, mean, self.likelihood, self.likelihood_std)


def map_sizes(data_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(height, width) of a picture and of its maps after each halving."""
    sizes = [(data_shape[0], data_shape[1])]
    for _ in range(NUM_HALVINGS):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
