"""`importance.py` against direct sums in float64 and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.evaluation import importance
from ncp_jax.evaluation.importance import Estimate, WeightSums
from tests.oracles import LinearGaussianVAE
from tests.statistics import assert_mean

SIGMA = 0.2  # log w ~ N(0, SIGMA^2): E w^j = exp(j^2 SIGMA^2 / 2)
EXP = math.exp(SIGMA**2)


def lognormal(seed, *shape):
    return SIGMA * np.random.default_rng(seed).standard_normal(shape)


def test_mean_estimate():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert importance.mean_estimate(values, "nats") == Estimate(
        4.0, pytest.approx(np.sqrt(38 / 3 / 4)), 4, "nats"
    )
    assert importance.mean_estimate(values[:1], "nats").stderr is None


def test_the_error_of_groups_that_share_noise():
    """Four pairs of equal values are four values; without groups they are eight."""
    values, pairs = np.repeat([1.0, 2.0, 4.0, 5.0], 2), np.repeat([7, 3, 9, 1], 2)
    four = importance.mean_estimate(values[::2], "nats")
    found = importance.mean_estimate(values, "nats", pairs)
    assert (found.value, found.n) == (3.0, 8)
    assert found.stderr == pytest.approx(four.stderr)
    alone = importance.mean_estimate(values, "nats")
    assert alone.stderr < found.stderr
    # Groups whose noise cancels: the error is that of independent values.
    opposed = importance.mean_estimate(values, "nats", np.tile([0, 1], 4))
    assert opposed == alone
    assert importance.mean_estimate(values, "nats", np.zeros(8)) == alone


def test_difference_of_independent_estimates():
    a, b = Estimate(5.0, 0.3, 10, "nats"), Estimate(3.0, 0.4, 99, "nats")
    assert importance.difference(a, b) == (2.0, pytest.approx(0.5), 10, "nats")
    assert importance.difference(a, b._replace(stderr=None)).stderr is None


def test_sums_merge_to_the_direct_result():
    log_w = 500.0 + 6 * lognormal(0, 1_000)  # exp(4 * 500) overflows float64
    halves = WeightSums().add(log_w[:300]).merge(WeightSums().add(log_w[300:]))
    w = np.exp(log_w - 500)
    direct = [np.log((w**j).sum()) + 500 * j for j in (1, 2, 3, 4)]
    for sums in (halves, WeightSums().add(log_w[:7]).add(log_w[7:])):
        assert sums.count == 1_000
        np.testing.assert_allclose(sums.log_sums, direct, rtol=1e-12)
    ess = w.sum() ** 2 / (w**2).sum()
    np.testing.assert_allclose(halves.ess, ess, rtol=1e-9)
    np.testing.assert_allclose(halves.log_mean.value, 500 + np.log(w.mean()))
    stderr = w.std() / w.mean() / np.sqrt(1_000)
    np.testing.assert_allclose(halves.log_mean.stderr, stderr, rtol=1e-9)


def test_weights_of_zero_count_as_draws():
    sums = WeightSums().add(np.array([-np.inf, -np.inf, 0.0, 0.0]))
    assert sums.count == 4
    np.testing.assert_allclose(sums.log_mean.value, np.log(0.5))
    np.testing.assert_allclose(sums.ess_fraction.value, 0.5)


def test_equal_weights_have_no_error_and_one_weight_an_unknown_one():
    sums = WeightSums().add(np.full(100, 7.0))
    assert sums.log_mean.value == pytest.approx(7.0)
    assert sums.log_mean.stderr == pytest.approx(0.0, abs=1e-7)
    assert sums.ess_fraction.value == pytest.approx(1.0)
    assert sums.ess_fraction.stderr == pytest.approx(0.0, abs=1e-7)
    one = WeightSums().add(np.zeros(1))
    assert one.log_mean == Estimate(0.0, None, 1, "nats")
    assert one.ess_fraction == Estimate(1.0, None, 1, "fraction")


def test_few_effective_weights_have_no_error():
    """One weight of 1,000 carries all but a tenth: how rare it is nobody knows."""
    log_w = np.zeros(1_000)
    log_w[3] = np.log(9_000.0)
    sums = WeightSums().add(log_w)
    assert sums.ess < 2
    assert sums.log_mean.stderr is None is sums.ess_fraction.stderr
    assert math.isfinite(sums.log_mean.value)
    for n, is_enough in ((99, False), (101, True)):
        sums = WeightSums().add(np.full(n, 7.0))
        assert (sums.log_mean.stderr is not None) == is_enough
        assert (sums.ess_fraction.stderr is not None) == is_enough


def test_standard_errors_are_the_spread_over_repeats():
    """Delta-method errors against the closed form and against 4,000 repeats."""
    repeats, n = 4_000, 500
    each = [WeightSums().add(row) for row in lognormal(1, repeats, n)]
    # m_j = E w^j / (E w)^j = exp(j (j - 1) SIGMA^2 / 2)
    m2, m3, m4 = EXP, EXP**3, EXP**6
    f_std = np.sqrt((4 * m2 + m4 / m2**2 - 4 * m3 / m2 - 1) / n) / m2
    closed = {"log_mean": np.sqrt((EXP - 1) / n), "ess_fraction": f_std}
    truth = {"log_mean": SIGMA**2 / 2, "ess_fraction": 1 / EXP}
    for name, std in closed.items():
        estimates = [getattr(sums, name) for sums in each]
        values = np.array([e.value for e in estimates])
        # Bias O(1/n) of the logarithm and of the ratio.
        assert_mean(values, truth[name], std=1.1 * std, bias=5 * std**2)
        z = (values - values.mean()) / std  # its variance is 1 if the formula is right
        assert_mean(z**2, 1.0, std=2.0, bias=0.03)
        with pytest.raises(AssertionError):
            assert_mean((1.15 * z) ** 2, 1.0, std=2.0, bias=0.03)
        stated = np.mean([e.stderr**2 for e in estimates]) ** 0.5
        assert stated == pytest.approx(std, rel=0.05)


WEIGHTS = jnp.array([[1.0, 0.0], [0.0, 0.7], [0.5, 0.0], [0.0, -0.2]])
WEIGHTS = WEIGHTS.at[2, 1].set(0.0)


@pytest.fixture(scope="module")
def examples():
    """x from the model itself."""
    vae = LinearGaussianVAE(WEIGHTS)
    z = jax.random.normal(jax.random.key(1), (64, 2))
    return vae.decode(z).sample(jax.random.key(2))


def log_weights(vae, x, num_samples):
    """log p(x, z_s) - log q(z_s | x) at S draws: [S, B]."""

    def weigh(key):
        (z,), log_q = vae.encode(x, key)
        log_p = vae.prior(0, 0, z[0]).base.log_prob(z[0])
        return log_p + vae.decode(z[0]).log_prob(x) - log_q[:, 0]

    return jax.jit(jax.vmap(weigh))(jax.random.split(jax.random.key(3), num_samples))


@pytest.mark.parametrize("num_samples", [1, 5])
def test_with_the_exact_posterior_the_bound_is_tight(examples, num_samples):
    vae = LinearGaussianVAE(WEIGHTS)
    bound = importance.importance_weighted_bound(
        log_weights(vae, examples, num_samples)
    )
    np.testing.assert_allclose(bound, vae.log_marginal(examples), atol=2e-5)


def test_with_another_q_the_bound_is_below_and_rises_with_samples(examples):
    """At S = 1 the gap is KL(q || posterior); exp of the bound is always unbiased."""
    shift, scale, n = 0.05, 1.2, 12_800
    vae = LinearGaussianVAE(WEIGHTS, q_shift=shift, q_scale=scale)
    exact = vae.log_marginal(examples)[None]
    log_w = np.asarray(log_weights(vae, examples, n), np.float64) - exact
    posterior_std = np.asarray(vae.posterior(examples).std[0])
    kl = (0.5 * (scale**2 + (shift / posterior_std) ** 2 - 1) - np.log(scale)).sum()
    assert_mean(-log_w, kl, std=0.7)
    with pytest.raises(AssertionError):
        assert_mean(-log_w, 0.9 * kl, std=0.7)
    assert_mean(np.exp(log_w), 1.0, std=0.7)
    bounds = []
    for num_samples in (1, 4, 16, 64):
        grouped = log_w.reshape(-1, num_samples, log_w.shape[1]).swapaxes(0, 1)
        bound = importance.importance_weighted_bound(jnp.asarray(grouped, jnp.float32))
        bounds.append(float(bound.mean()))
    assert bounds == sorted(bounds)
    assert bounds[-1] < 0.0
    # Below by Var(w) / 2 S to first order.
    assert bounds[-1] == pytest.approx(-np.exp(log_w).var() / 128, rel=0.2)
