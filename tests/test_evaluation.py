"""`evaluation.py` on a linear-Gaussian VAE, whose p(x) and p_NCP(x) are exact.

With log r(z) = TILT . z the NCP is N(TILT, I) and log Z = |TILT|^2 / 2, so p_NCP(x) is
normal as well.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from ncp_jax import data, evaluation, rng, samplers
from ncp_jax.importance import WeightSums
from ncp_jax.prior import NCPPrior
from tests.oracles import LinearGaussianVAE, QuadraticRatio, tilted
from tests.statistics import assert_mean

VAE = LinearGaussianVAE(jnp.array([[1.0, 0.0], [0.5, 0.0], [0.0, 0.8]]))
TILT = np.array([0.6, -0.5], np.float32)
NCP = tilted(VAE, TILT)
LOG_Z = float(TILT @ TILT) / 2
RELATIVE_VARIANCE = math.exp(2 * LOG_Z) - 1  # of r under p
NUM_X = 4_096


def as_it_is(key, stored):
    del key
    return stored


@pytest.fixture(scope="module")
def x():
    """From p_NCP itself."""
    z = jax.random.normal(jax.random.key(1), (NUM_X, 2)) + TILT[None]
    return VAE.decode(z).sample(jax.random.key(2))


@partial(jax.jit, static_argnames=("samples", "proposals", "chunk_size"))
def bounds(ncp, x, key, *, samples, proposals, chunk_size=8):
    return evaluation.example_bounds(
        ncp,
        x,
        key,
        num_importance_samples=samples,
        num_snis_proposals=proposals,
        chunk_size=chunk_size,
    )


def test_with_the_exact_posterior_base_and_elbo_are_log_p(x, key):
    out = bounds(NCP, x, key, samples=8, proposals=16)
    exact = VAE.log_marginal(x)
    np.testing.assert_allclose(out.elbo, exact, atol=2e-5)
    np.testing.assert_allclose(out.base, exact, atol=2e-5)


def test_the_ncp_weight_is_unbiased_for_z_times_p_ncp(x, key):
    out = bounds(NCP, x, key, samples=8, proposals=16)
    exact = VAE.log_marginal(x, TILT)
    # E_q[r] for normal q: the relative variance is exp(sum a^2 std^2) - 1.
    std = np.asarray(VAE.posterior(x).std[0])
    variance = (math.exp(float(TILT**2 @ std**2)) - 1) / 8
    ratio = np.exp(np.asarray(out.ncp) - LOG_Z - exact)
    assert_mean(ratio, 1.0, variance**0.5)
    with pytest.raises(AssertionError):  # 10 % of log Z
        assert_mean(math.exp(0.1 * LOG_Z) * ratio, 1.0, variance**0.5)


@pytest.mark.parametrize("proposals", [2, 8, 64])
def test_the_snis_bound_is_below_and_converges(x, key, proposals):
    """Its gap to log p_NCP(x), for x ~ p_NCP, is about Var_p[r] / (2 M Z^2)."""
    out = bounds(NCP, x, key, samples=64, proposals=proposals)
    gap = VAE.log_marginal(x, TILT) - np.asarray(out.snis, np.float64)
    # Of one gap: the normaliser's log has a variance of about RELATIVE_VARIANCE / M,
    # the 64 importance samples add less than 0.01.
    std = 1.2 * (RELATIVE_VARIANCE / proposals + 0.01) ** 0.5
    expected = RELATIVE_VARIANCE / (2 * proposals)
    assert_mean(gap, expected, std, bias=0.3 * expected + 0.005)
    if proposals == 2:
        assert gap.mean() > 5 * std / NUM_X**0.5  # below, beyond doubt
        with pytest.raises(AssertionError):  # the bound for M = 1 or M = infinity
            assert_mean(gap, 0.0, std, bias=0.3 * expected + 0.005)


def test_one_proposal_leaves_the_base_prior(x, key):
    """SIR with M = 1 returns the proposal, whatever r is."""
    out = bounds(NCP, x[:16], key, samples=4, proposals=1)
    np.testing.assert_allclose(out.snis, out.base, atol=1e-5)


def test_bounds_do_not_depend_on_the_chunk_size_but_on_the_key(x, key):
    first, other = (
        bounds(NCP, x[:8], key, samples=10, proposals=10, chunk_size=size)
        for size in (3, 100)
    )
    for a, b in zip(first, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    other_key = rng.at_step(key, 1)
    again = bounds(NCP, x[:8], other_key, samples=10, proposals=10, chunk_size=3)
    assert (np.asarray(again.ncp) != first.ncp).all()
    assert (np.asarray(again.snis) != first.snis).all()


def test_over_examples_drops_padding_and_counts_every_example_once(key):
    rows = np.arange(10, dtype=np.float32)[:, None]
    keys = []

    def function(x, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return {"x": x[:, 0], "twice": 2 * x}

    out = evaluation.over_examples(function, data.padded_batches(rows, 4), key)
    np.testing.assert_array_equal(out["x"], rows[:, 0])
    np.testing.assert_array_equal(out["twice"], 2 * rows)
    assert len(set(keys)) == 3


def test_log_z_and_its_course(key):
    sums, course = evaluation.log_z(NCP, key, num_draws=99_000, batch_size=10_000)
    assert isinstance(sums, WeightSums)
    assert sums.count == 100_000
    np.testing.assert_array_equal(course[:, 0], [1e4, 2e4, 4e4, 8e4, 1e5])
    assert course[-1, 1:].tolist() == [sums.log_mean.value, sums.log_mean.stderr]
    std = RELATIVE_VARIANCE**0.5
    np.testing.assert_allclose(course[:, 2], std / course[:, 0] ** 0.5, rtol=0.1)
    for count, log_z, _ in course:  # the mean of `count` weights
        bar = 5.5 * std / count**0.5
        assert abs(math.expm1(log_z - LOG_Z)) < bar
    assert abs(math.expm1(0.9 * course[-1, 1] - LOG_Z)) > 5.5 * std / 1e5**0.5
    assert sums.ess_fraction.value == pytest.approx(math.exp(-2 * LOG_Z), rel=0.05)


def test_likelihood_pairs_the_gain_and_adds_the_error_of_log_z(x, key):
    rows = np.asarray(x[:1_000])
    estimates, arrays = evaluation.likelihood(
        NCP,
        list(data.padded_batches(rows, 300)),
        as_it_is,
        key,
        num_importance_samples=32,
        num_snis_proposals=32,
        num_log_z_draws=20_000,
        chunk_size=8,
        log_z_batch_size=20_000,
    )
    log_p, log_p_ncp = VAE.log_marginal(rows), VAE.log_marginal(rows, TILT)
    each = log_p_ncp - log_p
    z = estimates["log_z"]
    gain = estimates["gain_nats"]
    # The gain of the same examples, so only noise of the estimate separates them.
    assert gain.value == pytest.approx(each.mean(), abs=0.01 + 6 * z.stderr)
    # The difference per example, not the spread of log p itself; and log Z's share.
    paired = np.hypot(each.std(ddof=1) / 1_000**0.5, z.stderr)
    assert gain.stderr == pytest.approx(paired, rel=0.03)
    nll = estimates["nll_ncp"]
    assert nll.value == pytest.approx(-log_p_ncp.mean(), abs=0.01 + 6 * z.stderr)
    spread = log_p_ncp.std(ddof=1) / 1_000**0.5
    assert nll.stderr == pytest.approx(np.hypot(spread, z.stderr), rel=0.03)
    assert nll.n == gain.n == 1_000
    assert estimates["nll_base"].value == pytest.approx(-log_p.mean(), abs=1e-4)
    assert estimates["elbo_base"].value == pytest.approx(log_p.mean(), abs=1e-4)
    difference = estimates["nll_base"].value - estimates["nll_snis"].value
    assert estimates["gain_snis_nats"].value == pytest.approx(difference, abs=1e-5)
    assert arrays["log_z_curve"].shape == (1, 3)


def test_one_example_has_an_unknown_error(x, key):
    estimates, _ = evaluation.likelihood(
        NCP,
        [(np.asarray(x[:1]), np.ones(1, bool))],
        as_it_is,
        key,
        num_importance_samples=2,
        num_snis_proposals=2,
        num_log_z_draws=10,
        chunk_size=2,
        log_z_batch_size=10,
    )
    assert estimates["nll_ncp"].stderr is None
    assert math.isfinite(estimates["nll_ncp"].value)


def test_contrast_on_held_out_measures_a_known_divergence(key):
    """One x for all: q = N(m, s^2) in each dimension, against p = N(0, 1).

    With the true log-ratio as logit, JSD(q, p) is what numerical integration gives.
    """
    one = jnp.array([[0.4]])
    vae = LinearGaussianVAE(jnp.ones((1, 1)), std=1.0, q_shift=0.6)
    exact = vae.posterior(one)
    m, s = float(exact.mean[0, 0]) + 0.6, float(exact.std[0, 0])
    params = {
        "slope": jnp.full((1, 1), m / s**2),
        "curvature": jnp.full((1, 1), 0.5 - 0.5 / s**2),
        "bias": jnp.full(1, -math.log(s) - 0.5 * (m / s) ** 2),
    }
    ncp = NCPPrior(vae, QuadraticRatio(), (params,))
    n, passes = 5_000, 8
    estimates, arrays = evaluation.contrast_on_held_out(
        ncp,
        data.padded_batches(np.full((n, 1), 0.4, np.float32), 2_048),
        as_it_is,
        key,
        num_passes=passes,
    )

    def integrand(z):
        q, p = (scipy.stats.norm.pdf(z, *v) for v in ((m, s), (0.0, 1.0)))
        mean = 0.5 * (p + q)
        return 0.5 * (q * np.log(q / mean) + p * np.log(p / mean))

    jsd, _ = scipy.integrate.quad(integrand, -6.0, 6.0)
    loss = 2 * math.log(2) - 2 * jsd
    found = estimates["jsd"]
    assert found.n == n
    assert found.value == pytest.approx(jsd, abs=5.5 * found.stderr)
    assert found.value != pytest.approx(0.9 * jsd, abs=5.5 * found.stderr)
    assert found.stderr < 0.01 * jsd * 2
    assert estimates["nce_loss"].value == pytest.approx(
        loss, abs=5.5 * estimates["nce_loss"].stderr
    )
    assert arrays["log_r_q"].shape == arrays["log_r_p"].shape == (1, n)
    # Of the posterior's draws E[log r] = KL(q || p), of the prior's -KL(p || q).
    kl = 0.5 * (s**2 + m**2 - 1) - math.log(s)
    assert_mean(arrays["log_r_q"], kl, std=1.2)
    reverse = 0.5 * ((1 + m**2) / s**2 - 1) + math.log(s)
    assert_mean(arrays["log_r_p"], -reverse, std=3.0)


def test_per_group_names_only_what_there_are_several_of():
    one = evaluation.per_group("jsd", np.array([[1.0, 3.0]]), "nats")
    assert list(one) == ["jsd"]
    two = evaluation.per_group("jsd", np.array([[1.0, 3.0], [5.0, 5.0]]), "nats")
    assert {name: e.value for name, e in two.items()} == {"jsd/0": 2.0, "jsd/1": 5.0}


def test_sampler_diagnostics():
    sir = samplers.SIRInfo(ess=np.array([[2.0], [4.0]]), log_z=np.array([[0.0], [1.0]]))
    found = evaluation.sampler_diagnostics("sir", sir)
    assert {n: e.value for n, e in found.items()} == {"sir_ess": 3.0, "sir_log_z": 0.5}
    norms = np.array([[[9.0, 1.0]], [[9.0, 2.0]]])  # [N, K, num_steps]
    info = samplers.LangevinInfo(log_density=norms, gradient_norm=norms)
    found = evaluation.sampler_diagnostics("langevin", info)
    assert found["langevin_gradient_norm"].value == 1.5  # at the last step
    rates = np.array([[0.5, 0.2], [0.7, 0.4]])  # [N, K]
    mala = samplers.MALAInfo(norms, acceptance=rates, step_size=rates)
    both = samplers.SIRThenMALAInfo(sir, mala)
    found = evaluation.sampler_diagnostics("sirmala", both)
    assert found.keys() == {
        "sirmala_ess",
        "sirmala_log_z",
        "sirmala_acceptance/0",
        "sirmala_acceptance/1",
    }
    np.testing.assert_allclose(found["sirmala_acceptance/1"].value, 0.3)
    assert evaluation.sampler_diagnostics("base", None) == {}


def test_reconstruct_decodes_a_posterior_draw(x, key):
    decoded, (z,) = evaluation.reconstruct(VAE, x, key)
    np.testing.assert_allclose(decoded, z[0] @ VAE.weights.T, rtol=1e-5)
    q = VAE.posterior(x)
    white = (np.asarray(z[0]) - q.mean) / q.std
    assert_mean(white, 0.0, std=1.0)
    assert_mean(white**2, 1.0, std=2**0.5)


def test_plane_holds_densities_that_integrate_to_one():
    out = evaluation.plane(NCP, np.array([[5.5, 0.0], [0.0, -2.0]]), LOG_Z)
    axis = out["plane_grid_x"]
    assert axis[-1] == pytest.approx(1.1 * 5.5)
    cell = (axis[1] - axis[0]) ** 2
    for name, mean in (("plane_log_p", [0.0, 0.0]), ("plane_log_ncp", TILT)):
        density = np.exp(out[name].astype(np.float64)) * cell
        assert density.sum() == pytest.approx(1.0, abs=1e-4)
        # Rows are y and columns x, as `imshow` and `contour` take them.
        assert density.sum(0) @ axis == pytest.approx(mean[0], abs=1e-3)
        assert density.sum(1) @ axis == pytest.approx(mean[1], abs=1e-3)
    off = evaluation.plane(NCP, np.array([[5.5, 0.0]]), 0.9 * LOG_Z)
    assert np.exp(off["plane_log_ncp"]).sum() * cell > 1.02
