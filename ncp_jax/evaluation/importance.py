"""Importance sampling in log space: means, effective sample sizes, standard errors."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from ncp_jax.samplers.resampling import log_mean_exp

Array = jax.Array

MIN_ESS = 100.0  # effective draws; with fewer the error of a weighted mean is a guess


def importance_weighted_bound(log_w: Array) -> Array:
    """log (1/S) sum_s w_s, which is below log p(x) in expectation and rises with S.

    Burda et al., "Importance Weighted Autoencoders", Eq. (8).

    Args:
      log_w: [S, B] log p(x, z_s) - log q(z_s | x), nats.

    Returns:
      [B], nats.
    """
    return log_mean_exp(log_w, axis=0)


def chain_ess(course: np.ndarray) -> np.ndarray:
    """How many independent draws each Markov chain is worth, in (0, T].

    T / (1 + 2 sum of autocorrelations), the sum cut where pairs of them turn negative:
    Geyer, "Practical Markov chain Monte Carlo" (1992).  No chain is worth more draws
    than it has visited, one and its moves: one that never moves has 1, and one that
    moved once at its end 2, where so few autocorrelations would say T.

    Args:
      course: [..., T] a number at every step of a stationary chain.

    Returns:
      [...].
    """
    num_steps = course.shape[-1]
    covariance = autocovariance(course)
    variance = covariance[..., :1]
    is_still = variance[..., 0] <= 0
    rho = covariance / np.where(variance > 0, variance, 1.0)
    even = num_steps - num_steps % 2
    pairs = rho[..., 0:even:2] + rho[..., 1:even:2]  # positive for a reversible chain
    is_kept = np.cumprod(pairs > 0, axis=-1)
    ess = num_steps / np.maximum(2 * (pairs * is_kept).sum(-1) - 1, 1.0)
    num_visited = 1 + (np.diff(course, axis=-1) != 0).sum(-1)
    return np.where(is_still, 1.0, np.minimum(ess, num_visited))


def autocovariance(course: np.ndarray) -> np.ndarray:
    """Sums of products at every lag of each chain about its own mean.

    Args:
      course: [..., T].

    Returns:
      [..., T], lag 0 first; T times the autocovariance.
    """
    num_steps = course.shape[-1]
    centred = course - course.mean(-1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * num_steps)) ** 2
    return np.fft.irfft(spectrum)[..., :num_steps]


class Estimate(NamedTuple):
    """A measured number: nobody prints one without its error."""

    value: float
    stderr: float | None
    n: int
    unit: str

    def as_json(self) -> dict[str, Any]:
        """Returns the fields by name, as `or_null`."""
        return {name: or_null(value) for name, value in self._asdict().items()}


def or_null(value: Any) -> Any:
    """None for NaN and infinity, which JSON does not know; else the value."""
    is_number = isinstance(value, float)
    return None if is_number and not math.isfinite(value) else value


def mean_estimate(
    values: Array | np.ndarray, unit: str, groups: np.ndarray | None = None
) -> Estimate:
    """The mean of independent `values` [n] with its standard error.

    Args:
      values: [n].
      unit: of them.
      groups: [n], a number for each; those of one group share noise, so that the sums
        of groups are independent and single values are not.  The error is then that of
        the sums, where it is the larger one.  None: nothing is shared.
    """
    values = np.asarray(values, np.float64)
    n, mean = values.size, values.mean()
    with np.errstate(invalid="ignore"):  # -inf has no standard deviation
        stderr = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
        if stderr is not None and groups is not None:
            _, of_group = np.unique(groups, return_inverse=True)
            sums = np.bincount(of_group, values - mean)
            if (num := len(sums)) > 1:
                shared = np.sqrt(num / (num - 1) * np.sum(sums**2)) / n
                stderr = max(stderr, float(shared))
    return Estimate(float(mean), stderr, n, unit)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two independent estimates; n is that of `a`."""
    stderr = None
    if a.stderr is not None and b.stderr is not None:
        stderr = math.hypot(a.stderr, b.stderr)
    return a._replace(value=a.value - b.value, stderr=stderr)


@dataclasses.dataclass(frozen=True)
class WeightSums:
    """Sums over a stream of weights w, in float64 log space; they merge exactly.

    Attributes:
      count: n, how many weights.
      log_sums: log sum w^j for the powers j = 1, 2, 3, 4.
    """

    count: int = 0
    log_sums: tuple[float, ...] = (-np.inf,) * 4

    def add(self, log_w: Array | np.ndarray) -> "WeightSums":
        """The sums with log-weights [m] added."""
        log_w = np.asarray(log_w, np.float64)
        powers = (scipy.special.logsumexp(j * log_w) for j in (1, 2, 3, 4))
        return self.merge(WeightSums(log_w.size, tuple(powers)))

    def merge(self, other: "WeightSums") -> "WeightSums":
        """The sums of both streams."""
        log_sums = np.logaddexp(self.log_sums, other.log_sums)
        return WeightSums(self.count + other.count, tuple(log_sums.tolist()))

    @property
    def ess(self) -> float:
        """Effective sample size (sum w)^2 / sum w^2, in [1, n]."""
        return float(np.exp(2 * self.log_sums[0] - self.log_sums[1]))

    @property
    def is_enough(self) -> bool:
        """Whether an error that is computed from these weights can be believed."""
        return self.count > 1 and self.ess >= MIN_ESS * (1 - 1e-9)

    @property
    def ess_fraction(self) -> Estimate:
        """ESS / n, tending to (E w)^2 / E w^2; standard error by the delta method.

        None below `MIN_ESS`: where few draws carry the weight, the largest is not yet
        among them, and the fraction is too high by far more than it seems.
        """
        n = self.count
        # Moments of w scaled to mean 1; f = 1 / m2 and its linearisation in m1, m2.
        m2, m3, m4 = (
            np.exp(s - np.log(n) - j * (self.log_sums[0] - np.log(n)))
            for j, s in enumerate(self.log_sums[1:], start=2)
        )
        variance = 4 * m2 + m4 / m2**2 - 4 * m3 / m2 - 1
        stderr = float(np.sqrt(max(variance, 0.0) / n) / m2) if self.is_enough else None
        return Estimate(float(1 / m2), stderr, n, "fraction")

    @property
    def log_mean(self) -> Estimate:
        """log (1/n) sum w with its standard error by the delta method, nats.

        exp of it is unbiased, so the log itself is low by about half its squared
        standard error.  Below `MIN_ESS` there is none: at an effective 8 draws
        it was several times too small.
        """
        n = self.count
        relative_variance = max(n / self.ess - 1.0, 0.0)  # of one weight
        stderr = math.sqrt(relative_variance / n) if self.is_enough else None
        return Estimate(self.log_sums[0] - math.log(n), stderr, n, "nats")
