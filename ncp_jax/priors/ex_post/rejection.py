"""Priors that sample by rejection, T times at most: LARS and TRS.

Both draw z ~ p until one is accepted, each with probability a(z), and take the T-th as
it is.  So their density is the same, p(z) [a(z) (1 - alpha) / Z + alpha] with
Z = E_p[a] and alpha = (1 - Z)^(T-1).  LARS (Bauer and Mnih, 2019) estimates Z; TRS
(Lawson et al., 2019) bounds the density without it.
"""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post.contract import (
    Density,
    Encodings,
    Fit,
    LatentPrior,
    Training,
    over_base,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import Loss, minimise
from ncp_jax.samplers.resampling import log_mean_exp
from ncp_jax.training.loop import PyTree

Array = jax.Array

EMA_DECAY = 0.99  # of Z while LARS learns
MAX_LOG_Z = -1e-6  # at Z = 1 alpha has no log
TINY = 1e-30  # of a probability, before its log


@dataclasses.dataclass(frozen=True)
class Truncated:
    """A prior that draws until one is accepted, T times at most.

    Attributes:
      base: p, of exact density.
      params: of the logit of a.
      network: of the logit of a.
      num_attempts: T, 2 or more.
    """

    base: LatentPrior
    params: PyTree
    network: RatioMLP = dataclasses.field(metadata={"static": True})
    num_attempts: int = dataclasses.field(metadata={"static": True})

    def log_a(self, z: Array) -> Array:
        """log of the probability that z [B, D] is accepted: [B], nats."""
        return jax.nn.log_sigmoid(self.network.log_r(self.params, z))

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, of just the density of the prior."""
        draws, _ = samplers.truncated_rejection(
            keys, self.base.sample, self.log_a, num_attempts=self.num_attempts
        )
        return draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LARS(Truncated):
    """Learned accept/reject sampling; `log_prob` is exact but for the error of Z.

    Attributes:
      log_z: [] log Z = log E_p[a], nats, of many draws.
      log_z_stderr: [] its standard error, which is also about that of `log_prob`; where
        a is next to 0 it counts up to (T - 1) Z / (1 - Z) times.
    """

    density: ClassVar[Density] = "exact"

    log_z: Array
    log_z_stderr: Array

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) of z [B, D]: [B], nats."""
        del key
        excess = truncated(self.log_a(z), self.log_z, self.num_attempts)
        return self.base.log_prob(z) + excess


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TRS(Truncated):
    """Truncated rejection sampling, whose density is bounded from below.

    Attributes:
      num_draws: base draws that stand for those refused, T - 1 or more.
    """

    density: ClassVar[Density] = "lower bound"

    num_draws: int = dataclasses.field(metadata={"static": True})

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log of an unbiased estimate of p(z), of z [B, D]: [B], nats.

        With z_1 .. z_(T-1) drawn from the base p,

          p(z) E[a(z) sum_(t<T) prod_(i<t) (1 - a(z_i)) + prod_(i<T) (1 - a(z_i))]

        is the density; estimated by the mean over all choices of z_i among `num_draws`.
        Lawson et al. choose one and take the log of its parts, so their bound is lower.

        Args:
          z: [B, D].
          key: PRNG key of z_i, which all z share; consumed here.
        """
        if key is None:
            raise ValueError("the density of TRS is estimated, which needs a key")
        return self.base.log_prob(z) + self.excess(z, key)

    def excess(self, z: Array, key: Array) -> Array:
        """The same without log p: [B], nats."""
        draws = self.base.sample(jax.random.split(key, self.num_draws))
        refused = jax.nn.sigmoid(-self.network.log_r(self.params, draws))
        survival = mean_products(refused, self.num_attempts)
        visits, last = jnp.sum(survival[:-1]), jnp.maximum(survival[-1], TINY)
        return jnp.logaddexp(self.log_a(z) + jnp.log(visits), jnp.log(last))


@dataclasses.dataclass(frozen=True)
class TruncatedSettings:
    """What LARS and TRS have in common.

    Attributes:
      base: the prior that is sampled, fitted first; None for the VAE's own.
      hidden_dims: widths of the hidden layers of the logit of a.
      activation: name of a function in `jax.nn`.
      num_attempts: T, 2 or more.
      num_draws: base draws of an update, for Z or in the place of those refused.
      acceptance: a before training: next to 1 the density has no room to grow, and
        where (1 - a)^T is large the last attempt is most of it.
      training: how long and how fast.
    """

    base: Fit | None = None
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    num_attempts: int = 100
    num_draws: int = 1_024
    acceptance: float = 0.1
    training: Training = dataclasses.field(default=Training())

    @property
    def network(self) -> RatioMLP:
        """What the logit of a is computed with."""
        return RatioMLP(self.hidden_dims, self.activation)

    def start(self, key: Array, dim: int) -> PyTree:
        """Parameters with which a(z) = `acceptance` for all z [B, dim]."""
        return accepting(self.network, self.acceptance, key, dim)


@dataclasses.dataclass(frozen=True)
class TRSSettings(TruncatedSettings):
    """How TRS learns: by its bound, with other draws in each update.

    Attributes:
      num_density_draws: base draws of every `log_prob` in the end.

    Raises:
      InputError: fewer draws than can be refused.
    """

    num_density_draws: int = 8_192

    def __post_init__(self) -> None:
        """Checks the number of draws."""
        fewest = min(self.num_draws, self.num_density_draws)
        if fewest < self.num_attempts - 1:
            raise InputError(
                f"num_draws = {self.num_draws} and num_density_draws = "
                f"{self.num_density_draws} of TRS: num_attempts = "
                f"{self.num_attempts} needs {self.num_attempts - 1} or more of both"
            )

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> TRS:
        """Returns the prior with the highest held-out bound."""
        encodings = with_base(self.base, key, encodings, folder)
        sizes = self.num_attempts, self.num_draws

        def loss(params: PyTree, z: Array, key: Array, base: LatentPrior) -> Array:
            return -jnp.mean(TRS(base, params, self.network, *sizes).excess(z, key))

        params = minimise(
            "trs",
            loss,
            self.start(rng.stream(key, "start"), encodings.train.shape[-1]),
            encodings,
            self.training,
            key,
            folder,
            fixed=(encodings.base,),
            settings=dataclasses.replace(
                self, base=None, num_density_draws=self.num_draws
            ),
        )
        sizes = self.num_attempts, self.num_density_draws
        return TRS(encodings.base, params, self.network, *sizes)


@dataclasses.dataclass(frozen=True)
class LARSSettings(TruncatedSettings):
    """How LARS learns: by its density, with a running average in the place of Z.

    The gradient of Z is that of the update's own draws.  The average starts where Z is,
    and every update moves it.

    Attributes:
      num_score_draws: base draws for Z in a validation.
      num_z_draws: base draws for Z in the end.
    """

    num_score_draws: int = 20_000
    num_z_draws: int = 4_000_000

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> LARS:
        """Returns the prior with the highest held-out density."""
        encodings = with_base(self.base, key, encodings, folder)
        loss, score = self._losses()
        params = minimise(
            "lars",
            loss,
            self.start(rng.stream(key, "start"), encodings.train.shape[-1]),
            encodings,
            self.training,
            key,
            folder,
            score=score,
            fixed=(encodings.base,),
            carry=self.acceptance,  # Z before the first update
            settings=dataclasses.replace(self, base=None, num_z_draws=0),
        )
        fitted = encodings.base, params, self.network, self.num_attempts
        log_a, z_key = Truncated(*fitted).log_a, rng.stream(key, "log z")
        draws = over_base(encodings.base, log_a, z_key, self.num_z_draws)
        return LARS(*fitted, *with_stderr(draws))

    def _losses(self) -> tuple[Loss, Loss]:
        """What updates minimise, and what chooses the weights, whose Z is its own."""
        network, num_attempts = self.network, self.num_attempts

        def loss(
            params: PyTree, z: Array, key: Array, base: LatentPrior, average: Array
        ) -> tuple[Array, Array]:
            log_a = Truncated(base, params, network, num_attempts).log_a
            newest = log_mean_exp(over_base(base, log_a, key, self.num_draws))
            log_z, average = averaged_log_z(newest, average)
            return -jnp.mean(truncated(log_a(z), log_z, num_attempts)), average

        def score(params: PyTree, z: Array, key: Array, base: LatentPrior) -> Array:
            log_a = Truncated(base, params, network, num_attempts).log_a
            log_z = log_mean_exp(over_base(base, log_a, key, self.num_score_draws))
            return -jnp.mean(truncated(log_a(z), log_z, num_attempts))

        return loss, score


def accepting(network: RatioMLP, acceptance: float, key: Array, dim: int) -> PyTree:
    """Parameters of the logit of a with which a(z) is `acceptance` everywhere."""
    last = f"Dense_{len(network.hidden_dims)}"
    params = network.start(key, dim)
    logit = math.log(acceptance) - math.log1p(-acceptance)
    bias = jnp.full(1, logit, jnp.float32)
    return params | {last: params[last] | {"bias": bias}}


def averaged_log_z(newest: Array, average: Array) -> tuple[Array, Array]:
    """log Z of a running average, with the gradient of the newest estimate of Z.

    Args:
      newest: [] nats, the log of an unbiased estimate.
      average: [] Z before this update.

    Returns:
      [] nats, and the average after the update.
    """
    z = jnp.exp(newest)
    seen = jax.lax.stop_gradient(z)
    average = EMA_DECAY * average + (1.0 - EMA_DECAY) * seen
    return jnp.log(average + (z - seen)), average


def with_stderr(log_a: Array) -> tuple[Array, Array]:
    """log Z and its standard error, [] each, from log a of base draws [N]; nats."""
    log_z = log_mean_exp(log_a)
    return log_z, jnp.std(jnp.exp(log_a - log_z)) / len(log_a) ** 0.5


def mean_products(factors: Array, num_terms: int) -> Array:
    """The mean product of t of the factors, over all choices of t, for t = 0 .. T-1.

    A U-statistic: of independent factors it is the unbiased estimate of E[factor]^t of
    least variance.  With M_t(n) that of the first n factors b,
    M_t(n) = (1 - t/n) M_t(n - 1) + (t/n) b_n M_(t-1)(n - 1).

    Args:
      factors: [N] in [0, 1], N of T - 1 or more.
      num_terms: T.

    Returns:
      [T].
    """
    t = jnp.arange(num_terms, dtype=factors.dtype)

    def add(means: Array, n_and_factor: tuple[Array, Array]) -> tuple[Array, None]:
        n, factor = n_and_factor
        share = jnp.minimum(t / n, 1.0)  # more terms than factors: not read later
        shorter = jnp.concatenate([jnp.zeros(1, means.dtype), means[:-1]])
        return (1.0 - share) * means + share * factor * shorter, None

    start = jnp.zeros(num_terms, factors.dtype).at[0].set(1.0)
    n = jnp.arange(1, len(factors) + 1, dtype=factors.dtype)
    means, _ = jax.lax.scan(add, start, (n, factors))
    return means


def truncated(log_a: Array, log_z: Array, num_attempts: int) -> Array:
    """log of a (1 - alpha) / Z + alpha with alpha = (1 - Z)^(T-1): [B], nats.

    Args:
      log_a: [B] log of the probability of being accepted.
      log_z: [] log Z.
      num_attempts: T, 2 or more.
    """
    log_z = jnp.minimum(log_z, MAX_LOG_Z)
    log_alpha = (num_attempts - 1) * jnp.log1p(-jnp.exp(log_z))
    log_rest = jnp.log(-jnp.expm1(log_alpha))
    return jnp.logaddexp(log_a + log_rest - log_z, log_alpha)
