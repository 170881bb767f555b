"""Test likelihoods under many priors from the same draws of q(z | x).

Of each example z_1 .. z_S ~ q(z | x) are drawn once, and so is what of their weights
knows no prior, log p(x | z_s) - log q(z_s | x); a prior then needs log p(z_s) alone.
All having the same draws, the difference of two is far tighter than either likelihood.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import results
from ncp_jax.comparison.kept import NOTHING, Kept
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.data import datasets
from ncp_jax.evaluation import importance
from ncp_jax.evaluation.importance import Estimate, WeightSums
from ncp_jax.priors.ex_post.contract import LatentPrior, Unnormalised
from ncp_jax.training.loop import Prepare

Array = jax.Array
Name = TypeVar("Name", bound=Hashable)

LOG_Z_STDERR = 0.02  # nats, of log Z: draws of it end here
LOG_Z_ROUNDS = 10  # of draws, or here
NUM_ESTIMATED = 40  # batches of encodings, at least, whose density is estimated
NUM_SHARES = 20  # groups of examples, at least, that share the noise of such a density


class Likelihoods(NamedTuple):
    """What several fits of every prior say of the same examples."""

    nll_base: Estimate | None  # None where q(z | x) has no density
    of_fits: dict[str, list[dict[str, Estimate]]]  # by prior, of each of its fits
    means: dict[str, dict[str, Estimate]]  # over the fits of a prior


def measure(
    model: Compared,
    base: LatentPrior,
    priors: Mapping[str, Sequence[LatentPrior]],
    stored: np.ndarray,
    prepare: Prepare,
    key: Array,
    settings: ComparisonSettings,
    kept: Kept = NOTHING,
) -> Likelihoods:
    """Measures `nll`, `gain` and, of priors known up to it, `log_z`, in nats.

    Of a model whose z is a function of x there is `log_z` alone.

    Args:
      model: the frozen VAE.
      base: its own prior, as of `one_vector.Compared`.
      priors: the fits of each, by name.
      stored: [N, ...] examples.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      settings: how much is drawn.
      kept: what was measured before; the base's name is ("", 0).
    """
    each = {(name, i): p for name, of in priors.items() for i, p in enumerate(of)}
    log_p: dict[tuple[str, int], np.ndarray] = {}
    if not model.is_deterministic:
        log_p = log_marginals(
            model,
            {n: model.whole(prior) for n, prior in {("", 0): base, **each}.items()},
            stored,
            prepare,
            rng.stream(key, "draws of q"),
            num_importance_samples=settings.num_importance_samples,
            chunk_size=settings.chunk_size,
            batch_size=settings.batch_size,
            kept=kept,
        )
    of_base = log_p.pop(("", 0), None)
    log_z_key = rng.stream(key, "log_z")
    shares = _shares(len(stored), settings.batch_size)
    own = shares if base.density == "lower bound" else None
    nll = None if of_base is None else importance.mean_estimate(-of_base, "nats", own)
    found = Likelihoods(nll, {}, {})
    for name, of in priors.items():
        groups = shares if of[0].density == "lower bound" else own
        z = [
            _log_z((name, i), prior, rng.at_step(log_z_key, i), settings, kept)
            for i, prior in enumerate(of)
        ]
        found.of_fits[name] = [
            estimates(log_p.get((name, i)), of_base, z[i], groups)
            for i in range(len(of))
        ]
        known = [log_p[name, i] for i in range(len(of)) if (name, i) in log_p]
        mean_z = results.mean([v for v in z if v is not None]) if any(z) else None
        mean = _mean(known) if known else None
        found.means[name] = estimates(mean, of_base, mean_z, groups)
    return found


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of arrays; of equal ones just those: p gains 0 over itself."""
    first, whole = values[0], np.mean(values, 0)
    with np.errstate(invalid="ignore"):
        shifted = first + np.mean([value - first for value in values], 0)
    return np.where(np.isfinite(whole), shifted, whole)


