"""`bounds.py` on a linear-Gaussian VAE, whose p(x) and p_NCP(x) are exact.

With log r(z) = TILT . z the NCP is N(TILT, I) and log Z = |TILT|^2 / 2, so p_NCP(x) is
normal as well.
"""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.evaluation.bounds import example_bounds
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.mlp_vae import MLPVAE
from tests.oracles import ChainVAE
from tests.statistics import assert_mean
from tests.tilted_gaussian import LOG_Z, NCP, RELATIVE_VARIANCE, TILT, VAE, draw_x

NUM_X = 4_096


@pytest.fixture(scope="module")
def x():
    return draw_x(NUM_X)


@partial(jax.jit, static_argnames=("samples", "kept", "proposals", "chunk_size"))
def bounds(ncp, x, key, *, samples, proposals, kept=1, chunk_size=8):
    return example_bounds(
        ncp,
        x,
        key,
        num_importance_samples=samples,
        num_snis_samples=kept,
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


# --- two groups

SLOPES = (0.9, 1.0)
CHAIN = ChainVAE()
X = np.array([0.3, 1.2, 2.4], np.float32)


def ratio_to_exact(chain, ncp, key, num, slopes, proposals, **settings):
    """exp(bound) / p_SIR(x), `num` of each of X: their mean is 1."""
    x = jnp.tile(X[:, None], (num, 1))
    out = bounds(ncp, x, key, proposals=proposals, **settings)
    exact = chain.log_sir_marginal(X, slopes, proposals)
    return np.exp(np.asarray(out.snis, np.float64).reshape(num, 3) - exact)


def test_the_exact_marginals_agree_where_they_must():
    base = CHAIN.log_marginal(X)
    for proposals, slopes in ((1, SLOPES), (3, (0.0, 0.0))):
        exact = CHAIN.log_sir_marginal(X, slopes, proposals)
        np.testing.assert_allclose(exact, base, atol=1e-6)
    two, three = (np.exp(CHAIN.log_sir_marginal(X, SLOPES, m)) for m in (2, 3))
    assert (np.abs(two / np.exp(base) - 1) > 0.05).all()
    assert (np.abs(three / two - 1) > 0.04).all()


@pytest.mark.parametrize(("is_split", "proposals"), [(True, 2), (False, 3)])
def test_one_draw_is_unbiased_for_what_sir_draws(key, is_split, proposals):
    """With the exact posterior p(x) M^2 is the most that a weight can be."""
    chain = ChainVAE(is_split=is_split)
    num = 40_000 if proposals == 2 else 160_000
    ratio = ratio_to_exact(
        chain, chain.ncp(SLOPES), key, num, SLOPES, proposals, samples=1
    )
    exact = chain.log_sir_marginal(X, SLOPES, proposals)
    std = proposals**2 / 2 * np.exp(chain.log_marginal(X) - exact)
    for k in range(3):
        assert_mean(ratio[:, k], 1.0, std[k])
        with pytest.raises(AssertionError):
            assert_mean(1.1 * ratio[:, k], 1.0, std[k])


@pytest.mark.parametrize(("samples", "kept"), [(8, 1), (8, 4), (3, 5)])
def test_choosing_some_draws_keeps_it_unbiased(key, samples, kept):
    settings = {"samples": samples, "kept": kept, "chunk_size": 4}
    ratio = ratio_to_exact(CHAIN, CHAIN.ncp(SLOPES), key, 20_000, SLOPES, 2, **settings)
    assert ratio.std() < 0.8  # measured: 0.3 to 0.6
    assert_mean(ratio, 1.0, std=0.8)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * ratio, 1.0, std=0.8)


def test_a_group_that_is_not_reweighted_is_drawn_from_the_base_prior(key):
    ncp = CHAIN.ncp(SLOPES)
    for groups, slopes in (((1,), (0.0, SLOPES[1])), ((0,), (SLOPES[0], 0.0))):
        part = dataclasses.replace(ncp, groups=groups)
        ratio = ratio_to_exact(CHAIN, part, key, 20_000, slopes, 2, samples=4, kept=2)
        assert_mean(ratio, 1.0, std=0.8)
        with pytest.raises(AssertionError):
            assert_mean(1.1 * ratio, 1.0, std=0.8)


def test_the_bound_rises_with_samples_and_with_proposals_to_its_limit(key):
    """As M grows z_k, given z_<k, follows r_k p_k / Z_k(z_<k): it is normal."""
    limit = (SLOPES[0], SLOPES[1] * CHAIN.std**2)
    keys = jax.random.split(key, 3)
    z_0 = limit[0] + jax.random.normal(keys[0], (NUM_X, 1))
    z_1 = jax.random.normal(keys[1], (NUM_X, 1)) * CHAIN.std + limit[1]
    z = jnp.stack([z_0, z_1 + CHAIN.gain * z_0])
    x = CHAIN.decode(z).sample(keys[2])
    exact = CHAIN.log_marginal(x, limit)[:, 0]
    ncp, gaps = CHAIN.ncp(SLOPES), {}
    for samples, proposals in ((1, 64), (16, 2), (16, 64)):
        settings = {"samples": samples, "kept": min(samples, 8), "proposals": proposals}
        out = bounds(ncp, x, key, **settings)
        gaps[samples, proposals] = exact - np.asarray(out.snis, np.float64)
    for fewer in ((1, 64), (16, 2)):
        rise = gaps[fewer] - gaps[16, 64]
        assert rise.mean() > 0
        with pytest.raises(AssertionError):  # beyond chance
            assert_mean(rise, 0.0, std=1.0)
    # The proposals of group 0 cost Var[r_0] / (2 M) = 0.01, the samples about 0.02.
    assert_mean(gaps[16, 64], 0.03, std=0.3, bias=0.01)
    # The same with one global Z instead of one per group and z_<k:
    shift = (SLOPES[0] + CHAIN.gain * SLOPES[1], SLOPES[1] * CHAIN.std**2)
    wrong = gaps[16, 64] - exact + CHAIN.log_marginal(x, shift)[:, 0]
    with pytest.raises(AssertionError):
        assert_mean(wrong, 0.03, std=1.0, bias=0.01)


def test_bounds_of_groups_do_not_depend_on_the_chunk_size(key):
    x, ncp = jnp.linspace(-2, 2, 8)[:, None], CHAIN.ncp(SLOPES)
    settings = {"samples": 10, "kept": 4, "proposals": 10}
    first, other = (bounds(ncp, x, key, **settings, chunk_size=c) for c in (3, 100))
    for a, b in zip(first, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_depends_on_x_alone_is_computed_once_per_chunk(key):
    """A `vmap` over keys leaves the encoder's products without a chunk axis."""
    x, chunk_size, hidden = jnp.zeros((6, 5)), 7, 11
    module = MLPVAE((5,), 2, (hidden,), likelihood="normal")
    vae = FrozenVAE(module, module.init(key, x, key))

    def encode(s):
        return vae.encode(x, rng.at_step(key, s)).latents

    jaxpr = str(jax.make_jaxpr(jax.vmap(encode))(jnp.arange(chunk_size)))
    shapes = re.findall(r"f32\[([0-9,]*)\] = dot_general", jaxpr)
    assert shapes and set(shapes) == {f"6,{hidden}", "6,4"}
