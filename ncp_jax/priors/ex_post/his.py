"""Hamiltonian importance sampling (HIS, Lawson et al., 2019): a map of p and momenta.

z_0 ~ p and rho_0 ~ N(0, I) take T leapfrog steps through the potential -log p - log r
with a learned r, after each of which the momentum is multiplied by a learned factor.
The map keeps volumes, so the density of (z_T, rho_T) is known, and that of z_T is
bounded by a learned q(rho | z).  Nothing is accepted or refused.  Before training r = 1
and the factors are 1: p and N(0, I) stay what they are, but for the error of the steps,
so the bound starts at p's own density.
"""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ex_post.contract import (
    Density,
    Encodings,
    Fit,
    LatentPrior,
    Training,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import minimise
from ncp_jax.samplers import chains
from ncp_jax.training.loop import PyTree

Array = jax.Array

UNIT = math.log(math.e - 1.0)  # softplus of it is 1


class Momentum(nn.Module):
    """q(rho | z): z [B, D] -> normals [B, D]; N(0, I) before training.

    Attributes:
      hidden_dims: widths of the hidden layers.
      activation: name of a function in `jax.nn`.
    """

    hidden_dims: tuple[int, ...] = (300, 300)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, z: Array) -> Normal:
        """Maps z [B, D] to the momentum's distribution."""
        h = z
        for width in self.hidden_dims:
            h = getattr(jax.nn, self.activation)(nn.Dense(width)(h))
        h = nn.Dense(2 * z.shape[-1], kernel_init=nn.initializers.zeros)(h)
        mean, raw = jnp.split(h, 2, axis=-1)
        return Normal(mean, jax.nn.softplus(raw + UNIT))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HIS:
    """z_T of the dynamics.

    Attributes:
      base: p, of exact density.
      params: "potential" (log r) and "momentum" of the networks; "raw_step" [D], whose
        softplus is the step size of each dimension; "log_factors" [T] of the momentum.
      network: of log r.
      momentum: of q(rho | z).
    """

    density: ClassVar[Density] = "lower bound"

    base: LatentPrior
    params: PyTree
    network: RatioMLP = dataclasses.field(metadata={"static": True})
    momentum: Momentum = dataclasses.field(metadata={"static": True})

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log of an unbiased estimate of p(z), of z [B, D]: [B], nats.

        p(z_0) N(rho_0; 0, I) / q(rho | z) for rho ~ q(rho | z), with (z_0, rho_0) what
        the dynamics take to (z, rho).

        Args:
          z: [B, D].
          key: PRNG key of rho; consumed here.
        """
        if key is None:
            raise ValueError("the density of HIS is estimated, which needs a key")
        q = self.momentum.apply({"params": self.params["momentum"]}, z)
        rho = q.sample(key)
        start, rho_start = self.backward(z, rho)
        at_rest = Normal(jnp.zeros_like(rho), jnp.ones_like(rho))
        log_joint = self.base.log_prob(start) + at_rest.log_prob(rho_start)
        return log_joint - q.log_prob(rho)

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, of just this density."""
        start = self.base.sample(rng.stream(keys, "position"))
        rho = chains.noise(rng.stream(keys, "momentum"), start)
        return self.forward(start, rho)[0]

    def forward(self, z: Array, rho: Array) -> tuple[Array, Array]:
        """(z_0, rho_0) -> (z_T, rho_T), each [B, D]; it keeps volumes."""
        step = self._step

        def leap(
            state: tuple[Array, Array, Array], log_factor: Array
        ) -> tuple[tuple[Array, Array, Array], None]:
            z, rho, slope = state
            rho = rho + 0.5 * step * slope
            z = z + step * rho
            slope = self._slope(z)
            rho = (rho + 0.5 * step * slope) * jnp.exp(log_factor)
            return (z, rho, slope), None

        log_factors = self.params["log_factors"]
        rho = rho * jnp.exp(-jnp.sum(log_factors))  # what all factors undo
        (z, rho, _), _ = jax.lax.scan(leap, (z, rho, self._slope(z)), log_factors)
        return z, rho

    def backward(self, z: Array, rho: Array) -> tuple[Array, Array]:
        """(z_T, rho_T) -> (z_0, rho_0), each [B, D]: the inverse of `forward`."""
        step = self._step

        def leap(
            state: tuple[Array, Array, Array], log_factor: Array
        ) -> tuple[tuple[Array, Array, Array], None]:
            z, rho, slope = state
            rho = rho * jnp.exp(-log_factor) - 0.5 * step * slope
            z = z - step * rho
            slope = self._slope(z)
            return (z, rho - 0.5 * step * slope, slope), None

        log_factors = self.params["log_factors"]
        state = z, rho, self._slope(z)
        (z, rho, _), _ = jax.lax.scan(leap, state, log_factors, reverse=True)
        return z, rho * jnp.exp(jnp.sum(log_factors))

    @property
    def _step(self) -> Array:
        return jax.nn.softplus(self.params["raw_step"])[None]  # [1, D]

    def _slope(self, z: Array) -> Array:
        """The gradient of log p + log r at z [B, D]."""

        def minus_potential(z: Array) -> Array:
            log_r = self.network.log_r(self.params["potential"], z)
            return jnp.sum(self.base.log_prob(z) + log_r)

        return jax.grad(minus_potential)(z)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How HIS learns.

    Attributes:
      base: the prior that is moved, fitted first; None for the VAE's own.
      hidden_dims: widths of the hidden layers of r.
      activation: name of a function in `jax.nn`; the slope of log r moves z.
      momentum_dims: widths of the hidden layers of q(rho | z).
      num_steps: T.
      step_size: of every dimension before training.
      training: how long and how fast.
    """

    base: Fit | None = None
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    momentum_dims: tuple[int, ...] = (300, 300)
    num_steps: int = 5
    step_size: float = 0.25
    training: Training = dataclasses.field(
        default=Training(num_steps=8_000, batch_size=256, learning_rate=4e-3)
    )

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> HIS:
        """Returns the prior with the highest held-out bound."""
        encodings = with_base(self.base, key, encodings, folder)
        network = RatioMLP(self.hidden_dims, self.activation)
        momentum = Momentum(self.momentum_dims, self.activation)
        dim = encodings.train.shape[-1]
        start = {
            "potential": network.start(rng.stream(key, "start"), dim),
            "momentum": momentum.init(rng.stream(key, "momentum"), jnp.zeros((1, dim)))[
                "params"
            ],
            "raw_step": jnp.full(dim, math.log(math.expm1(self.step_size))),
            "log_factors": jnp.zeros(self.num_steps),
        }

        def loss(params: PyTree, z: Array, key: Array, base: LatentPrior) -> Array:
            return -jnp.mean(HIS(base, params, network, momentum).log_prob(z, key))

        params = minimise(
            "his",
            loss,
            start,
            encodings,
            self.training,
            key,
            folder,
            fixed=(encodings.base,),
            settings=dataclasses.replace(self, base=None),
        )
        return HIS(encodings.base, params, network, momentum)