def _log_z(
    name: tuple[str, int],
    prior: LatentPrior,
    key: Array,
    settings: ComparisonSettings,
    kept: Kept,
) -> Estimate | None:
    if not isinstance(prior, Unnormalised) or prior.density != "up to log Z":
        return None
    num, size = settings.num_log_z_draws, settings.log_z_batch_size
    found = kept.on(LOG_Z_STDERR, LOG_Z_ROUNDS).one(
        "log-z", name, lambda: log_z(prior, key, num, size).log_mean
    )
    return Estimate(*found)


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def log_marginals(
    model: Compared,
    priors: Mapping[Name, LatentPrior],
    stored: np.ndarray,
    prepare: Prepare,
    key: Array,
    *,
    num_importance_samples: int,
    chunk_size: int,
    batch_size: int,
    kept: Kept = NOTHING,
) -> dict[Name, np.ndarray]:
    """Bounds log p(x) of every example under every prior from below.

    log (1/S) sum_s p(x | z_s) p(z_s) / q(z_s | x): Burda et al., "Importance Weighted
    Autoencoders", Eq. (8).  Where a prior estimates its density without bias, the
    weights keep their mean, and it is a lower bound still.

    Args:
      model: the frozen VAE.
      priors: by name; those of density "none" are left out.
      stored: [N, ...] examples.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      num_importance_samples: S.
      chunk_size: draws of each example at a time; bounds the memory, and does not
        change the draws.  Those that share a chunk share the noise of a density that
        is estimated, so its numbers depend on it.
      batch_size: examples at a time; the draws depend on it.  They share that noise,
        too, or smaller groups of them do where there would be few (`_shares`).
      kept: what was measured before.

    Returns:
      Per prior [N] nats; of one "up to log Z" still to be reduced by log Z.
    """
    priors = {n: prior for n, prior in priors.items() if prior.density != "none"}
    size, share = min(batch_size, len(stored)), _share(len(stored), batch_size)
    kept = kept if share == size else kept.on("share", share)
    of_batches: list[dict[Name, np.ndarray]] = []
    for i, (batch, mask) in enumerate(datasets.padded_batches(stored, size)):
        sums = partial(
            _log_sums,
            model,
            priors,
            jax.jit(prepare),
            batch,
            rng.at_step(key, i),
            num_importance_samples,
            min(chunk_size, num_importance_samples),
            share,
        )
        of_batch = kept.each(f"likelihoods-{i:04d}", list(priors), sums)
        of_batches.append({n: np.asarray(v)[mask] for n, v in of_batch.items()})
        num_done = min((i + 1) * size, len(stored))
        print(f"compare: likelihoods of {num_done:,} of {len(stored):,} examples")
    log_s = np.log(num_importance_samples)
    return {
        name: np.concatenate([of_batch[name] for of_batch in of_batches]) - log_s
        for name in priors
    }


def _log_sums(
    model: Compared,
    priors: Mapping[Name, LatentPrior],
    prepare: Callable[[Array, np.ndarray], Array],
    stored: np.ndarray,
    key: Array,
    num_importance_samples: int,
    chunk_size: int,
    share: int,
    names: Sequence[Name],
) -> dict[Name, list[float]]:
    """log of the sum of weights of every example of a batch, by prior."""
    x = prepare(rng.stream(key, "prepare"), stored)
    sums = dict.fromkeys(names, jnp.full(len(x), -jnp.inf))
    for first in range(0, num_importance_samples, chunk_size):
        num = min(chunk_size, num_importance_samples - first)
        z, log_w = _draw(num, model, x, rng.stream(key, "posterior"), first)
        density_key = rng.at_step(rng.stream(key, "densities"), first)
        for name in names:
            sums[name] = _add(share, priors[name], z, log_w, density_key, sums[name])
    return {name: np.asarray(v, np.float64).tolist() for name, v in sums.items()}


@partial(jax.jit, static_argnums=0)
def _draw(
    num: int, model: Compared, x: Array, key: Array, first: Array | int
) -> tuple[Array, Array]:
    """Draws number `first` and following: z [num, B, D], log p(x | z) / q(z | x)."""

    def one(s: Array) -> tuple[Array, Array]:
        z, log_q = model.encode(x, rng.at_step(key, s))
        return z, model.decode(z).log_prob(x) - log_q

    return jax.vmap(one)(first + jnp.arange(num))


@partial(jax.jit, static_argnums=0)
def _add(
    share: int, prior: LatentPrior, z: Array, log_w: Array, key: Array, total: Array
) -> Array:
    """log of the sum of weights [B], with those of z [C, B, D] added."""
    log_p = _log_p(prior, z, key, share)
    return jnp.logaddexp(total, jax.nn.logsumexp(log_w + log_p, 0))


def _log_p(prior: LatentPrior, z: Array, key: Array, share: int) -> Array:
    """log p(z) [C, B] of z [C, B, D], where `share` examples have noise in common."""
    num_draws, num_examples, dim = z.shape
    if prior.density != "lower bound" or share >= num_examples:
        return prior.log_prob(z.reshape(-1, dim), key).reshape(z.shape[:2])
    num = math.ceil(num_examples / share)
    z = jnp.pad(z, ((0, 0), (0, num * share - num_examples), (0, 0)), mode="edge")
    shares = z.reshape(num_draws, num, share, dim).swapaxes(0, 1)
    keys = jax.vmap(rng.at_step, (None, 0))(key, jnp.arange(num))
    log_p = jax.lax.map(
        lambda of: prior.log_prob(*of), (shares.reshape(num, -1, dim), keys)
    )
    log_p = log_p.reshape(num, num_draws, share).swapaxes(0, 1)
    return log_p.reshape(num_draws, -1)[:, :num_examples]


def _share(num_examples: int, batch_size: int) -> int:
    """How many examples of a batch have the noise of an estimated density in common.

    All of them, if there are enough batches to tell the error from.
    """
    size = min(batch_size, num_examples)
    shares_of_batch = math.ceil(NUM_SHARES / math.ceil(num_examples / size))
    return math.ceil(size / shares_of_batch)


