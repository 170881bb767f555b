"""What a validation says of each group, gathered over its batches; pure functions."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.training.loop import Metrics, Recorded

Array = jax.Array

SELECT_BY = ("loss", "gain")  # what decides on a group's best weights and its end
CONSTANT_STD = 1e-3  # nats; a log r that varies less has learned nothing
REMEDY = (  # of a stage that a config describes
    "weight decay may be why: lower config.ncp.weight_decay, or this group's alone by "
    "config.ncp.weight_decays"
)


class Sums(NamedTuple):
    """Of one group's draws of one batch, or [n] each of n groups; nats."""

    loss: Array  # sum over the examples
    log_r_q: Array  # sum of log r over the posterior draws
    log_r_p: Array  # log sum of r over the prior draws
    mean: Array  # mean log r of both classes
    spread: Array  # sum of the squared distances from it


def sums(losses: Array, logit_q: Array, logit_p: Array, mask: Array) -> Sums:
    """Sums over the examples of one batch.

    Args:
      losses: [B] what the group minimises, of each example.
      logit_q: [B] log r of its posterior draw.
      logit_p: [B m] log r of its prior draws, m in a row.
      mask: [B] False for padding.
    """
    mask_p = jnp.repeat(mask, logit_p.shape[0] // mask.shape[0])  # [B m]
    both, of_both = jnp.concatenate([logit_q, logit_p]), jnp.concatenate([mask, mask_p])
    num_draws = jnp.maximum(jnp.sum(of_both), 1).astype(both.dtype)
    mean = jnp.sum(both, where=of_both) / num_draws
    return Sums(
        loss=jnp.sum(losses, where=mask),
        log_r_q=jnp.sum(logit_q, where=mask),
        log_r_p=jax.nn.logsumexp(logit_p, where=mask_p),
        mean=mean,
        spread=jnp.sum((both - mean) ** 2, where=of_both),
    )


def merge(of_batches: Sums, counts: Array, num_negatives: int) -> Metrics:
    """The metrics of n groups over a whole pass.

    log Z = log E_p[r] is that of all draws together: the mean of the batches' values
    would lie below it, and the gain above.

    Args:
      of_batches: fields [batches, n].
      counts: [batches] examples in each.
      num_negatives: prior draws of each example.

    Returns:
      "loss", "log_r_q" = E_q[log r], "log_z" = log E_p[r] with z_<k from q,
      "gain" = E_q[log r] - log E_p[r], a lower bound on KL(q, p) up to the noise of
      finitely many draws, and "log_r_std" of both classes together; [n] each, nats.
    """
    count = jnp.sum(counts).astype(jnp.float32)
    log_r_q = jnp.sum(of_batches.log_r_q, 0) / count
    log_z = jax.nn.logsumexp(of_batches.log_r_p, 0) - jnp.log(count * num_negatives)
    share = (counts.astype(jnp.float32) / count)[:, None]  # [batches, 1]
    mean = jnp.sum(share * of_batches.mean, 0)
    within = jnp.sum(of_batches.spread, 0) / (count * (1 + num_negatives))
    between = jnp.sum(share * (of_batches.mean - mean[None]) ** 2, 0)
    return {
        "loss": jnp.sum(of_batches.loss, 0) / count,
        "gain": log_r_q - log_z,
        "log_z": log_z,
        "log_r_q": log_r_q,
        "log_r_std": jnp.sqrt(within + between),
    }


def score(metrics: Metrics, select_by: str) -> Array:
    """What is to be small: the loss, or minus the gain."""
    return metrics["loss"] if select_by == "loss" else -metrics["gain"]


def mean_of_steps(metrics: Recorded) -> Recorded:
    """The means over n updates of metrics [n, K]; log Z from all their draws.

    One batch alone puts log Z too low, on average, and the gain too high.
    """
    means = {name: value.mean(axis=0) for name, value in metrics.items()}
    log_z = metrics["log_z"]
    means["log_z"] = np.logaddexp.reduce(log_z, axis=0) - np.log(
        len(log_z), dtype=log_z.dtype
    )
    return means | {"gain": means["log_r_q"] - means["log_z"]}


def remarks(
    metrics: Recorded, groups: Collection[int] | None = None, remedy: str = REMEDY
) -> Sequence[str]:
    """A line for each group whose held-out log r is constant.

    Args:
      metrics: of the last validation, values [K].
      groups: the numbers of those that have something to read; None for all.
      remedy: what may help.
    """
    return [
        f"stage ncp: log r of group {k} is constant on held-out draws (standard "
        f"deviation {std:.2g} nats): its discriminator has learned nothing. If q and p "
        f"differ there, {remedy}"
        for k, std in enumerate(metrics["log_r_std"])
        if std < CONSTANT_STD and (groups is None or k in groups)
    ]
