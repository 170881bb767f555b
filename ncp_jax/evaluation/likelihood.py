"""The test likelihoods of the base prior, of the NCP and of its SIR sampler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.evaluation import importance
from ncp_jax.evaluation.bounds import Bounds, example_bounds
from ncp_jax.evaluation.diagnostics import Batches, over_examples, progress
from ncp_jax.evaluation.importance import Estimate, WeightSums
from ncp_jax.priors import ncp_prior
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.training.loop import Prepare

Array = jax.Array

NONE = (
    "No likelihoods and no gains: z is a function of x in this model, so q(z | x) is a "
    "point and has no density. What is measured of draws and of stage 2 needs none."
)
SIZES = (  # of `example_bounds`: with others it is another program
    "num_importance_samples",
    "num_snis_samples",
    "num_snis_proposals",
    "chunk_size",
)


def log_z(
    ncp: NCPPrior,
    key: Array,
    num_draws: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> tuple[WeightSums, np.ndarray]:
    """Estimates log Z = log E_p[prod_k r_k] from ancestral draws of the base prior.

    Draw i depends on (key, i) alone: not on the batch size or the number of devices,
    except for rounding.

    Args:
      ncp: the prior.
      key: PRNG key; consumed here.
      num_draws: how many.
      batch_size: draws at a time, of all devices together; bounds the memory.
      mesh: the devices that share a batch; None for one.

    Returns:
      The sums of the weights, and the way there: rows (number of draws, log Z, its
      standard error) at every doubling of the batches and at the end.
    """
    mesh = mesh or parallel.one_device()
    size = -(-min(batch_size, num_draws) // mesh.size) * mesh.size
    sums, course = WeightSums(), []
    num_batches = -(-num_draws // size)
    for i in progress(range(num_batches), "log Z"):
        log_r = np.asarray(_draw_log_r(mesh, size, ncp, key, i * size))
        sums = sums.add(log_r[: num_draws - i * size])
        if (i + 1) & i == 0 or i + 1 == num_batches:
            course.append((sums.count, sums.log_mean.value, sums.log_mean.stderr))
    return sums, np.asarray(course, np.float64)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_log_r(
    mesh: Mesh, num_draws: int, ncp: NCPPrior, key: Array, first: int
) -> Array:
    """The sum of log r_k along draws number `first` and following: [num_draws]."""

    def share(ncp: NCPPrior, keys: Array) -> Array:
        with jax.default_matmul_precision("float32"):  # TF32 would move log-weights
            return jnp.sum(ncp_prior.base_draw_ratios(ncp, keys), 0)

    keys = jax.vmap(rng.at_step, (None, 0))(key, first + jnp.arange(num_draws))
    return parallel.over_device_chains(mesh, share, ncp, keys)


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def measure(
    ncp: NCPPrior,
    batches: Batches,
    prepare: Prepare,
    key: Array,
    *,
    num_importance_samples: int,
    num_snis_samples: int,
    num_snis_proposals: int,
    num_log_z_draws: int,
    chunk_size: int,
    log_z_batch_size: int,
    num_binarizations: int = 1,
    max_log_z_stderr: float = 0.1,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The test likelihoods of the base prior and of the NCP, and their difference.

    The estimate of log Z is low by about half its squared standard error, which
    flatters `nll_ncp` and `gain_nats` by as much; `nll_snis` needs no log Z.

    Args:
      ncp: the prior and its frozen VAE.
      batches: of stored examples, padded.
      prepare: (key, stored) -> x; where it binarises, with noise from its key.
      key: PRNG key; consumed here.
      num_importance_samples: as the next two and `chunk_size`, of `example_bounds`.
      num_snis_samples: see there.
      num_snis_proposals: see there.
      num_log_z_draws: of the base prior, for log Z.
      chunk_size: see `example_bounds`.
      log_z_batch_size: draws for log Z at a time.
      num_binarizations: passes over all examples, each prepared with other noise.  An
        example's values are averaged first, so errors are those over examples.
      max_log_z_stderr: nats, 0 for no bound.  With a larger standard error of log Z
        `nll_ncp` and `gain_nats` are left out, and `log_z_draws_missing` is there.
        An error e needs an effective sample size of about 1 / e^2.  Without a bound
        they are there, but below `importance.MIN_ESS` effective draws log Z and what
        is made of it have no standard error.
      mesh: the devices that share the draws for log Z; None for one.

    Returns:
      Estimates by name, negative log-likelihoods in nats; and arrays for plots.
    """
    bounds = partial(
        _bounds,
        ncp,
        prepare=prepare,
        num_importance_samples=num_importance_samples,
        num_snis_samples=num_snis_samples,
        num_snis_proposals=num_snis_proposals,
        chunk_size=chunk_size,
    )
    repeated = list(batches) * num_binarizations
    each = over_examples(bounds, repeated, rng.stream(key, "examples"))
    sums, course = log_z(
        ncp, rng.stream(key, "log_z"), num_log_z_draws, log_z_batch_size, mesh
    )
    missing = missing_draws(sums, max_log_z_stderr)
    estimates = _of_examples(each, num_binarizations, sums.log_mean, missing is None)
    estimates |= _of_weights(sums)
    if missing is not None:
        estimates["log_z_draws_missing"] = missing
    return estimates, {"log_z_curve": course}


