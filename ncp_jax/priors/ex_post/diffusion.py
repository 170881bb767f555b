"""A diffusion model of z whose network adds to the score of N(0, I).

As LSGM's mixed score it starts as exactly the normal (Vahdat et al., 2021).  Time l is
the log signal-to-noise ratio: e_l = a e + s noise with a^2 = sigmoid(l) and
s^2 = sigmoid(-l).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.models.distributions import standard_normal
from ncp_jax.priors.ex_post import fitting, gaussian
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.gaussian import Gaussian

Array = jax.Array
PyTree = Any

NOISE, SIGNAL = -8.0, 8.0  # l where e_l is N(0, I), and where it is e: s = 0.018
NUM_FEATURES = 17  # of l: bumps, one a nat

TRAINING = Training(num_steps=20_000, batch_size=512, learning_rate=2e-3)


class Tilt(nn.Module):
    """f(e, l): the gradient by e of log q_l(e) / N(e; 0, I); zero before training.

    Two hidden layers, because the divergence of such a network costs no more than one
    more product of matrices: sum_ij act'(1)_i C_ij act'(2)_j, C = W2 * (W3 W1)^T.

    Attributes:
      dim: D.
      width: of the hidden layers.
    """

    dim: int
    width: int

    def setup(self) -> None:
        """Makes the layers; what they add and multiply depends on l."""
        init, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        self.first = self.param("first", init, (self.dim, self.width))
        self.second = self.param("second", init, (self.width, self.width))
        self.last = self.param("last", zeros, (self.width, self.dim))
        self.of_time = nn.Dense(self.width)
        self.modulation = nn.Dense(4 * self.width + self.dim, kernel_init=zeros)

    def __call__(self, e: Array, log_snr: Array) -> tuple[Array, Array]:
        """Returns f [B, D] and its divergence [B].

        Args:
          e: [B, D].
          log_snr: l, [B] or [1].
        """
        centres = jnp.linspace(NOISE, SIGNAL, NUM_FEATURES)
        features = jnp.exp(-0.5 * (log_snr[:, None] - centres[None]) ** 2)
        out = self.modulation(nn.silu(self.of_time(features)))
        *parts, shift = jnp.split(out, [i * self.width for i in range(1, 5)], axis=1)
        scales, shifts = [1.0 + part for part in parts[:2]], parts[2:]
        h, slope_1 = _silu(e @ self.first * scales[0] + shifts[0])
        h, slope_2 = _silu(h @ self.second * scales[1] + shifts[1])
        corners = self.second * (self.last @ self.first).T
        divergence = ((slope_1 * scales[0]) @ corners) * (slope_2 * scales[1])
        return h @ self.last + shift, jnp.sum(divergence, axis=1)


def _silu(a: Array) -> tuple[Array, Array]:
    """a sigmoid(a) and its derivative."""
    gate = jax.nn.sigmoid(a)
    return a * gate, gate * (1.0 + a * (1.0 - gate))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diffusion:
    """What the probability-flow ODE makes of N(0, I) (Song et al., 2021).

    In log signal-to-noise time it is de/dl = s(l)^2 f(e, l) / 2: nothing moves where
    f = 0.  The density is that of the ODE's solution, with the exact divergence; so it
    is exact but for the error of the integrator, which falls with the fourth power of
    the step and which another `num_ode_steps` makes visible.  The bound of diffusion
    models, that of their stochastic sampler, is another number.

    Attributes:
      moments: of the encodings.
      params: of `net`.
      net: f.
      num_ode_steps: of Runge and Kutta, four evaluations each.
    """

    density: ClassVar[Density] = "exact"

    moments: Gaussian
    params: PyTree
    net: Tilt = dataclasses.field(metadata={"static": True})
    num_ode_steps: int = dataclasses.field(default=16, metadata={"static": True})

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key."""
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.net.dim,)))(keys)
        (e,) = self._solve(lambda *at: self._slopes(*at)[:1], (noise,), NOISE, SIGNAL)
        return self.moments.colour(e)

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats; see the class for its error."""
        del key
        start = (self.moments.whiten(z), jnp.zeros(len(z)))
        noise, change = self._solve(self._slopes, start, SIGNAL, NOISE)
        log_noise = standard_normal(noise).log_prob(noise)
        return log_noise - change - self.moments.log_volume()

    def _slopes(self, e: Array, log_snr: Array) -> tuple[Array, Array]:
        """d/dl of e, and of log p along its path."""
        tilt, divergence = self.net.apply(self.params, e, log_snr[None])
        half_variance = 0.5 * jax.nn.sigmoid(-log_snr)
        return half_variance * tilt, -half_variance * divergence

    def _solve(
        self,
        slopes: Callable[[Array, Array], tuple[Array, ...]],
        start: tuple[Array, ...],
        first: float,
        last: float,
    ) -> tuple[Array, ...]:
        """Integrates from l = first to last by Runge and Kutta's fourth-order rule."""
        step = (last - first) / self.num_ode_steps

        def move(state: tuple, by: tuple, length: float) -> tuple:
            return tuple(x + length * d for x, d in zip(state, by, strict=True))

        def advance(state: tuple, i: Array) -> tuple[tuple, None]:
            l0 = first + step * i
            k1 = slopes(state[0], l0)
            k2 = slopes(move(state, k1, step / 2)[0], l0 + step / 2)
            k3 = slopes(move(state, k2, step / 2)[0], l0 + step / 2)
            k4 = slopes(move(state, k3, step)[0], l0 + step)
            mean = tuple(
                (a + 2 * b + 2 * c + d) / 6
                for a, b, c, d in zip(k1, k2, k3, k4, strict=True)
            )
            return move(state, mean, step), None

        steps = jnp.arange(self.num_ode_steps, dtype=jnp.float32)
        return jax.lax.scan(advance, start, steps)[0]


