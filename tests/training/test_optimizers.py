"""`optimizers.py`: the learning rate at known steps, and one update by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.training import optimizers


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax itself mixes the integer step with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def rates(schedule, steps):
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_constant():
    schedule = optimizers.schedule("constant", 0.3, num_steps=100)
    np.testing.assert_allclose(rates(schedule, [0, 50, 1_000]), 0.3, rtol=1e-6)


def test_cosine_falls_to_zero_at_the_end():
    schedule = optimizers.schedule("cosine", 0.4, num_steps=100)
    expected = [0.4, 0.2 * (1 + np.cos(np.pi / 4)), 0.2, 0.0, 0.0]
    np.testing.assert_allclose(
        rates(schedule, [0, 25, 50, 100, 120]), expected, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_step_drops_at_the_step_that_it_names(warmup_steps):
    schedule = optimizers.schedule(
        "step", 0.3, 1_000, warmup_steps, drop_step=200, drop_factor=0.1
    )
    expected = [0.3, 0.3, 0.03, 0.03]
    found = rates(schedule, [warmup_steps, 199, 200, 999])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_step_by_default_is_the_baselines_schedule():
    """LARS and SNIS: divided by 3 after a million steps."""
    schedule = optimizers.schedule("step", 3e-4, num_steps=10_000_000)
    np.testing.assert_allclose(
        rates(schedule, [999_999, 1_000_000]), [3e-4, 1e-4], rtol=1e-5
    )


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_warm_up_rises_linearly_to_the_peak(name):
    schedule = optimizers.schedule(name, 0.5, num_steps=100, warmup_steps=10)
    expected = [0.0, 0.05, 0.25, 0.5]
    np.testing.assert_allclose(rates(schedule, [0, 1, 5, 10]), expected, rtol=1e-6)


def test_cosine_after_a_warm_up_ends_with_the_run():
    schedule = optimizers.schedule("cosine", 0.5, num_steps=100, warmup_steps=10)
    np.testing.assert_allclose(rates(schedule, [55, 100]), [0.25, 0.0], atol=1e-7)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"constant.*cosine.*step.*'linear'"):
        optimizers.schedule("linear", 0.1, 10)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_cosine_may_end_above_zero(warmup_steps):
    schedule = optimizers.schedule(
        "cosine", 0.5, 100, warmup_steps, final_learning_rate=0.1
    )
    middle = warmup_steps + (100 - warmup_steps) // 2
    found = rates(schedule, [warmup_steps, middle, 100, 120])
    np.testing.assert_allclose(found, [0.5, 0.3, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_first_update_of_adam_is_the_sign_of_the_gradient(weight_decay):
    schedule = optimizers.schedule("constant", 0.01, 10)
    optimizer = optimizers.optimizer("adam", schedule, weight_decay)
    params = {"w": jnp.array([2.0, -3.0])}
    gradients = {"w": jnp.array([0.5, 40.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    expected = -0.01 * (np.array([1.0, 1.0]) + weight_decay * np.array([2.0, -3.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def adamax_in_float64(w, gradients, rates, weight_decay):
    """NVAE's: eps 1e-3 inside the maximum, the decay an L2 term of the gradient."""
    mean, largest = np.zeros_like(w), np.zeros_like(w)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient + weight_decay * w
        mean = 0.9 * mean + 0.1 * gradient
        largest = np.maximum(0.999 * largest, np.abs(gradient) + 1e-3)
        w = w - rate / (1 - 0.9**t) * mean / largest
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamax_is_that_of_nvae(weight_decay):
    """Its eps is large: a gradient of 1e-3 moves half as far as one of 1."""
    rng, num_steps = np.random.default_rng(0), 20
    gradients = rng.standard_normal((num_steps, 4)) * np.array([1.0, 1e-3, 1e-5, 30.0])
    schedule = optimizers.schedule("cosine", 0.1, num_steps, warmup_steps=3)
    optimizer = optimizers.optimizer("adamax", schedule, weight_decay)
    start = np.array([1.0, -2.0, 0.5, 3.0])
    w = jnp.asarray(start, jnp.float32)
    opt_state = optimizer.init(w)
    for gradient in jnp.asarray(gradients, jnp.float32):
        updates, opt_state = optimizer.update(gradient, opt_state, w)
        w = w + updates
    used = rates(schedule, range(num_steps))
    expected = adamax_in_float64(start, gradients, used, weight_decay)
    np.testing.assert_allclose(w, expected, rtol=1e-4)
    for wrong in (0.9 * weight_decay, weight_decay + 0.03):
        other = adamax_in_float64(start, gradients, used, wrong)
        assert np.allclose(w, other, rtol=1e-3) == (wrong == weight_decay)
    half = optimizers.optimizer("adamax", lambda step: 0.1)
    updates, _ = half.update(
        jnp.array([1e-3, 1.0]), half.init(jnp.ones(2)), jnp.ones(2)
    )
    np.testing.assert_allclose(updates, [-0.05, -0.1 / 1.001], rtol=1e-5)


def test_an_unknown_optimiser_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"adam.*adamax.*'sgd'"):
        optimizers.optimizer("sgd", lambda step: 0.1)


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_each_group_may_have_its_own_decay(name):
    """Group k goes as an optimiser with the k-th decay alone."""
    decays, schedule = (0.0, 0.1, 0.5), optimizers.schedule("cosine", 0.01, 10)
    of_groups = optimizers.optimizer(name, schedule, decays)
    params = {"w": jnp.array([2.0, -3.0])}
    gradients = {"w": jnp.array([0.5, 40.0])}
    found = []
    for k, decay in enumerate(decays):
        alone = optimizers.optimizer(name, schedule, decay)
        state, expected_state = of_groups.init(params), alone.init(params)
        for _ in range(2):
            updates, state = of_groups.update(
                gradients, state, params, group=jnp.asarray(k)
            )
            expected, expected_state = alone.update(gradients, expected_state, params)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)
        found.append(np.asarray(updates["w"]))
    assert (np.diff(found, axis=0) != 0).all()


def test_a_decay_of_each_group_wants_to_know_the_group():
    optimizer = optimizers.optimizer("adam", lambda step: 0.1, (0.1, 0.2))
    with pytest.raises(TypeError, match="group"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
