"""Assertions about random output that state how often they may be wrong."""

import math

import numpy as np
import scipy.stats

FALSE_FAIL_RATE = 1e-7  # per assertion: correct code fails once in ten million runs


def assert_mean(samples, expected: float, std: float, bias: float = 0.0) -> None:
    """Asserts that independent `samples` have mean `expected` (two-sided z-test).

    Args:
      samples: independent draws, any shape.
      expected: the exact mean under correct code.
      std: an upper bound on the standard deviation of one draw, known in advance
        (never estimated from `samples`, so broken code cannot widen its own bar).
      bias: systematic error that correct code is entitled to.
    """
    samples = np.asarray(samples, np.float64)
    z_max = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2)
    bar = bias + z_max * std / math.sqrt(samples.size)
    error = abs(samples.mean() - expected)
    assert error < bar, (
        f"mean {samples.mean():.5f}, expected {expected:.5f} +- {bar:.5f}"
    )