def _shares(num_examples: int, batch_size: int) -> np.ndarray:
    """Numbers [N] of examples, equal for those that share noise."""
    size, share = min(batch_size, num_examples), _share(num_examples, batch_size)
    batch, row = np.divmod(np.arange(num_examples), size)
    return batch * size + row // share


@jax.default_matmul_precision("float32")
def log_z(
    prior: Unnormalised, key: Array, num_draws: int, batch_size: int
) -> WeightSums:
    """Sums of independent unbiased estimates of Z, whose `log_mean` is log Z.

    There are rounds of them until the standard error is `LOG_Z_STDERR` or less, or has
    not become so in `LOG_Z_ROUNDS`: a large ratio may need millions.

    Args:
      prior: of density "up to log Z".
      key: PRNG key; consumed here.
      num_draws: estimates of a round.
      batch_size: at a time.
    """
    sums, size = WeightSums(), min(batch_size, num_draws)
    for start in range(0, LOG_Z_ROUNDS * num_draws, num_draws):
        for first in range(start, start + num_draws, size):
            log_w = np.asarray(_log_z_weights(size, prior, key, first))
            sums = sums.add(log_w[: start + num_draws - first])
        stderr = sums.log_mean.stderr
        if stderr is not None and stderr <= LOG_Z_STDERR:
            break
    return sums


@partial(jax.jit, static_argnums=0)
def _log_z_weights(
    num: int, prior: Unnormalised, key: Array, first: Array | int
) -> Array:
    keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(num))
    return prior.log_z_weights(keys)


@jax.default_matmul_precision("float32")
def gain_of_encodings(
    prior: LatentPrior,
    base: LatentPrior,
    z: Array,
    log_z: Estimate | None,
    key: Array,
    batch_size: int,
) -> Estimate | None:
    """The mean of log p(z) - log p_base(z) over encodings, in nats.

    It is what the prior gains in the ELBO of the examples, which has no other term
    with p(z) in it.  No decoder is asked.

    Args:
      prior: of any density; None is returned for "none".
      base: the VAE's own.
      z: [M, P, D], P draws of q(z | x) for each of M examples.
      log_z: of a prior "up to log Z", else None.
      key: PRNG key of densities that are estimated, the base's among them: over itself
        it gains 0.  Consumed here.
      batch_size: of z at a time.  Those of a batch share the noise of a density that is
        estimated, so there batches are smaller, and their means tell the error.
    """
    if prior.density == "none":
        return None
    flat = np.asarray(z).reshape(-1, z.shape[-1])
    is_estimated = "lower bound" in (prior.density, base.density)
    size = -(-len(flat) // NUM_ESTIMATED) if is_estimated else len(flat)
    batches = datasets.padded_batches(flat, min(batch_size, size))
    gains = [
        np.asarray(_log_ratio(prior, base, batch, rng.at_step(key, i)))[mask]
        for i, (batch, mask) in enumerate(batches)
    ]
    of_examples = np.concatenate(gains).reshape(z.shape[:2]).mean(axis=1)
    gain = importance.mean_estimate(of_examples, "nats")
    if is_estimated and len(gains) > 1:
        means = np.asarray([of_batch.mean() for of_batch in gains])
        of_batches = importance.mean_estimate(means, "nats")
        gain = gain._replace(stderr=of_batches.stderr)
    return gain if log_z is None else importance.difference(gain, log_z)


@jax.jit
def _log_ratio(prior: LatentPrior, base: LatentPrior, z: Array, key: Array) -> Array:
    return prior.log_prob(z, key) - base.log_prob(z, key)


def estimates(
    log_p: np.ndarray | None,
    log_p_base: np.ndarray | None,
    z: Estimate | None,
    groups: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """The negative log-likelihood, and the gain over the base prior, of one prior.

    The gain is the mean of the examples' differences, so its error is that of a paired
    comparison; the error of log Z is independent of it and added.

    Args:
      log_p: [N] of `log_marginals`; None of a prior without a density.
      log_p_base: [N] of the same draws, under the base prior; None where q(z | x) has
        no density.
      z: log Z of a prior "up to log Z", else None.
      groups: [N] of `importance.mean_estimate`, where one of the densities is
        estimated.

    Returns:
      `nll`, `gain` and `log_z`, in nats, as far as they are known.
    """
    if log_p is None or log_p_base is None:
        return {} if z is None else {"log_z": z}
    found = {
        "nll": importance.mean_estimate(-log_p, "nats", groups),
        "gain": importance.mean_estimate(log_p - log_p_base, "nats", groups),
    }
    if z is None:
        return found
    minus = z._replace(value=-z.value)
    return {
        "nll": importance.difference(found["nll"], minus),
        "gain": importance.difference(found["gain"], z),
        "log_z": z,
    }