def measure_normaliser(
    ncp: NCPPrior,
    key: Array,
    *,
    num_log_z_draws: int,
    log_z_batch_size: int,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The part of `measure` that asks for no density q(z | x): log Z.

    Args:
      ncp: the prior and its frozen model.
      key: PRNG key; consumed here.
      num_log_z_draws: of the base prior.
      log_z_batch_size: of them at a time.
      mesh: the devices that share them; None for one.

    Returns:
      `log_z` and `ess_fraction`; and the arrays of `measure`, with `note_likelihood`,
      which says why there is no more.
    """
    sums, course = log_z(
        ncp, rng.stream(key, "log_z"), num_log_z_draws, log_z_batch_size, mesh
    )
    arrays = {"log_z_curve": course, "note_likelihood": np.array(NONE)}
    return _of_weights(sums), arrays


def _of_weights(sums: WeightSums) -> dict[str, Estimate]:
    return {"log_z": sums.log_mean, "ess_fraction": sums.ess_fraction}


@partial(jax.jit, static_argnames=("prepare", *SIZES))
def _bounds(
    ncp: NCPPrior, stored: Array, key: Array, *, prepare: Prepare, **sizes: int
) -> Bounds:
    """`example_bounds` of one batch of stored examples [B, ...]."""
    x = prepare(rng.stream(key, "prepare"), stored)
    return example_bounds(ncp, x, rng.stream(key, "bounds"), **sizes)


def _of_examples(
    bounds: Bounds, num_repeats: int, z: Estimate, is_z_known: bool
) -> dict[str, Estimate]:
    """Estimates from the bounds of N examples, each there `num_repeats` times.

    The error of log Z is independent of that of the examples.
    """
    each = jax.tree.map(
        lambda v: v.reshape(num_repeats, -1).mean(0, dtype=np.float64), bounds
    )
    mean = partial(importance.mean_estimate, unit="nats")
    estimates = {
        "elbo_base": mean(each.elbo),
        "nll_base": mean(-each.base),
        "nll_snis": mean(-each.snis),
        "gain_snis_nats": mean(each.snis - each.base),
    }
    if is_z_known:
        log_p = importance.difference(mean(each.ncp), z)
        estimates["nll_ncp"] = log_p._replace(value=-log_p.value)
        estimates["gain_nats"] = importance.difference(mean(each.ncp - each.base), z)
    return estimates


def missing_draws(sums: WeightSums, max_stderr: float) -> Estimate | None:
    """How many more draws should bring the standard error of log Z to `max_stderr`.

    n draws leave the variance (E[r^2] / E[r]^2 - 1) / n = (1 / f - 1) / n, with f the
    fraction ESS / n; and `importance.MIN_ESS` / f draws are needed for any error to be
    believed.  Where few draws carry the weight, f is still too high and this too low.

    Returns:
      None if there are enough draws already, or no bound.
    """
    stderr, f, n = sums.log_mean.stderr, sums.ess_fraction, sums.count
    if not max_stderr or (stderr is not None and stderr <= max_stderr):
        return None
    total = max((1 / f.value - 1) / max_stderr**2, importance.MIN_ESS / f.value)
    error = None if f.stderr is None else f.stderr / f.value**2 / max_stderr**2
    return Estimate(max(total - n, 1.0), error, n, "draws")


def refusal(
    estimates: dict[str, Estimate], max_stderr: float, section: str = ""
) -> str:
    """Why there is no `nll_ncp` or no error of it, and what would help; else "".

    Args:
      estimates: of `measure`.
      max_stderr: that it was called with.
      section: of a config, that stands before the names of its arguments.
    """
    z, ess = estimates["log_z"], estimates["ess_fraction"].value * estimates["log_z"].n
    known = (
        f"log Z has a standard error of {z.stderr or 0:.3g} nats after {z.n:,} draws"
    )
    if z.stderr is None:
        known = (
            f"log Z rests on {ess:.3g} effective draws of {z.n:,}, and below "
            f"{importance.MIN_ESS:g} no standard error can be believed"
        )
    if "log_z_draws_missing" not in estimates:
        few = f"no interval of nll_ncp, gain_nats and log_z: {known}"
        return few if z.stderr is None else ""
    missing = estimates["log_z_draws_missing"]
    return (
        f"no nll_ncp and gain_nats: {known}, {section}max_log_z_stderr is "
        f"{max_stderr:g}; about {missing.value:,.0f} more draws are needed "
        f"({section}num_log_z_draws={z.n + missing.value:.0f})"
    )
