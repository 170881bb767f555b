"""A normalising flow of rational-quadratic couplings (Durkan et al., 2019)."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.models.distributions import standard_normal
from ncp_jax.priors.ex_post import fitting, gaussian
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.priors.ex_post.gaussian import Gaussian

Array = jax.Array
PyTree = Any

BOUND = 5.0  # standard deviations; splines end here and tails are affine
MIN_BIN = 1e-3  # of the width and of the height of a spline
MIN_SLOPE = 1e-3
MAX_LOG_SCALE = 2.0  # of the affine part of one coupling

TRAINING = Training(num_steps=6_000, batch_size=256)


class Spline(NamedTuple):
    """What a network says of monotone splines; the identity where all are zero.

    Attributes:
      widths: [B, n, K], logits of the bins' shares of the box.
      heights: [B, n, K], the same of the values.
      slopes: [B, n, K - 1] raw, at the knots between; 1 at both ends.
    """

    widths: Array
    heights: Array
    slopes: Array


class Couplings(nn.Module):
    """An invertible map of e [B, D] with a triangular Jacobian in each layer.

    Half of the coordinates pass; they choose what the others go through: a scale and a
    shift (RealNVP; Dinh et al., 2017), then a monotone spline.  All is the identity
    before training.

    Attributes:
      dim: D, at least 2.
      num_couplings: layers; two in turn share a permutation and change the halves.
      hidden_dims: of the networks that choose.
      num_bins: of a spline.
    """

    dim: int
    num_couplings: int
    hidden_dims: tuple[int, ...]
    num_bins: int

    def setup(self) -> None:
        """Makes the layers and the order of coordinates in each."""
        self.layers = [
            Conditioner(self.hidden_dims, len(moved), self.num_bins)
            for _, moved in self._halves()
        ]

    def __call__(self, e: Array, *given: Array) -> tuple[Array, Array]:
        """From e [B, D] to noise [B, D], and log |det| of that map: [B].

        Args:
          e: [B, D].
          *given: what `_choose` reads besides; nothing here.
        """
        log_det = jnp.zeros(len(e))
        for (passed, moved), layer in zip(self._halves(), self.layers, strict=True):
            log_scale, shift, spline = self._choose(layer, e[:, passed], moved, *given)
            out, slope = rational_quadratic(
                e[:, moved] * jnp.exp(log_scale) + shift, spline
            )
            e = e.at[:, moved].set(out)
            log_det = log_det + jnp.sum(log_scale + slope, axis=1)
        return e, log_det

    def invert(self, noise: Array, *given: Array) -> Array:
        """From noise [B, D] to e [B, D]."""
        layers = list(zip(self._halves(), self.layers, strict=True))
        for (passed, moved), layer in reversed(layers):
            parts = self._choose(layer, noise[:, passed], moved, *given)
            log_scale, shift, spline = parts
            before, _ = rational_quadratic(noise[:, moved], spline, is_inverse=True)
            noise = noise.at[:, moved].set((before - shift) * jnp.exp(-log_scale))
        return noise

    def _choose(
        self, layer: "Conditioner", passed: Array, moved: np.ndarray, *given: Array
    ) -> tuple[Array, Array, Spline]:
        """What a layer does to the coordinates `moved`, given those that pass."""
        del moved, given
        return layer(passed)

    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Numbers of the coordinates that pass, and of those that move, by layer."""
        halves = []
        for layer in range(self.num_couplings):
            order = np.random.default_rng(layer // 2).permutation(self.dim)
            first, second = np.split(order, [self.dim // 2])
            halves.append((first, second) if layer % 2 else (second, first))
        return halves


class Conditioner(nn.Module):
    """What one coupling does to the coordinates that move, given the others."""

    hidden_dims: tuple[int, ...]
    num_moved: int
    num_bins: int

    @nn.compact
    def __call__(self, h: Array) -> tuple[Array, Array, Spline]:
        """From [B, D'] to log scale, shift [B, n] and a spline's three parts."""
        if not h.shape[1]:  # one coordinate without a context: the same map always
            h = jnp.zeros((len(h), 1), h.dtype)
        for width in self.hidden_dims:
            h = nn.silu(nn.Dense(width)(h))
        size = 3 * self.num_bins + 1
        raw = nn.Dense(self.num_moved * size, kernel_init=nn.initializers.zeros)(h)
        raw = raw.reshape(len(h), self.num_moved, size)
        log_scale = MAX_LOG_SCALE * jnp.tanh(raw[..., 0] / MAX_LOG_SCALE)
        widths, heights, slopes = jnp.split(
            raw[..., 2:], [self.num_bins, 2 * self.num_bins], axis=-1
        )
        return log_scale, raw[..., 1], Spline(widths, heights, slopes)


def rational_quadratic(
    x: Array, spline: Spline, is_inverse: bool = False
) -> tuple[Array, Array]:
    """A monotone spline on [-BOUND, BOUND], the identity elsewhere and for zeros.

    Args:
      x: [B, n].
      spline: of each coordinate.
      is_inverse: the other way round.

    Returns:
      [B, n] values and log derivatives of the map that was asked for.
    """
    left, bottom = _knots(spline.widths), _knots(spline.heights)  # [B, n, K + 1]
    raised = jax.nn.softplus(spline.slopes) / np.log(2.0)
    inner = MIN_SLOPE + (1 - MIN_SLOPE) * raised
    slope = jnp.pad(inner, ((0, 0), (0, 0), (1, 1)), constant_values=1.0)
    inside = jnp.clip(x, -BOUND, BOUND)
    searched = bottom if is_inverse else left
    number = jnp.sum(inside[..., None] >= searched[..., 1:-1], axis=-1)
    is_bin = jax.nn.one_hot(number, spline.widths.shape[-1])
    x0, x1, y0, y1, d0, d1 = (
        jnp.sum(is_bin * ends, axis=-1)
        for knots in (left, bottom, slope)
        for ends in (knots[..., :-1], knots[..., 1:])
    )
    mean_slope = (y1 - y0) / (x1 - x0)
    bend = d0 + d1 - 2 * mean_slope
    if is_inverse:
        share = (inside - y0) / (y1 - y0)
        b = d0 - share * bend
        c = 2 * share * mean_slope
        root = jnp.sqrt(jnp.maximum(b**2 + 2 * (mean_slope - b) * c, 0.0))
        t = c / (b + root)
        out = x0 + t * (x1 - x0)
    else:
        t = (inside - x0) / (x1 - x0)
        below = mean_slope + bend * t * (1 - t)
        out = y0 + (y1 - y0) * (mean_slope * t**2 + d0 * t * (1 - t)) / below
    below = mean_slope + bend * t * (1 - t)
    above = d1 * t**2 + 2 * mean_slope * t * (1 - t) + d0 * (1 - t) ** 2
    log_slope = 2 * jnp.log(mean_slope) + jnp.log(above) - 2 * jnp.log(below)
    log_slope = -log_slope if is_inverse else log_slope
    is_inside = jnp.abs(x) < BOUND
    return jnp.where(is_inside, out, x), jnp.where(is_inside, log_slope, 0.0)


def _knots(logits: Array) -> Array:
    """From logits [..., K] to rising knots [..., K + 1] on [-BOUND, BOUND]."""
    num_bins = logits.shape[-1]
    shares = MIN_BIN + (1 - MIN_BIN * num_bins) * jax.nn.softmax(logits)
    inner = 2 * BOUND * jnp.cumsum(shares[..., :-1], axis=-1) - BOUND
    ends = [(0, 0)] * (logits.ndim - 1)
    inner = jnp.pad(inner, [*ends, (1, 0)], constant_values=-BOUND)
    return jnp.pad(inner, [*ends, (0, 1)], constant_values=BOUND)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow:
    """Noise N(0, I) through couplings, scaled to the encodings.

    Attributes:
      moments: of the encodings.
      params: of `net`.
      net: the couplings.
    """

    density: ClassVar[Density] = "exact"

    moments: Gaussian
    params: PyTree
    net: Couplings = dataclasses.field(metadata={"static": True})

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, in one pass."""
        noise = jax.vmap(lambda key: jax.random.normal(key, (self.net.dim,)))(keys)
        return self.moments.colour(
            self.net.apply(self.params, noise, method=Couplings.invert)
        )

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        noise, log_det = self.net.apply(self.params, self.moments.whiten(z))
        log_noise = standard_normal(noise).log_prob(noise)
        return log_noise + log_det - self.moments.log_volume()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Maximum likelihood; it starts as the diagonal normal of the encodings.

    Attributes:
      num_couplings: layers.
      hidden_dims: of the network of each.
      num_bins: of its splines.
      training: how long.
    """

    num_couplings: int = 6
    hidden_dims: tuple[int, ...] = (128, 128)
    num_bins: int = 8
    training: Training = TRAINING

    def __post_init__(self) -> None:
        """Refuses more bins than there is room for."""
        if self.num_bins * MIN_BIN >= 1:
            raise InputError(f"flow.num_bins must be below {1 / MIN_BIN:,.0f}")

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Flow:
        """Returns the flow.

        Args:
          key: PRNG key; consumed here.
          encodings: of training and of validation examples.
          folder: of checkpoints; None keeps none.
        """
        moments = gaussian.matched(encodings)
        dim = len(moments.mean)
        net = Couplings(dim, self.num_couplings, self.hidden_dims, self.num_bins)
        params = jax.jit(net.init)(rng.stream(key, "init"), jnp.zeros((1, dim)))
        params = fitting.minimise(
            "flow",
            lambda params, z, key: -jnp.mean(Flow(moments, params, net).log_prob(z)),
            params,
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            settings=self,
        )
        return Flow(moments, params, net)
