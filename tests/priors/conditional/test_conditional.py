"""Conditional priors on a hierarchy whose gains are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax import rng
from ncp_jax.errors import InputError
from ncp_jax.priors import conditional
from ncp_jax.priors.conditional import flow, ratios
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.priors.ex_post import shortened
from ncp_jax.priors.ex_post.contract import Encodings, Training
from tests.statistics import assert_mean

GROUPS = Groups((1, 2), context_size=1)
SLOPE, STD = np.array([0.9, -0.6]), np.array([0.5, 0.7])  # of group 1 given u_0


def coordinates(num, seed):
    """u_0 ~ N(0.8, 0.6^2), u_1 ~ N(slope u_0, std^2): [num, 3]."""
    noise = np.random.default_rng(seed).normal(size=(num, 3))
    first = 0.8 + 0.6 * noise[:, :1]
    rest = SLOPE[None] * first + STD[None] * noise[:, 1:]
    return np.concatenate([first, rest], 1).astype(np.float32)


def kl_to_standard(second_moment, std):
    return np.sum(0.5 * (second_moment - 1.0) - np.log(std))


FIRST = 0.8**2 + 0.6**2  # E[u_0^2]
GAINS = np.array(
    [kl_to_standard(FIRST, 0.6), kl_to_standard(SLOPE**2 * FIRST + STD**2, STD)]
)


@pytest.fixture(scope="module")
def encodings():
    train, valid = coordinates(20_000, 0), coordinates(2_000, 1)
    return Encodings(
        jnp.asarray(train[:, None]), jnp.asarray(valid[:, None]), GROUPS.base
    )


def test_groups_are_padded_and_read_what_came_before():
    groups = Groups((2, 1, 3), context_size=2)
    u = jnp.arange(1.0, 13.0).reshape(2, 6)
    stacked = groups.stack(u)
    np.testing.assert_array_equal(
        stacked[0], [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [4.0, 5.0, 6.0]]
    )
    np.testing.assert_array_equal(groups.flatten(stacked), u)
    np.testing.assert_array_equal(groups.is_used().sum(1), groups.widths)
    for k, expected in enumerate([[0.0] * 6, [1, 2, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0]]):
        np.testing.assert_array_equal(groups.context(stacked, k)[0], expected)
    assert Groups((4,)).context_width == 0
    assert Groups((4, 2), 0).context(jnp.zeros((3, 2, 4)), 1).shape == (3, 0)


def moved(params, scale=0.15):
    """Any parameters but zeros, so that a map is none of the identity."""
    generator = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: leaf + jnp.float32(scale * generator.normal(size=leaf.shape)),
        params,
    )


@pytest.fixture(scope="module")
def some_flow():
    net = flow.ContextCouplings(2, 3, (8,), 4)
    sizes = (1, 2), (1, 2), (2,)
    params = jax.jit(net.init)(jax.random.key(0), *map(jnp.zeros, sizes))
    stacked = moved(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params))
    return flow.ConditionalFlow(stacked, net, GROUPS)


def test_a_conditional_flow_integrates_to_one(some_flow):
    """Each group given several values of the one before, by a grid."""
    axis = np.linspace(-12, 12, 961, dtype=np.float32)
    along = np.stack([axis, 0 * axis, 0 * axis], 1)
    log_p = np.asarray(some_flow.log_probs(jnp.asarray(along)), np.float64)
    assert np.exp(log_p[:, 0]).sum() * 0.025 == pytest.approx(1.0, abs=2e-3)
    axis = np.linspace(-12, 12, 161, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    sums, log_p = [], jax.jit(some_flow.log_probs)
    for first in (-1.0, 2.0):
        u = np.concatenate([np.full((len(grid), 1), first, np.float32), grid], 1)
        of_grid = np.asarray(log_p(jnp.asarray(u))[:, 1], np.float64)
        assert np.exp(of_grid).sum() * 0.15**2 == pytest.approx(1.0, abs=5e-3)
        sums.append(of_grid)
    assert np.abs(sums[0] - sums[1]).max() > 0.1  # the context is read


def test_one_coordinate_without_a_context_has_a_flow(key):
    groups, axis = Groups((1,)), np.linspace(-12, 12, 961, dtype=np.float32)
    u = 0.5 * jax.random.normal(key, (200, 1, 1))
    short = Training(num_steps=60, batch_size=64, learning_rate=2e-2, steps_per_eval=20)
    settings = flow.Settings(groups, 2, (8,), 4, short)
    fitted = settings(key, Encodings(u, u, groups.base))
    log_p = np.asarray(fitted.log_prob(jnp.asarray(axis)[:, None]), np.float64)
    assert np.exp(log_p).sum() * 0.025 == pytest.approx(1.0, abs=2e-3)
    assert np.mean(fitted.log_prob(u[:, 0]) - groups.base.log_prob(u[:, 0])) > 0.1


def test_draws_of_a_conditional_flow_are_those_of_its_density(some_flow, key):
    """What `sample` makes of its noise, `log_probs` undoes."""
    keys = jax.random.split(key, 50)
    u = some_flow.sample(keys)
    stacked, used = GROUPS.stack(u), GROUPS.is_used()
    for k in range(2):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], some_flow.params)
        context = GROUPS.context(stacked, k)
        noise, _ = some_flow.net.apply(params, stacked[:, k], context, used[k])
        drawn = jax.vmap(lambda one: jax.random.normal(one, (2,)))(rng.at_step(keys, k))
        np.testing.assert_allclose(noise, drawn * used[k][None], atol=1e-3)
        if k == 0:
            np.testing.assert_array_equal(noise[:, 1], 0.0)  # padding
    assert np.abs(noise - stacked[:, 1]).max() > 0.1  # it is not the identity


def some_ratios(key):
    network = ratios.MLPDiscriminator((4,), "tanh")
    params = network.init(key, jnp.zeros((1, 2)), jnp.zeros((1, 2)))["params"]
    params = moved(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), 1.0)
    return ratios.ConditionalRatios(params, network, GROUPS, num_proposals=8)


def test_the_bound_is_that_of_sir_by_hand(key):
    """With r_k = exp(a_k . u_k + c . context) the context's factor cancels."""
    prior = some_ratios(key)
    u = jnp.asarray(coordinates(5, 3))
    found = prior.excesses(u, key)
    stacked, used = GROUPS.stack(u), np.asarray(GROUPS.is_used())
    for k in range(2):
        of_k = jax.tree.map(lambda leaf, k=k: leaf[k], prior.params)
        context = GROUPS.context(stacked, k)
        for b, of_row in enumerate(jax.random.split(key, 5)):
            of_group = jax.random.fold_in(of_row, k)
            keys = jax.vmap(lambda j, of=of_group: jax.random.fold_in(of, j))(
                jnp.arange(7)
            )
            proposals = jax.vmap(lambda one: jax.random.normal(one, (2,)))(keys)
            proposals *= used[k][None]
            all_8 = jnp.concatenate([stacked[b : b + 1, k], proposals])
            contexts = jnp.tile(context[b : b + 1], (8, 1))
            log_r = np.asarray(
                prior.network.apply({"params": of_k}, all_8, contexts), np.float64
            )
            expected = log_r[0] - np.log(np.exp(log_r).mean())
            assert found[b, k] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_estimates_of_two_rows_do_not_move_together(key):
    """A mean over rows has the error that its rows say only if they are independent.

    Proposals that rows share would move their estimates as one: correlation 1 here.
    """
    prior = some_ratios(key)
    u = jnp.tile(jnp.asarray(coordinates(1, 3)), (2, 1))
    found = jax.jit(jax.vmap(lambda k: prior.log_prob(u, k)))(
        jax.random.split(key, 400)
    )
    assert abs(np.corrcoef(found.T)[0, 1]) < 4 / 400**0.5
    assert found.std() > 0.01


