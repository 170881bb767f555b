"""Measures of a trained NCP on held-out examples, each with its standard error."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import importance, prior, rng, samplers
from ncp_jax.importance import Estimate, WeightSums
from ncp_jax.latents import contrastive_draws, log_prior
from ncp_jax.models.base import Latents, LatentVariableModel
from ncp_jax.ncp_stage import contrast
from ncp_jax.prior import NCPPrior
from ncp_jax.training import Prepare

Array = jax.Array
T = TypeVar("T")
# (stored examples [B, ...], mask [B], False for padding)
Batches = Iterable[tuple[np.ndarray, np.ndarray]]


class Bounds(NamedTuple):
    """Lower bounds on log p(x) of each example, in nats: [B]."""

    elbo: Array  # under the base prior, the mean over samples
    base: Array  # importance-weighted, under the base prior
    ncp: Array  # importance-weighted, under r p: still to be reduced by log Z
    snis: Array  # importance-weighted, for what SIR with M proposals draws


def example_bounds(
    ncp: NCPPrior,
    x: Array,
    key: Array,
    *,
    num_importance_samples: int,
    num_snis_proposals: int,
    chunk_size: int,
) -> Bounds:
    """Bounds log p(x) under the base prior, the NCP and its SIR sampler: [B] each.

    The last is Lawson et al., "Energy-Inspired Models", Eq. (5), with several samples:
    a draw of SIR with M proposals has the density
    E[p(z) r(z) / ((r(z) + sum_{j<M} r(z_j)) / M)] with z_j ~ p, so
    p(x | z) p(z) r(z) / (q(z | x) (r(z) + sum_j r(z_j)) / M) is an unbiased estimate
    of that sampler's p(x) and its log a lower bound in expectation.  Every example has
    proposals z_j of its own, which its importance samples share.  Where there are
    several groups the sampler meant is SIR over whole z, not group by group.

    Args:
      ncp: the prior and its frozen VAE.
      x: [B, *data_shape].
      key: PRNG key; consumed here.
      num_importance_samples: S draws of q(z | x) per example.
      num_snis_proposals: M, the posterior's own draw included.
      chunk_size: samples per example at a time; bounds the memory, not the result.
    """
    posterior_key, proposal_key = rng.stream(key, "posterior"), rng.stream(key, "snis")
    batch_size = x.shape[0]

    def weigh(s: Array) -> tuple[Array, Array]:
        latents, log_q = ncp.vae.encode(x, rng.at_step(posterior_key, s))
        log_p, log_r, carry = ncp.terms(latents)
        log_x = ncp.vae.decode(carry).log_prob(x)
        return log_x + jnp.sum(log_p - log_q, 1), jnp.sum(log_r, 1)

    def proposal_ratio(j: Array) -> Array:
        ratios = prior.base_draw_ratios(ncp, rng.at_step(proposal_key, j), batch_size)
        return jnp.sum(ratios, 0)  # [B]

    chunked = partial(jax.lax.map, batch_size=chunk_size)
    log_w, log_r = chunked(weigh, jnp.arange(num_importance_samples))  # [S, B]
    others = jax.nn.logsumexp(
        chunked(proposal_ratio, jnp.arange(num_snis_proposals - 1)), axis=0
    )
    log_normaliser = jnp.logaddexp(log_r, others[None]) - jnp.log(num_snis_proposals)
    bound = importance.importance_weighted_bound
    return Bounds(
        elbo=jnp.mean(log_w, 0),
        base=bound(log_w),
        ncp=bound(log_w + log_r),
        snis=bound(log_w + log_r - log_normaliser),
    )


def over_examples(
    function: Callable[[Any, Array], T], batches: Batches, key: Array
) -> T:
    """Applies (x, key) -> pytree of [B, ...] to all batches; padding is left out.

    Returns:
      The same pytree, its leaves NumPy arrays [N, ...].
    """
    kept = []
    for i, (stored, mask) in enumerate(batches):
        out = jax.device_get(function(stored, rng.at_step(key, i)))
        kept.append(jax.tree.map(lambda leaf, mask=mask: leaf[mask], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def log_z(
    ncp: NCPPrior, key: Array, num_draws: int, batch_size: int
) -> tuple[WeightSums, np.ndarray]:
    """Estimates log Z = log E_p[prod_k r_k] from draws of the base prior.

    Args:
      ncp: the prior.
      key: PRNG key; consumed here.
      num_draws: how many, rounded up to whole batches.
      batch_size: draws at a time.

    Returns:
      The sums of the weights, and the way there: rows (number of draws, log Z, its
      standard error) at every doubling.
    """
    ratios = jax.jit(partial(prior.base_draw_ratios, num_draws=batch_size))
    sums, course = WeightSums(), []
    num_batches = -(-num_draws // batch_size)
    for i in range(num_batches):
        sums = sums.add(jnp.sum(ratios(ncp, rng.at_step(key, i)), 0))
        if (i + 1) & i == 0 or i + 1 == num_batches:
            course.append((sums.count, sums.log_mean.value, sums.log_mean.stderr))
    return sums, np.asarray(course, np.float64)


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def likelihood(
    ncp: NCPPrior,
    batches: Batches,
    prepare: Prepare,
    key: Array,
    *,
    num_importance_samples: int,
    num_snis_proposals: int,
    num_log_z_draws: int,
    chunk_size: int,
    log_z_batch_size: int,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The test likelihoods of the base prior and of the NCP, and their difference.

    The estimate of log Z is low by about half its squared standard error, which
    flatters `nll_ncp` and `gain_nats` by as much; `nll_snis` needs no log Z.

    Returns:
      Estimates by name, negative log-likelihoods in nats; and arrays for plots.
    """

    @jax.jit
    def bounds(ncp: NCPPrior, stored: Array, key: Array) -> Bounds:
        return example_bounds(
            ncp,
            prepare(rng.stream(key, "prepare"), stored),
            rng.stream(key, "bounds"),
            num_importance_samples=num_importance_samples,
            num_snis_proposals=num_snis_proposals,
            chunk_size=chunk_size,
        )

    each = over_examples(partial(bounds, ncp), batches, rng.stream(key, "examples"))
    sums, course = log_z(
        ncp, rng.stream(key, "log_z"), num_log_z_draws, log_z_batch_size
    )
    z = sums.log_mean

    def less_log_z(values: Array) -> Estimate:
        return importance.difference(importance.mean_estimate(values, "nats"), z)

    log_p_ncp, gain = less_log_z(each.ncp), less_log_z(each.ncp - each.base)
    estimates = {
        "elbo_base": importance.mean_estimate(each.elbo, "nats"),
        "nll_base": importance.mean_estimate(-each.base, "nats"),
        "nll_ncp": log_p_ncp._replace(value=-log_p_ncp.value),
        "nll_snis": importance.mean_estimate(-each.snis, "nats"),
        "gain_nats": gain,
        "gain_snis_nats": importance.mean_estimate(each.snis - each.base, "nats"),
        "log_z": z,
        "ess_fraction": sums.ess_fraction,
    }
    return estimates, {"log_z_curve": course}


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def contrast_on_held_out(
    ncp: NCPPrior,
    batches: Batches,
    prepare: Prepare,
    key: Array,
    *,
    num_passes: int,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The discriminators' loss on held-out encodings, and what it says of q and p.

    JSD(p, q) = log 2 - L*/2 (Sec. 5.4), with the loss in the place of its optimum L*,
    so the true divergence is at least that.

    Returns:
      `nce_loss` and `jsd` of each group, in nats; and the log r of posterior and prior
      draws, [K, N].
    """

    @jax.jit
    def logits(ncp: NCPPrior, stored: Array, key: Array) -> tuple[Array, Array]:
        x = prepare(rng.stream(key, "prepare"), stored)

        def one_pass(i: Array) -> tuple[Array, Array]:
            draws_key = rng.at_step(rng.stream(key, "draws"), i)
            draws = contrastive_draws(ncp.vae, x, draws_key)
            logit_q, logit_p = contrast(ncp.discriminator, ncp.params, draws)
            return logit_q.T, logit_p.T  # [B, K]

        passes = jax.lax.map(one_pass, jnp.arange(num_passes))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), passes)

    logit_q, logit_p = over_examples(
        partial(logits, ncp), batches, key
    )  # [N, passes, K]
    loss = (np.logaddexp(0.0, -logit_q) + np.logaddexp(0.0, logit_p)).mean(1)  # [N, K]
    arrays = {"log_r_q": logit_q[:, 0].T, "log_r_p": logit_p[:, 0].T}
    return {
        **per_group("nce_loss", loss.T, "nats"),
        **per_group("jsd", np.log(2.0) - loss.T / 2, "nats"),
    }, arrays


def per_group(name: str, values: Array | np.ndarray, unit: str) -> dict[str, Estimate]:
    """Means of [K, n] values; named `name`, or `name/k` where there are several."""
    names = [name] if len(values) == 1 else [f"{name}/{k}" for k in range(len(values))]
    return {
        each: importance.mean_estimate(row, unit)
        for each, row in zip(names, values, strict=True)
    }


def sampler_diagnostics(name: str, info: Any, moved: str = "z") -> dict[str, Estimate]:
    """What a sampler tells of its chains, as means over them, for each group.

    Args:
      name: of the sampler.
      info: of `generation.generate`, its blocks joined: fields [N, K, ...].
      moved: what Langevin dynamics moved, "z" or its "noise".
    """
    if isinstance(info, samplers.SIRThenMALAInfo):
        parts = (sampler_diagnostics(name, part, moved) for part in info)
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(info, samplers.LangevinInfo):
        last = info.gradient_norm[..., -1].T  # [K, N]
        unit = f"nats per unit of {moved}"
        return per_group(f"{name}_gradient_norm", last, unit)
    units = {"ess": "proposals", "log_z": "nats", "acceptance": "fraction"}
    fields = getattr(info, "_fields", ())
    estimates = {
        field: per_group(f"{name}_{field}", getattr(info, field).T, unit)
        for field, unit in units.items()
        if field in fields
    }
    return {key: value for part in estimates.values() for key, value in part.items()}


def reconstruct(
    vae: LatentVariableModel, x: Array, key: Array
) -> tuple[Array, Latents]:
    """E[x | z] at one z ~ q(z | x): [B, *data_shape], and z; the floor of stage 2."""
    latents = vae.encode(x, key).latents
    _, carry = log_prior(vae, latents)
    return vae.decode(carry).mean, latents


def plane(ncp: NCPPrior, points: np.ndarray, log_z: float) -> dict[str, np.ndarray]:
    """Densities of p and p_NCP on a grid around `points` [n, 2], for a 2-D latent."""
    reach = 1.1 * float(np.abs(points).max())
    axis = np.linspace(-reach, reach, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(1, -1, 2)  # [1, 200 * 200, 2]
    log_p, log_r, _ = jax.jit(NCPPrior.terms)(ncp, (jnp.asarray(grid),))
    log_p, log_r = (np.asarray(v).reshape(200, 200) for v in (log_p, log_r))
    return {
        "plane_grid_x": axis,
        "plane_grid_y": axis,
        "plane_log_p": log_p,
        "plane_log_ncp": log_p + log_r - log_z,
    }
