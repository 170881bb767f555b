"""The densities that VAEs are made of; all log-probabilities are in nats."""

from typing import NamedTuple, Protocol, Self

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

    def kl(self, other: "Normal") -> Array:
        """KL(self || other) summed over all but the first axis: [B]."""
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return sum_non_batch(0.5 * (ratio**2 + shift**2 - 1.0) - jnp.log(ratio))

    def tempered(self, temperature: float | Array) -> Self:
        """The same mean with the standard deviation times `temperature`."""
        return self._replace(std=self.std * temperature)


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