def exact_excess(u):
    """log q(u) - log N(u; 0, I): [B], float64."""
    first, rest = (np.asarray(part, np.float64) for part in (u[:, :1], u[:, 1:]))
    normal = scipy.stats.norm.logpdf
    of_q = normal(first, 0.8, 0.6).sum(1) + normal(
        rest, SLOPE[None] * first, STD[None]
    ).sum(1)
    return of_q - normal(np.asarray(u, np.float64)).sum(1)


SMALL = {  # seconds each
    "ncp": {"num_negatives": 8, "hidden_dims": (32, 32)},
    "snis": {"num_negatives": 16, "hidden_dims": (32, 32)},
    "ebm": {"num_langevin_steps": 30, "hidden_dims": (32, 32)},
    "flow": {"num_couplings": 4, "hidden_dims": (16,), "num_bins": 4},
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ncp", "snis", "ebm")]


@pytest.mark.parametrize("name", ["flow", *SLOW])
def test_conditional_priors_find_gains_that_are_known(name, encodings, key):
    """Within 0.1 nats of 1.52, of which a tenth is 0.15.

    A prior that reads no context would lose 0.44 of it.
    """
    learning = {"training": {"learning_rate": 1e-2, "batch_size": 256}}
    settings = conditional.settings_of(name, GROUPS, SMALL[name] | learning)
    prior = shortened(settings, 300, 64)(key, encodings)
    draws = np.asarray(jax.jit(prior.sample)(jax.random.split(key, 2_000)))
    u = jnp.asarray(coordinates(800, 2))
    if name != "flow":
        prior = dataclasses.replace(prior, num_proposals=1_024)
    found = jax.jit(prior.log_prob)(u, key) - GROUPS.base.log_prob(u)
    error = np.mean(np.asarray(found) - exact_excess(u))
    assert abs(error) < 0.1 and GAINS.sum() == pytest.approx(1.516, abs=1e-3)
    product = (draws[:, 0] * draws[:, 1]).mean()  # E = 0.9 E[u_0^2] = 0.9
    assert product == pytest.approx(0.9, abs=0.25)
    assert_mean(draws[:, 0], 0.8, std=0.8, bias=0.1)


@pytest.mark.parametrize(
    "changes", [{"learned_by": "ebm"}, {"groups": {"context_size": 3}}]
)
def test_a_name_cannot_be_given_to_another_prior(changes):
    with pytest.raises(InputError, match="is no setting: the name"):
        conditional.settings_of("ncp", GROUPS, changes)
