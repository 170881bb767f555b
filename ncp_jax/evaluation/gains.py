"""What one group's ratio gains in likelihood on held-out draws."""

import numpy as np

from ncp_jax.evaluation.importance import MIN_ESS, Estimate, mean_estimate


def held_out_gain(log_r_q: np.ndarray, log_r_p: np.ndarray) -> dict[str, Estimate]:
    """E_q[log r] - log E_p[r] of one group, and its two terms, in nats.

    The gain bounds KL(q, p) from below and is the same for r times any constant.  Its
    estimate is too high by about 1 / (2 ESS): log E_p[r] comes from finitely many
    draws.  Standard errors are those of the delta method, over the examples; where the
    draws of p have an effective sample size below `MIN_ESS` there is none.

    Args:
      log_r_q: [N, m] log r of m posterior draws of each example.
      log_r_p: [N, m] log r of as many prior draws given the same z_<k.

    Returns:
      `nce_gain`, `nce_log_r_q` and `nce_log_z`.
    """
    log_r_q, log_r_p = (np.asarray(v, np.float64) for v in (log_r_q, log_r_p))
    log_z = np.logaddexp.reduce(log_r_p, axis=None) - np.log(log_r_p.size)
    weights = np.exp(log_r_p - log_z)  # [N, m], of mean 1
    ess = weights.sum() ** 2 / (weights**2).sum()
    of_each = log_r_q.mean(1)  # [N]
    to_first_order = weights.mean(1) - 1.0  # [N] what each adds to log Z
    found = {
        "nce_gain": mean_estimate(of_each - to_first_order - log_z, "nats"),
        "nce_log_r_q": mean_estimate(of_each, "nats"),
        "nce_log_z": mean_estimate(to_first_order + log_z, "nats"),
    }
    if ess >= MIN_ESS:
        return found
    return {
        name: estimate if name == "nce_log_r_q" else estimate._replace(stderr=None)
        for name, estimate in found.items()
    }
