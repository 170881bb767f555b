"""The densities that VAEs are made of; all log-probabilities are in nats."""

import dataclasses
from typing import NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp

Array = jax.Array


class Distribution(Protocol):
    """A batch of independent distributions, a pytree whose leaves lead with [B, ...].

    The leading axis is what lets samplers give every chain its own key by `vmap`.
    """

    def sample(self, key: Array) -> Array:
        """One draw each: [B, ...]."""
        ...

    def log_prob(self, value: Array) -> Array:
        """Log density of `value` [B, ...], summed over all but the first axis: [B]."""
        ...


@runtime_checkable
class Standardizable(Protocol):
    """A distribution that says it is an affine map of standard normal noise.

    A mean and a standard deviation alone do not say so: a mixture has both.
    """

    def standardization(self) -> tuple[Array, Array]:
        """(mean, std), each [B, ...]: mean + std * e with e ~ N(0, I) is a draw."""
        ...


class Likelihood(Distribution, Protocol):
    """p(x | z): what a decoder returns."""

    @property
    def mean(self) -> Array:
        """E[x | z], in the units of x: [B, ...]; the picture that is shown."""
        ...


def sum_non_batch(x: Array) -> Array:
    """Sums [B, ...] over all axes but the first: [B]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


class Normal(NamedTuple):
    """Diagonal normal; `mean` and `std` have the shape of the variable."""

    mean: Array
    std: Array

    def sample(self, key: Array) -> Array:
        """One reparameterised draw, of the shape of `mean`."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + self.std * noise

    def log_prob(self, value: Array) -> Array:
        """Log density summed over all but the first axis: [B]."""
        white = (value - self.mean) / self.std
        return sum_non_batch(
            -0.5 * (white**2 + jnp.log(2 * jnp.pi)) - jnp.log(self.std)
        )

    def standardization(self) -> tuple[Array, Array]:
        """(mean, std): mean + std * e with e ~ N(0, I) is a draw."""
        return self.mean, self.std

    def kl(self, other: "Normal") -> Array:
        """KL(self || other) summed over all but the first axis: [B]."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return sum_non_batch(0.5 * (ratio**2 + shift**2 - 1.0) - jnp.log(ratio))

    def tempered(self, temperature: float | Array) -> Self:
        """The same mean with the standard deviation times `temperature`."""
        return self._replace(std=self.std * temperature)


def standard_normal(z: Array) -> Normal:
    """N(0, I) of the shape of z."""
    return Normal(jnp.zeros_like(z), jnp.ones_like(z))


class Bernoulli(NamedTuple):
    """Independent binary pixels; `logits` [B, ...] are log p(1) - log p(0)."""

    logits: Array

    @property
    def mean(self) -> Array:
        """P(x = 1): [B, ...]."""
        return jax.nn.sigmoid(self.logits)

    def sample(self, key: Array) -> Array:
        """One draw in {0, 1} as float: [B, ...]."""
        draw = jax.random.bernoulli(key, self.mean)
        return draw.astype(self.logits.dtype)

    def log_prob(self, value: Array) -> Array:
        """Log mass of `value` in {0, 1}, summed over all but the first axis: [B]."""
        return sum_non_batch(value * self.logits - jax.nn.softplus(self.logits))


class PixelNormal(NamedTuple):
    """Normal pixels: a density of 2 x - 1 in [-1, 1] for x in [0, 1].

    `log_prob` is that of the scaled value, so it is no discrete likelihood and not to
    be compared with one.
    """

    scaled_mean: Array  # of 2 x - 1: [B, ...]
    scaled_std: Array

    @property
    def mean(self) -> Array:
        """The expected picture, clipped to [0, 1]: [B, ...]."""
        return _to_unit(self.scaled_mean)

    def sample(self, key: Array) -> Array:
        """One draw, clipped to [0, 1]: [B, ...]."""
        return _to_unit(Normal(self.scaled_mean, self.scaled_std).sample(key))

    def log_prob(self, value: Array) -> Array:
        """Log density of 2 `value` - 1, summed over all but the first axis: [B]."""
        return Normal(self.scaled_mean, self.scaled_std).log_prob(2.0 * value - 1.0)

    def tempered(self, temperature: float | Array) -> Self:
        """The same mean with the standard deviation times `temperature`."""
        return self._replace(scaled_std=self.scaled_std * temperature)


def _to_unit(scaled: Array) -> Array:
    """Maps [-1, 1] to [0, 1] and clips."""
    return jnp.clip(0.5 * scaled + 0.5, 0.0, 1.0)


MIN_LOG_SCALE = -7.0
MIN_BIN_MASS = 1e-5  # below it, density times width stands in for a bin's mass
WHITE = 0.999  # above it (on [-1, 1]) a bin reaches to infinity; below -0.999 likewise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiscretisedLogisticMixture:
    """Mixture of logistics over the RGB values of a pixel (Salimans et al., 2017).

    A component is shared by the pixel's three channels.  The mean of green depends
    linearly on red, that of blue on red and green.  x lies in [0, 1], on a grid of
    2**num_bits values; parameters are in units of 2 x - 1.

    Attributes:
      logits: [B, H, W, M] unnormalised log weights.
      means: [B, H, W, 3, M] before the contribution of the earlier channels.
      log_scales: [B, H, W, 3, M].
      coefficients: [B, H, W, 3, M] of green on red, blue on red, blue on green.
      num_bits: per channel.
      white: threshold on [-1, 1] of the bin that reaches to infinity.  The reference
        implementation of NVAE has 0.99, which at 8 bits also takes in the second
        brightest value: its masses then sum to more than one.
    """

    logits: Array
    means: Array
    log_scales: Array
    coefficients: Array
    num_bits: int = dataclasses.field(default=8, metadata={"static": True})
    white: float = dataclasses.field(default=WHITE, metadata={"static": True})

    @classmethod
    def from_outputs(
        cls, outputs: Array, num_bits: int = 8, white: float = WHITE
    ) -> Self:
        """Splits a network's outputs [B, H, W, 10 M] into its parameters."""
        num_mixtures = outputs.shape[-1] // 10
        logits, rest = jnp.split(outputs, [num_mixtures], axis=-1)
        rest = rest.reshape(*rest.shape[:-1], 3, 3 * num_mixtures)
        means, log_scales, coefficients = jnp.split(rest, 3, axis=-1)
        log_scales = jnp.maximum(log_scales, MIN_LOG_SCALE)
        return cls(logits, means, log_scales, jnp.tanh(coefficients), num_bits, white)

    @property
    def mean(self) -> Array:
        """E[x | z] but for the clipping at black and white: [B, H, W, 3] in [0, 1]."""
        weights = jax.nn.softmax(self.logits)[..., None, :]
        red, green, blue = (self.means[..., c, :] for c in range(3))
        on_red, on_red_too, on_green = (self.coefficients[..., c, :] for c in range(3))
        green = green + on_red * red
        blue = blue + on_red_too * red + on_green * green
        means = jnp.stack([red, green, blue], axis=-2)
        return _to_unit(jnp.sum(weights * means, axis=-1))

    def sample(self, key: Array) -> Array:
        """One exact draw, on the grid: [B, H, W, 3]."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.categorical(key_component, self.logits)  # [B, H, W]
        means, log_scales, coefficients = (
            jnp.take_along_axis(leaf, component[..., None, None], axis=-1)[..., 0]
            for leaf in (self.means, self.log_scales, self.coefficients)
        )
        noise = jax.random.logistic(key_noise, means.shape) * jnp.exp(log_scales)
        red = self._on_grid((means + noise)[..., 0])
        mean = means[..., 1] + coefficients[..., 0] * red
        green = self._on_grid(mean + noise[..., 1])
        mean = means[..., 2] + coefficients[..., 1] * red + coefficients[..., 2] * green
        blue = self._on_grid(mean + noise[..., 2])
        return _to_unit(jnp.stack([red, green, blue], axis=-1))

    def log_prob(self, value: Array) -> Array:
        """Log mass of `value` [B, H, W, 3] on the grid, summed over pixels: [B]."""
        x = 2.0 * value - 1.0
        red, green = x[..., 0, None], x[..., 1, None]
        means, c = self.means, self.coefficients
        means = jnp.stack(
            [
                means[..., 0, :],
                means[..., 1, :] + c[..., 0, :] * red,
                means[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
            ],
            axis=-2,
        )
        log_mass = jnp.sum(self._log_bin_mass(x[..., None], means), axis=-2)
        mixture = jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + log_mass, axis=-1)
        return sum_non_batch(mixture)

    def tempered(self, temperature: float | Array) -> Self:
        """Weights to the power of 1 / `temperature`, and scales times it."""
        return dataclasses.replace(
            self,
            logits=self.logits / temperature,
            log_scales=self.log_scales + jnp.log(temperature),
        )

    def _log_bin_mass(self, x: Array, means: Array) -> Array:
        """Log mass of the bins around x [..., 3, 1] per component: [..., 3, M]."""
        half_bin = 1.0 / (2**self.num_bits - 1)
        inverse_scale = jnp.exp(-self.log_scales)
        centred = x - means
        upper = inverse_scale * (centred + half_bin)
        lower = inverse_scale * (centred - half_bin)
        # A bin above the mean has the mass of its mirror image, where nothing cancels.
        is_above = centred > 0
        mass = jax.nn.sigmoid(jnp.where(is_above, -lower, upper))
        mass -= jax.nn.sigmoid(jnp.where(is_above, -upper, lower))
        middle = inverse_scale * centred
        log_density = middle - self.log_scales - 2.0 * jax.nn.softplus(middle)
        log_mass = jnp.where(
            mass > MIN_BIN_MASS,
            jnp.log(jnp.maximum(mass, MIN_BIN_MASS)),
            log_density + jnp.log(2.0 * half_bin),
        )
        log_mass = jnp.where(x > self.white, -jax.nn.softplus(lower), log_mass)
        return jnp.where(x < -WHITE, upper - jax.nn.softplus(upper), log_mass)

    def _on_grid(self, scaled: Array) -> Array:
        levels = 2**self.num_bits - 1
        return jnp.round(_to_unit(scaled) * levels) / levels * 2.0 - 1.0
