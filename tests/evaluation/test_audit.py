"""`audit.py`: bounds below divergences that are known, on pairs of normals.

In `SeenChain` z is x itself, so q(z) is the law of the data: where that is the base
prior there is no hole, and where one group of it is moved by SHIFT the true JSD is that
of N(0, 1) and N(SHIFT, 1), in that group alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax.evaluation import audit
from ncp_jax.models.base import Encoding
from ncp_jax.models.distributions import Normal
from tests.oracles import ChainVAE
from tests.statistics import FALSE_FAIL_RATE

Z_MAX = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2)
N, NUM_TESTED = 100_000, 20_000
SHIFT = 2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeenChain(ChainVAE):
    """The chain z_0, z_1 with x = (z_0, z_1), encoded and decoded as it is."""

    def encode(self, x, key):
        del key
        latents = tuple(x[:, k, None][None] for k in (0, 1))
        z = latents if self.is_split else (jnp.concatenate(latents),)
        return Encoding(z, jnp.zeros((len(x), 2)))

    def decode(self, carry):
        mean = jnp.concatenate(carry, axis=-1)
        return Normal(mean, jnp.ones_like(mean))


def draw_x(seed, shifts):
    """[N, 2] of the chain, each z_k moved given z_<k by so many of its deviations."""
    noise = np.random.default_rng(seed).normal(size=(N, 2)) + np.asarray(shifts)
    z_0 = noise[:, 0]
    z_1 = ChainVAE().gain * z_0 + ChainVAE.std * noise[:, 1]
    return np.stack([z_0, z_1], 1).astype(np.float32)


def truth(shift):
    """JSD of N(shift, 1) and N(0, 1), and the deviation of log 2 - (loss of a pair) / 2
    by the ideal classifier; nats, by quadrature."""
    z = np.linspace(-9, 9 + shift, 20_001)
    q, p = scipy.stats.norm.pdf(z, shift), scipy.stats.norm.pdf(z)
    log_r = shift * z - shift**2 / 2
    terms = (q, np.logaddexp(0, -log_r)), (p, np.logaddexp(0, log_r))
    step = z[1] - z[0]
    means = [np.sum(law * loss) * step for law, loss in terms]
    squares = [np.sum(law * loss**2) * step for law, loss in terms]
    variance = sum(s - m**2 for s, m in zip(squares, means, strict=True))
    return math.log(2) - sum(means) / 2, variance**0.5 / 2


JSD, STD = truth(SHIFT)
BAR = Z_MAX * 1.2 * STD / NUM_TESTED**0.5  # the classifier is not quite the ideal one


def bounds_of(shifts, key, is_split=False):
    x = draw_x(0, shifts)
    vae, keys = SeenChain(is_split=is_split), jax.random.split(key)
    of_q, of_hybrids = map(np.asarray, audit.decoded(vae, x, (0, 1, 2), keys[0]))
    np.testing.assert_array_equal(of_q, x)
    hybrids = {j: of_hybrids[:, j] for j in range(3)}
    samplers = {"sir": draw_x(1, shifts)[: N // 2], "langevin": draw_x(2, (0, 0))}
    return audit.bounds(keys[1], of_q, hybrids, samplers, num_steps=400)


def assert_bound(estimate, jsd, bar=BAR, slack=0.0):
    """Between 95 % of the truth and the truth, but for what chance may do to a mean."""
    low, high = 0.95 * jsd - bar - slack, jsd + bar
    assert low < estimate.value < high, (estimate, low, high)


def test_the_bar_would_see_a_tenth():
    assert 0.33 < JSD < 0.34
    assert (
        BAR < 0.06 * JSD
    )  # so 0.95 * 0.9 * JSD + BAR < 0.95 * JSD and JSD + BAR < 1.1
    assert abs(truth(1e-4)[0]) < 1e-8


@pytest.mark.parametrize(("shifted", "is_split"), [(0, False), (1, True)])
def test_a_known_hole_is_bounded_and_lies_where_it_is(shifted, is_split, key):
    """False-fail rate 1e-7 of each comparison: a normal mean of 20,000 pairs."""
    shifts = [0.0, 0.0]
    shifts[shifted] = SHIFT
    found = bounds_of(shifts, key, is_split)
    assert found["audit_jsd_base"] == found["audit_jsd_hybrid/0"]
    assert found["audit_jsd_base"].n == NUM_TESTED
    for j in (0, 1):
        jsd = JSD if j <= shifted else 0.0
        # What is shared with q makes pairs alike, and the classifier of few draws of a
        # hole that is not there is all but constant.
        bar = BAR if jsd else Z_MAX * 0.05 / NUM_TESTED**0.5
        assert_bound(found[f"audit_jsd_hybrid/{j}"], jsd, bar, slack=2e-3)
    # With all groups from q the pictures are the same, so no classifier gains.
    assert -2e-3 < found["audit_jsd_hybrid/2"].value <= 0
    # A sampler that draws from q leaves nothing, one that draws from p all.
    assert found["audit_jsd_sir"].n == NUM_TESTED // 2
    assert_bound(
        found["audit_jsd_sir"], 0.0, Z_MAX * 0.05 / (NUM_TESTED // 2) ** 0.5, slack=2e-3
    )
    assert_bound(found["audit_jsd_langevin"], JSD, slack=2e-3)


def test_where_the_prior_fits_nothing_is_found(key):
    """False-fail rate 1e-7 of each of five: a classifier that r = 1 does not beat by
    much on 10,000 validation pairs has logits, and losses, that hardly vary."""
    found = bounds_of((0.0, 0.0), key)
    for estimate in found.values():
        bar = Z_MAX * 0.05 / estimate.n**0.5
        assert -2e-3 - bar < estimate.value < bar
        assert estimate.stderr < 0.05 / estimate.n**0.5


@pytest.mark.parametrize(
    ("num_groups", "chosen", "expected"),
    [
        (1, (), (0,)),
        (3, (), (0, 1, 2)),
        (10, (), (0, 1, 2, 4, 6, 9)),
        (10, (5, 3), (0, 3, 5)),
        (30, (), (0, 3, 7, 13, 21, 29)),
    ],
)
def test_a_handful_of_groups_is_chosen(num_groups, chosen, expected):
    assert audit.groups_of_curve(num_groups, chosen) == expected
