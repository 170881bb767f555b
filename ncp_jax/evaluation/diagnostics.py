"""Measures of a trained NCP on held-out examples, each with its standard error."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng, samplers
from ncp_jax.evaluation import calibration, gains, importance
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.models.base import Latents, LatentVariableModel
from ncp_jax.priors.latents import contrastive_draws, log_prior
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp.ncp_update import contrast

Array = jax.Array
T = TypeVar("T")
# (stored examples [B, ...], mask [B], False for padding)
Batches = Iterable[tuple[np.ndarray, np.ndarray]]


def over_examples(
    function: Callable[[Any, Array], T], batches: Batches, key: Array
) -> T:
    """Applies (x, key) -> pytree of [B, ...] to all batches; padding is left out.

    Shows how far it is once that has taken ten seconds.

    Returns:
      The same pytree, its leaves NumPy arrays [N, ...].
    """
    kept = []
    for i, (stored, mask) in enumerate(progress(batches, "examples")):
        out = jax.device_get(function(stored, rng.at_step(key, i)))
        kept.append(jax.tree.map(lambda leaf, mask=mask: leaf[mask], out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)


def progress(batches: Iterable[T], name: str) -> Iterable[T]:
    """The same, with a bar once they have taken ten seconds."""
    import tqdm  # late: whoever imports likelihoods need not have it

    return tqdm.tqdm(batches, name, unit="batch", mininterval=10, delay=10, leave=False)


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
    so the true divergence is at least that.  Groups that are not reweighted are left
    out.

    Args:
      ncp: the prior and its frozen VAE.
      batches: of stored examples, padded.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      num_passes: draws of both classes per example.

    Returns:
      `nce_loss` and `jsd` of each group, in nats, its `calibration_error` (without a
      standard error of fewer than `calibration.MIN_EXAMPLES`), and the three of
      `gains.held_out_gain`; and
      arrays for plots, one row per group of `groups` [K]: log r of one posterior and
      one prior draw per example [K, N], the reliability curve of these draws
      [K, num_bins], the loss with its standard error [K, 2].
    """
    logit_q, logit_p = over_examples(
        partial(_logits, prepare, num_passes, ncp), batches, key
    )  # [N, passes, K]
    loss = (np.logaddexp(0.0, -logit_q) + np.logaddexp(0.0, logit_p)).mean(1)  # [N, K]
    pairs = [(logit_q[..., row], logit_p[..., row]) for row in range(loss.shape[1])]
    off = np.array([calibration.error_terms(*pair) for pair in pairs])  # [K, N / 2]
    rows = ncp.rows
    losses = per_group("nce_loss", loss.T, "nats", rows)
    estimates = {
        **losses,
        **per_group("jsd", np.log(2.0) - loss.T / 2, "nats", rows),
        **_calibration_errors(off, len(loss), rows),
    }
    for k, row in rows.items():
        of_group = gains.held_out_gain(*pairs[row])
        mark = f"/{k}" if len(pairs) > 1 else ""
        estimates |= {name + mark: found for name, found in of_group.items()}
    arrays = {"groups": np.array(list(rows), int), "nce_loss": as_rows(losses.values())}
    firsts = [(pairs[row][0][:, 0], pairs[row][1][:, 0]) for row in rows.values()]
    return estimates, arrays | _curves(firsts)


def _calibration_errors(
    terms: np.ndarray, num_examples: int, rows: Mapping[int, int]
) -> dict[str, Estimate]:
    """Means of `calibration.error_terms` [K, n]; of too few examples without an error.

    Most bins then have no sign, and 0 +- 0 would look calibrated.
    """
    found = per_group("calibration_error", terms, "probability", rows)
    if num_examples >= calibration.MIN_EXAMPLES or not found:
        return found
    print(
        f"no interval of calibration_error: {num_examples} examples are too few, at "
        f"least {calibration.MIN_EXAMPLES} are needed"
    )
    return {name: e._replace(stderr=None) for name, e in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _logits(
    prepare: Prepare, num_passes: int, ncp: NCPPrior, stored: Array, key: Array
) -> tuple[Array, Array]:
    """Logits of posterior and prior draws of one batch: [B, passes, K] each."""
    x = prepare(rng.stream(key, "prepare"), stored)

    def one_pass(i: Array) -> tuple[Array, Array]:
        draws_key = rng.at_step(rng.stream(key, "draws"), i)
        draws = contrastive_draws(ncp.vae, x, draws_key)
        logit_q, logit_p = contrast(ncp.discriminator, ncp.params, draws)
        return logit_q.T, logit_p.T  # [B, K]

    passes = jax.lax.map(one_pass, jnp.arange(num_passes))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), passes)