def denoising_loss(net: Tilt, params: PyTree, e: Array, key: Array) -> Array:
    """The bound of diffusion models on -log p(e), less that of N(0, I): [] nats.

    (1/2) integral over l of E |noise - s (e_l - f)|^2 - |noise - s e_l|^2, where
    s (e_l - f) is the predicted noise (Kingma et al., 2021): likelihood weights, l
    uniform, one l for each e from a comb of random phase.

    Args:
      net: f.
      params: of `net`.
      e: [B, D] whitened encodings.
      key: PRNG key; consumed here.
    """
    phase = jax.random.uniform(rng.stream(key, "log snr"))
    comb = (phase + jnp.arange(len(e), dtype=jnp.float32)) / len(e)
    log_snr = NOISE + (SIGNAL - NOISE) * comb
    noise = jax.random.normal(rng.stream(key, "noise"), e.shape)
    signal, std = (jnp.sqrt(jax.nn.sigmoid(x))[:, None] for x in (log_snr, -log_snr))
    noisy = signal * e + std * noise
    tilt, _ = net.apply(params, noisy, log_snr)
    excess = std * tilt * (std * tilt + 2.0 * (noise - std * noisy))
    return 0.5 * (SIGNAL - NOISE) * jnp.mean(jnp.sum(excess, axis=1))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Denoising with likelihood weights.

    Attributes:
      width: of the network's two hidden layers.
      num_ode_steps: of `sample` and `log_prob`.
      training: how long.
    """

    width: int = 256
    num_ode_steps: int = 16
    training: Training = TRAINING

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Diffusion:
        """Returns the diffusion model.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: of checkpoints; None keeps none.
        """
        moments = gaussian.matched(encodings)
        dim = len(moments.mean)
        net = Tilt(dim, self.width)
        params = jax.jit(net.init)(
            rng.stream(key, "init"), jnp.zeros((1, dim)), jnp.zeros(1)
        )
        params = fitting.minimise(
            "diffusion",
            lambda params, z, key: denoising_loss(net, params, moments.whiten(z), key),
            params,
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            settings=dataclasses.replace(self, num_ode_steps=0),
        )
        return Diffusion(moments, params, net, self.num_ode_steps)
