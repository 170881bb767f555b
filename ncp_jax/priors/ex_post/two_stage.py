"""A second VAE, of z instead of x (Dai & Wipf, 2019).

It starts as the identity with noise, e -> u -> e, where u tells much of e.  From random
weights u tells nothing of an e that is nearly normal, and it stays so: on MNIST's VAE
that gained 0.03 nats in the place of 1.4.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.distributions import Normal, standard_normal
from ncp_jax.models.mlp_vae import normal_of
from ncp_jax.priors.ex_post import fitting, gaussian
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.gaussian import Gaussian
from ncp_jax.samplers.resampling import log_mean_exp

Array = jax.Array
PyTree = Any

TRAINING = Training(num_steps=20_000, batch_size=256)
START_STD = 0.5  # of e given u and of u given e


class SecondVAE(nn.Module):
    """u ~ N(0, I) and e | u ~ N(mean(u), s^2 I), both of dimension D; s is learnt.

    Before training both networks are the identity.

    Attributes:
      dim: D.
      hidden_dims: of the encoder and of the decoder; the last layer of each also reads
        its network's input.
    """

    dim: int
    hidden_dims: tuple[int, ...]

    def setup(self) -> None:
        """Makes both networks."""
        self.encoder = SkipMLP((*self.hidden_dims, 2 * self.dim))
        self.decoder = SkipMLP((*self.hidden_dims, self.dim))
        start = nn.initializers.constant(math.log(START_STD))
        self.log_std = self.param("log_std", start, ())

    def encode(self, e: Array) -> Normal:
        """q(u | e) of e [B, D]."""
        mean, raw = jnp.split(self.encoder(e), 2, axis=-1)
        raw += math.log(math.expm1(START_STD))
        return normal_of(jnp.concatenate([mean, raw], axis=-1))

    def decode(self, u: Array) -> Normal:
        """p(e | u) of u [B, D]."""
        mean = self.decoder(u)
        return Normal(mean, jnp.exp(self.log_std) * jnp.ones_like(mean))

    def __call__(self, e: Array, key: Array) -> Array:
        """E_q[log p(e | u)] - KL(q(u | e) || N(0, I)), one u for each e: [B], nats."""
        posterior = self.encode(e)
        u = posterior.sample(key)
        return self.decode(u).log_prob(e) - posterior.kl(standard_normal(u))

    def log_weight(self, e: Array, key: Array) -> Array:
        """log p(e | u) p(u) / q(u | e) of one u ~ q(u | e) for each e: [B], nats."""
        posterior = self.encode(e)
        u = posterior.sample(key)
        log_joint = self.decode(u).log_prob(e) + standard_normal(u).log_prob(u)
        return log_joint - posterior.log_prob(u)


class SkipMLP(nn.Module):
    """Dense layers, of which the last one, linear, reads the input once more.

    Before training the first outputs are the inputs, and all others are 0.
    """

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, in] to [B, features[-1]]."""
        h = x
        for width in self.features[:-1]:
            h = nn.relu(nn.Dense(width)(h))

        def start(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
            del key
            return jnp.eye(*shape, k=-h.shape[1], dtype=dtype)  # h counts for nothing

        last = nn.Dense(self.features[-1], kernel_init=start)
        return last(jnp.concatenate([h, x], axis=1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoStage:
    """p(z) = integral of p(z | u) p(u).

    Attributes:
      moments: of the encodings.
      params: of `net`.
      net: the second VAE, of whitened encodings.
      num_importance_samples: S, of u for each z.
    """

    density: ClassVar[Density] = "lower bound"

    moments: Gaussian
    params: PyTree
    net: SecondVAE = dataclasses.field(metadata={"static": True})
    num_importance_samples: int = dataclasses.field(
        default=50, metadata={"static": True}
    )

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key; the noise of p(z | u) is in them."""

        def noise(name: str) -> Array:
            def one(key: Array) -> Array:
                return jax.random.normal(rng.stream(key, name), (self.net.dim,))

            return jax.vmap(one)(keys)

        normal = self.net.apply(self.params, noise("u"), method=SecondVAE.decode)
        return self.moments.colour(normal.mean + normal.std * noise("z"))

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log of an unbiased estimate of p(z): [B], nats.

        log (1/S) sum_s p(z | u_s) p(u_s) / q(u_s | z) with u_s ~ q(u | z) is below
        log p(z) in expectation, and rises to it with S (Burda et al., 2016).

        Args:
          z: [B, D].
          key: PRNG key of the u_s; consumed here.

        Raises:
          ValueError: there is no key.
        """
        if key is None:
            raise ValueError("the density of two_stage is an estimate and needs a key")
        e, number = self.moments.whiten(z), self.num_importance_samples
        keys = jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(number))
        log_weights = jax.lax.map(
            lambda key: self.net.apply(
                self.params, e, key, method=SecondVAE.log_weight
            ),
            keys,
        )  # [S, B]
        return log_mean_exp(log_weights) - self.moments.log_volume()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The second VAE's evidence bound, with fresh u at every update.

    Attributes:
      hidden_dims: of each of its networks.
      num_importance_samples: of u for each z, in `log_prob`.
      training: how long.
    """

    hidden_dims: tuple[int, ...] = (256, 256)
    num_importance_samples: int = 50
    training: Training = TRAINING

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> TwoStage:
        """Returns the second VAE's marginal.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: of checkpoints; None keeps none.
        """
        moments = gaussian.matched(encodings)
        dim = len(moments.mean)
        net = SecondVAE(dim, self.hidden_dims)
        init = rng.stream(key, "init")
        params = jax.jit(net.init)(init, jnp.zeros((1, dim)), init)
        params = fitting.minimise(
            "two_stage",
            lambda params, z, key: -jnp.mean(net.apply(params, moments.whiten(z), key)),
            params,
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            settings=dataclasses.replace(self, num_importance_samples=0),
        )
        return TwoStage(moments, params, net, self.num_importance_samples)