def _curves(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of K groups for plots, from log r [N] of posterior and of prior draws."""
    if not pairs:  # no group is reweighted
        return {}
    log_r_q, log_r_p = map(np.stack, zip(*pairs, strict=True))
    each = [calibration.reliability(*pair) for pair in pairs]
    return {"log_r_q": log_r_q, "log_r_p": log_r_p} | {
        f"reliability_{field}": np.stack([getattr(curve, field) for curve in each])
        for field in calibration.Reliability._fields
    }


def as_rows(estimates: Iterable[Estimate]) -> np.ndarray:
    """Values and standard errors, NaN where there is none: [n, 2]."""
    rows = [(e.value, e.stderr) for e in estimates]
    return np.array(rows, np.float64).reshape(-1, 2)


def per_group(
    name: str,
    values: Array | np.ndarray,
    unit: str,
    rows: Mapping[int, int] | None = None,
) -> dict[str, Estimate]:
    """Means over [K, n] values; named `name`, or `name/k` where there are several.

    Args:
      name: of the metric.
      values: of K groups.
      unit: of the values.
      rows: of the groups that are reported, by their number; None for all.
    """
    rows = {k: k for k in range(len(values))} if rows is None else rows
    return {
        name if len(values) == 1 else f"{name}/{k}": importance.mean_estimate(
            values[row], unit
        )
        for k, row in rows.items()
    }


def join_blocks(infos: Any) -> Any:
    """Infos per block, fields [num_groups, N, ...], as one with fields [K, N, ...]."""
    if hasattr(infos, "_fields") or not infos:
        return infos  # they are one already
    return jax.tree.map(lambda *blocks: np.concatenate(blocks), *infos)


def sampler_diagnostics(
    name: str, infos: Any, moved: str = "z", rows: Mapping[int, int] | None = None
) -> dict[str, Estimate]:
    """What a sampler tells of its chains, as means over them, for each group.

    SIR's log Z has no standard error where its proposals are fewer than `MIN_ESS`
    effective ones: then every chain errs to the same side.

    Args:
      name: of the sampler.
      infos: `infos` of `generation.sample` or `generate`, or what `join_blocks` makes
        of them.
      moved: what Langevin dynamics moved, "z" or its "noise".
      rows: of the groups that are reweighted, by their number: `NCPPrior.rows`; None
        for all.
    """
    info = join_blocks(infos)
    if isinstance(info, samplers.SIRThenMALAInfo):
        parts = (sampler_diagnostics(name, part, moved, rows) for part in info)
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(info, samplers.LangevinInfo):
        last = info.gradient_norm[..., -1]  # [K, N]
        unit = f"nats per unit of {moved}"
        return per_group(f"{name}_gradient_norm", last, unit, rows)
    units = {
        "ess": "proposals",
        "num_proposals": "proposals",
        "bias": "fraction",
        "log_z": "nats",
        "acceptance": "fraction",
        "energy": "nats",
        "energy_change": "nats",
        "pixel_change": "units of x",
    }
    fields = getattr(info, "_fields", ())
    estimates = {
        field: per_group(f"{name}_{field}", getattr(info, field), unit, rows)
        for field, unit in units.items()
        if field in fields
    }
    if isinstance(info, samplers.SIRInfo | samplers.AdaptiveSIRInfo):
        estimates["log_z"] = {
            log_z: e if ess.value >= importance.MIN_ESS else e._replace(stderr=None)
            for (log_z, e), ess in zip(
                estimates["log_z"].items(), estimates["ess"].values(), strict=True
            )
        }
    return {key: value for part in estimates.values() for key, value in part.items()}


def reconstruct(
    vae: LatentVariableModel, x: Array, key: Array
) -> tuple[Array, Latents]:
    """E[x | z] at one z ~ q(z | x): [B, *data_shape], and z; the floor of stage 2."""
    latents = vae.encode(x, key).latents
    _, carry = log_prior(vae, latents)
    return vae.decode(carry).mean, latents


@partial(jax.jit, static_argnums=0)
def reconstruct_stored(
    prepare: Prepare, vae: LatentVariableModel, stored: Array, key: Array
) -> tuple[Array, Array]:
    """The same of stored examples, and z of the first block alone [B, n, ...]."""
    x = prepare(rng.stream(key, "prepare"), stored)
    mean, latents = reconstruct(vae, x, rng.stream(key, "posterior"))
    return mean, latents[0].swapaxes(0, 1)


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
