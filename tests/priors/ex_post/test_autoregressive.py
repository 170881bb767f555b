"""The masked network: no conditional sees its own coordinate or a later one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.priors.ex_post.autoregressive import Autoregressive, MaskedMLP, Mixture
from ncp_jax.priors.ex_post.gaussian import Gaussian
from tests.random_variables import random_variables


@pytest.mark.parametrize("dim", [1, 5])
def test_a_conditional_sees_earlier_coordinates_alone(dim):
    net = MaskedMLP(dim, (16, 16), 3)
    shapes = random_variables(net, jnp.zeros((1, dim)))
    generator = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape).astype(np.float32), shapes
    )
    e = generator.standard_normal((1, dim)).astype(np.float32)
    jacobian = jax.jit(jax.jacfwd(lambda e: net.apply(variables, e)))
    for part in jacobian(e):  # [1, D, M, 1, D]
        reached = np.abs(np.asarray(part)).max(axis=(0, 2, 3)) > 1e-6
        np.testing.assert_array_equal(reached, np.tri(dim, k=-1, dtype=bool))


def test_narrow_layers_read_early_and_late_coordinates():
    net = MaskedMLP(12, (6,), 1)
    variables = random_variables(net, jnp.zeros((1, 12)))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    e = jnp.linspace(-1.0, 1.0, 12)[None]
    _, means, _ = jax.jacfwd(lambda e: net.apply(variables, e))(e)
    reached = np.abs(np.asarray(means)).max(axis=(0, 2, 3)) > 1e-6
    assert reached[:, :10].any(0).all() and not np.triu(reached).any()


@pytest.mark.parametrize(
    ("dim", "hidden_dims"), [(1, (3,)), (2, (4,)), (7, (5, 3)), (6, (17, 11)), (12, ())]
)
def test_a_draw_of_one_pass_is_that_of_a_pass_per_coordinate(dim, hidden_dims):
    net = MaskedMLP(dim, hidden_dims, 2)
    generator = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape).astype(np.float32),
        random_variables(net, jnp.zeros((1, dim))),
    )
    gumbel = generator.gumbel(size=(9, dim, 2)).astype(np.float32)
    normal = generator.standard_normal((9, dim)).astype(np.float32)
    e, apply = np.zeros((9, dim), np.float32), jax.jit(net.apply)
    for d in range(dim):
        logits, means, stds = (np.asarray(part)[:, d] for part in apply(params, e))
        chosen = np.arange(9), np.argmax(logits + gumbel[:, d], axis=1)
        e[:, d] = means[chosen] + stds[chosen] * normal[:, d]
    drawn = jax.jit(net.draw)(params, gumbel, normal)
    np.testing.assert_allclose(drawn, e, rtol=1e-5, atol=1e-5)


def test_it_starts_near_the_normal_and_with_components_that_differ():
    net = MaskedMLP(3, (8,), 8)
    moments = Gaussian(jnp.array([1.0, 0.0, -2.0]), jnp.array([2.0, 1.0, 0.5]))

    @jax.jit
    def run(key):
        prior = Autoregressive(moments, net.init(key, jnp.zeros((1, 3))), net)
        z = moments.sample(jax.random.split(key, 500))
        _, means, _ = net.apply(prior.params, z)
        return moments.log_prob(z) - prior.log_prob(z), means

    difference, means = map(np.asarray, run(jax.random.key(0)))
    assert 0.0 < difference.mean() < 0.1  # KL of 500 draws of a fixed key
    assert np.diff(means[0]).min() > 0.1


def test_a_mixture_has_the_mean_density_and_draws_of_each_member(key):
    net = MaskedMLP(2, (4,), 2)
    params = net.init(key, jnp.zeros((1, 2)))
    left, right = (
        Autoregressive(Gaussian(jnp.full(2, mean), jnp.ones(2)), params, net)
        for mean in (-9.0, 9.0)
    )
    mixture = Mixture((left, right))
    z = jax.jit(mixture.sample)(jax.random.split(key, 1_000))
    of_left = z[:, 0] < 0
    assert abs(of_left.mean() - 0.5) < 0.1  # six standard errors
    assert np.array_equal(z[:, 0] < 0, z[:, 1] < 0)  # no draw is of both
    densities = np.exp(left.log_prob(z)), np.exp(right.log_prob(z))
    np.testing.assert_allclose(
        np.exp(mixture.log_prob(z)), np.mean(densities, axis=0), rtol=1e-4
    )
