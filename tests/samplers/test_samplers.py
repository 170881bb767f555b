"""`samplers` against targets whose answer is known in closed form."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng, samplers
from ncp_jax.samplers import resampling
from tests.statistics import assert_mean

# Base prior N(0, 1) and log r(z) = A z.  Completing the square: r p / Z = N(A, 1)
# with log Z = A^2 / 2.
A = 0.8
M, CHAINS = 256, 16_384

standard_normal = jax.vmap(jax.random.normal)  # one draw per key


def tilt(z):
    return A * z


@pytest.fixture(scope="module")
def tilted():
    return sir(
        jax.random.key(25),
        standard_normal,
        tilt,
        num_chains=CHAINS,
        num_proposals=M,
        chunk_size=32,
    )


def test_log_mean_exp_does_not_overflow():
    log_w = jnp.array([[0.0, 1_000.0], [np.log(3.0), 1_000.0]])
    np.testing.assert_allclose(
        resampling.log_mean_exp(log_w), [np.log(2.0), 1_000.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        resampling.log_mean_exp(log_w, axis=1)[0], 1_000 - np.log(2), rtol=1e-6
    )


def test_sir_moves_the_prior_to_the_tilted_target(tilted):
    draws, _ = tilted
    # E_p[(r/Z)^2 (z - A)] / M, the leading finite-M bias; likewise of the square.
    bias = A * math.exp(A**2) / M
    assert_mean(draws, A, std=1.0, bias=bias)
    square_bias = A**2 * math.exp(A**2) / M
    assert_mean((draws - A) ** 2, 1.0, std=2**0.5, bias=square_bias)
    for wrong in (0.9 * A, 1.1 * A):  # the bar can see a 10 % error in the tilt
        with pytest.raises(AssertionError):
            assert_mean(draws, wrong, std=1.0, bias=bias)
    with pytest.raises(AssertionError):  # and in the deviation
        assert_mean((1.1 * (draws - A)) ** 2, 1.0, std=2**0.5, bias=square_bias)


def test_log_z_is_the_log_of_an_unbiased_estimate(tilted):
    _, info = tilted
    relative_variance = (math.exp(A**2) - 1) / M  # Var_p[r] / (M Z^2)
    ratio = jnp.exp(info.log_z - A**2 / 2)
    assert_mean(ratio, 1.0, relative_variance**0.5)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * ratio, 1.0, relative_variance**0.5)


def test_ess_tends_to_its_closed_form(tilted):
    _, info = tilted
    # ESS / M -> (E w)^2 / E w^2 = exp(-A^2).  At M = 256 the ratio of sample moments
    # has a bias below 5 % and a deviation below 20 % of that.
    fraction, expected = info.ess / M, math.exp(-(A**2))
    assert_mean(fraction, expected, std=0.2 * expected, bias=0.05 * expected)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * fraction, expected, std=0.2 * expected, bias=0.05 * expected)


def sir(key, sample, log_r, *, num_chains, **sizes):
    """`samplers.sir`, compiled, for chains whose keys descend from one."""
    keys = jax.random.split(key, num_chains)
    return jax.jit(lambda keys: samplers.sir(keys, sample, log_r, **sizes))(keys)


def test_at_two_proposals_the_bias_is_the_known_one(key):
    """M = 2 and z = 0 or 1, evenly, r = 3 at 1: P(1) = 1/4 + (1/2)(3/4)."""
    draws, _ = sir(
        key,
        jax.vmap(lambda k: jax.random.bernoulli(k).astype(jnp.float32)),
        lambda z: z * math.log(3.0),
        num_chains=CHAINS,
        num_proposals=2,
        chunk_size=2,
    )
    assert_mean(draws, 0.625, std=0.5)
    with pytest.raises(AssertionError):  # what M = infinity would give
        assert_mean(draws, 0.75, std=0.5)


def test_a_constant_ratio_wastes_no_proposal(key):
    draws, info = sir(
        key,
        standard_normal,
        lambda z: jnp.full_like(z, 300.0),
        num_chains=4,
        num_proposals=100,
        chunk_size=7,
    )
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(info.ess, 100.0, rtol=1e-3)
    np.testing.assert_allclose(info.log_z, 300.0, rtol=1e-6)


@pytest.mark.parametrize("impossible", [-jnp.inf, jnp.nan])
def test_a_possible_proposal_is_always_chosen(key, impossible):
    """And NaN counts as impossible."""
    draws, info = sir(
        key,
        standard_normal,
        lambda z: jnp.where(z > 2.0, 0.0, impossible),
        num_chains=300,
        num_proposals=100,
        chunk_size=100,
    )
    num_possible = np.exp(info.log_z) * 100  # 2.3 on average
    np.testing.assert_allclose(num_possible, num_possible.round(), atol=1e-3)
    has_one = num_possible.round() >= 1
    assert (num_possible.round() == 1).sum() > 30  # the case of a single one occurs
    assert (np.asarray(draws)[has_one] > 2.0).all()
    np.testing.assert_allclose(info.ess[has_one], num_possible[has_one], rtol=1e-4)
    assert (info.log_z[~has_one] == -np.inf).all()  # nothing hides a chain without any


def test_draws_do_not_depend_on_the_chunk_size(key):
    outs = [
        sir(
            key,
            jax.vmap(lambda k: jax.random.normal(k, (3,))),
            lambda z: jnp.sum(z, axis=-1),
            num_chains=5,
            num_proposals=100,
            chunk_size=chunk_size,
        )
        for chunk_size in (50, 7, 300)
    ]
    expected, reference = outs[0]
    assert expected.shape == (5, 3)
    for draws, info in outs[1:]:
        np.testing.assert_array_equal(draws, expected)
        np.testing.assert_allclose(info.ess, reference.ess, rtol=1e-5)
        np.testing.assert_allclose(info.log_z, reference.log_z, rtol=1e-5)


def test_every_chain_has_proposals_of_its_own(key):
    proposals = []

    def log_r(z):
        jax.debug.callback(lambda z: proposals.append(z), z)
        return z

    draws, _ = sir(
        key, standard_normal, log_r, num_chains=50, num_proposals=20, chunk_size=1
    )
    jax.effects_barrier()
    seen = np.stack(proposals)  # [20, 50]
    assert np.unique(seen).size == 1_000
    is_chosen = np.isclose(seen, draws, rtol=1e-6)  # a proposal of its own chain
    np.testing.assert_array_equal(is_chosen.sum(0), 1)
    assert len(set(is_chosen.argmax(0).tolist())) > 3  # and at no common position


def test_sir_does_not_recompile(key):
    traces = []

    @jax.jit
    def run(keys):
        traces.append(keys)
        return samplers.sir(keys, standard_normal, tilt, num_proposals=5, chunk_size=2)

    first, _ = run(jax.random.split(key, 4))
    second, _ = run(jax.random.split(rng.at_step(key, 1), 4))
    assert len(traces) == 1
    assert not np.array_equal(first, second)


def log_target(z):
    """log p + log r, up to a constant: N(A, 1)."""
    return -0.5 * z**2 + A * z


def test_one_langevin_update_is_the_formula(key):
    z, step_size = jnp.array([[0.3, -1.0], [2.0, 0.1]]), 0.09
    keys = jax.random.split(key, 2)
    draws, info = samplers.langevin(
        keys,
        z,
        lambda z: jnp.sum(log_target(z), axis=1),
        step_size=step_size,
        num_steps=1,
    )
    noise = [jax.random.normal(rng.at_step(chain_key, 0), (2,)) for chain_key in keys]
    noise = np.asarray(noise, np.float64)
    z = np.asarray(z, np.float64)
    slope = A - z
    np.testing.assert_allclose(draws, z + 0.045 * slope + 0.3 * noise, rtol=1e-5)
    expected = (-0.5 * z**2 + A * z).sum(1)
    np.testing.assert_allclose(info.log_density[0], expected, rtol=1e-5)
    norm = np.sqrt((slope**2).sum(1))
    np.testing.assert_allclose(info.gradient_norm[0], norm, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 60])
def test_langevin_has_the_moments_of_the_uncorrected_chain(key, num_steps):
    """z' - A = (1 - h/2) (z - A) + sqrt(h) noise is an AR(1) process.

    From N(0, 1) its mean is A (1 - rho^T) and its variance rho^2T + (1 - rho^2T) v with
    rho = 1 - h/2 and v = h / (1 - rho^2) = 1 / (1 - h/4): at h = 0.8, 25 % above the
    target's.
    """
    start_key, chain_key = jax.random.split(key)
    step_size, n = 0.8, 65_536
    draws, info = samplers.langevin(
        jax.random.split(chain_key, n),
        jax.random.normal(start_key, (n,)),
        log_target,
        step_size=step_size,
        num_steps=num_steps,
    )
    assert info.log_density.shape == info.gradient_norm.shape == (num_steps, n)
    memory = (1 - step_size / 2) ** num_steps
    mean = A * (1 - memory)
    variance = memory**2 + (1 - memory**2) / (1 - step_size / 4)
    assert_mean(draws, mean, std=variance**0.5)
    assert_mean((draws - mean) ** 2, variance, std=2**0.5 * variance)
    with pytest.raises(AssertionError):
        assert_mean(draws, 0.9 * mean, std=variance**0.5)
    with pytest.raises(AssertionError):
        assert_mean((draws - mean) ** 2, 0.9 * variance, std=2**0.5 * variance)


def test_a_step_of_zero_stays_and_a_run_of_none_too(key):
    z = jnp.array([1.0, 2.0])
    for step_size, num_steps in ((0.0, 3), (0.1, 0)):
        draws, info = samplers.langevin(
            jax.random.split(key, 2),
            z,
            log_target,
            step_size=step_size,
            num_steps=num_steps,
        )
        np.testing.assert_array_equal(draws, z)
        assert info.log_density.shape == (num_steps, 2)


def test_every_langevin_step_and_chain_has_noise_of_its_own(key):
    # A flat density: z is the sum of its noises, so its differences are the noises.
    flat = jnp.zeros_like
    keys = jax.random.split(key, 8)
    run = partial(samplers.langevin, keys, jnp.zeros(8), flat, step_size=1.0)
    courses = np.stack([run(num_steps=t)[0] for t in (1, 2, 3)])
    noises = np.diff(courses, axis=0, prepend=0.0)
    assert np.unique(noises.round(5)).size == 24


def test_langevin_does_not_recompile(key):
    traces = []

    @jax.jit
    def run(key, z):
        traces.append(key)
        keys = jax.random.split(key, 3)
        return samplers.langevin(keys, z, log_target, step_size=0.1, num_steps=3)[0]

    first, second = run(key, jnp.zeros(3)), run(rng.at_step(key, 1), jnp.zeros(3))
    assert len(traces) == 1
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("slope", "tolerance"), [(0.5, 1e-3), (1.0, 5e-3)])
def test_adaptive_sir_weighs_as_many_proposals_as_the_ratio_needs(
    key, slope, tolerance
):
    """log r = a z has chi^2 = exp(a^2) - 1 under N(0, 1): M is chi^2 / tolerance."""
    keys = jax.random.split(key, 2_000)
    _, info = samplers.adaptive_sir(
        keys,
        lambda keys: jax.vmap(jax.random.normal)(keys),
        lambda z: slope * z,
        tolerance=tolerance,
        max_proposals=10_000,
    )
    expected = np.expm1(slope**2) / tolerance
    assert (info.bias <= tolerance).all()
    assert (np.asarray(info.num_proposals) % 64 == 0).all()
    assert abs(np.median(info.num_proposals) / expected - 1) < 0.2


def test_adaptive_sir_ends_at_once_where_r_is_constant_and_at_the_most_elsewhere(key):
    keys = jax.random.split(key, 5)
    draw = partial(samplers.adaptive_sir, keys, jax.vmap(jax.random.normal))
    _, at_once = draw(lambda z: 0.0 * z + 3.0, tolerance=1e-3, max_proposals=256)
    np.testing.assert_array_equal(at_once.num_proposals, 64)
    np.testing.assert_allclose(at_once.log_z, 3.0, rtol=1e-5)
    _, all_of_them = draw(lambda z: 0.0 * z, tolerance=0.0, max_proposals=256)
    np.testing.assert_array_equal(all_of_them.num_proposals, 256)
    _, at_most = draw(lambda z: 9.0 * z, tolerance=1e-3, max_proposals=128)
    np.testing.assert_array_equal(at_most.num_proposals, 128)
    z, nowhere = draw(lambda z: z * jnp.nan, tolerance=0.1, max_proposals=128)
    np.testing.assert_array_equal(nowhere.num_proposals, 128)
    assert np.isfinite(z).all()


def test_adaptive_sir_keeps_the_weights_of_plain_sir(key):
    """The same proposals: with a bias that none reaches, the same sums of weights."""
    keys = jax.random.split(key, 5)
    both = keys, jax.vmap(jax.random.normal), lambda z: z
    _, plain = samplers.sir(*both, num_proposals=64, chunk_size=8)
    _, adaptive = samplers.adaptive_sir(*both, tolerance=0.0, max_proposals=64)
    np.testing.assert_allclose(adaptive.ess, plain.ess, rtol=1e-5)
    np.testing.assert_allclose(adaptive.log_z, plain.log_z, rtol=1e-4, atol=1e-5)


def test_truncated_rejection_takes_the_last_as_it_is(key):
    """Only z > 0 is accepted, 3 attempts: 1/8 of the draws nobody accepted."""

    def log_a(z):
        return jnp.where(z > 0, 0.0, jnp.nan)

    keys = jax.random.split(key, CHAINS)
    run = jax.jit(
        lambda keys: samplers.truncated_rejection(
            keys, standard_normal, log_a, num_attempts=3
        )
    )
    z, info = run(keys)
    assert_mean(z > 0, 7 / 8, std=0.34)
    assert_mean(jnp.abs(z), math.sqrt(2 / math.pi), std=0.61)
    with pytest.raises(AssertionError):
        assert_mean(z > 0, 0.9 * 7 / 8, std=0.34)
    attempts = np.asarray(info.num_attempts)
    assert (attempts.min(), attempts.max()) == (1, 3)
    assert_mean(attempts, 1 / 2 + 2 / 4 + 3 / 4, std=0.83)
    assert (np.asarray(z)[attempts < 3] > 0).all()
    others = keys.at[0].set(rng.stream(key, "another"))
    np.testing.assert_array_equal(run(others)[0][1:], z[1:])
