"""Whether a discriminator's D = sigmoid(log r) is the share of posterior draws."""

from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.floating]
NUM_BINS = 10
MIN_EXAMPLES = 2 * NUM_BINS  # fewer leave bins without a sign, which count as 0


class Reliability(NamedTuple):
    """Predicted against observed shares of posterior draws, in bins of D: [num_bins].

    All but `num_draws` are NaN in an empty bin.
    """

    predicted: Floats  # the mean of D
    observed: Floats  # the share of draws that are from q
    low: Floats  # Clopper-Pearson 95 % interval of that share
    high: Floats
    num_draws: NDArray[np.int64]


def reliability(
    logit_q: Floats, logit_p: Floats, num_bins: int = NUM_BINS
) -> Reliability:
    """The reliability curve of one discriminator, in bins of equally many draws.

    Args:
      logit_q: [n] log r of posterior draws (label 1), of different examples.
      logit_p: [n] log r of as many prior draws (label 0).
      num_bins: bins between quantiles of both together.
    """
    logits = np.stack([logit_q, logit_p], axis=1)  # [n, 2]
    bins = _bins(logits, num_bins)
    count = np.bincount(bins.ravel(), minlength=num_bins)
    from_q = np.bincount(bins[:, 0], minlength=num_bins)
    total = np.bincount(bins.ravel(), _probability(logits).ravel(), minlength=num_bins)
    empty = count == 0
    n = np.where(empty, 1, count)
    low = scipy.stats.beta.ppf(0.025, np.maximum(from_q, 1), n - from_q + 1)
    high = scipy.stats.beta.ppf(0.975, from_q + 1, np.maximum(n - from_q, 1))
    low, high = np.where(from_q == 0, 0.0, low), np.where(from_q == n, 1.0, high)
    predicted, observed, low, high = (
        np.where(empty, np.nan, v) for v in (total / n, from_q / n, low, high)
    )
    return Reliability(predicted, observed, low, high, count)


def error_terms(logit_q: Floats, logit_p: Floats, num_bins: int = NUM_BINS) -> Floats:
    """Terms whose mean estimates the expected calibration error of one group.

    ECE = sum_b w_b |d_b|, with d_b the mean of (label - D) in bin b and w_b its share
    of the draws (Naeini et al., 2015).  The plain estimate of |d_b| is above 0 by
    chance alone.  Here the sign of d_b comes from every other example and its size from
    those between, so the terms are independent given the signs and their mean is 0 for
    a calibrated discriminator (an estimate may be negative), and else below ECE, which
    it approaches as n grows.

    Args:
      logit_q: [n, m] log r of m posterior draws (label 1) of every example.
      logit_p: [n, m] log r of as many prior draws (label 0).
      num_bins: bins between quantiles of both together.

    Returns:
      [n - n // 2] terms, of the examples that give the size.
    """
    logits = np.stack([logit_q, logit_p], axis=2)  # [n, m, 2]
    gap = np.array([1.0, 0.0]) - _probability(logits)
    bins = _bins(logits, num_bins)
    total = np.bincount(bins[1::2].ravel(), gap[1::2].ravel(), minlength=num_bins)
    return (np.sign(total)[bins[::2]] * gap[::2]).mean((1, 2))


def _probability(logits: Floats) -> NDArray[np.float64]:
    return scipy.special.expit(logits.astype(np.float64))


def _bins(logits: Floats, num_bins: int) -> NDArray[np.int64]:
    """The bin of every draw; labels play no part in where bins end."""
    inner = np.quantile(logits, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(inner, logits, side="right")
