import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.training.kl_schedule import balance_kl, group_alphas, kl_coefficient


def test_coefficient_waits_rises_and_stays():
    steps = np.array([0, 1, 10, 11, 1510, 3010, 10_000])
    values = [kl_coefficient(step, 10_000, 0.3, 1e-3) for step in steps]
    expected = np.clip((steps - 10.0) / 3000.0, 1e-4, 1.0)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert kl_coefficient(0, 100, warmup_fraction=0.0) == 1.0


def test_alphas_by_hand():
    # 4**0 / 5 at the top and 4**1 / 10 below.
    sizes = [320] * 5 + [1280] * 10
    np.testing.assert_allclose(group_alphas(sizes), [1.0] * 5 + [2.0] * 10)
    np.testing.assert_allclose(group_alphas([320] * 30), np.ones(30))


def test_balancing_goes_by_the_sizes_of_vectors():
    np.testing.assert_allclose(group_alphas((16, 16, 16)), np.ones(3))
    np.testing.assert_allclose(group_alphas((4, 8, 16)), [1.0, 2.0, 4.0])


def test_balanced_weights_by_hand():
    kl = jnp.asarray([[1.0, 4.0], [3.0, 2.0]])
    gamma = np.array([2.01 / 1.0, 3.01 / 2.0])
    gamma /= gamma.mean()
    balanced = balance_kl(kl, jnp.asarray(0.5), np.array([1.0, 2.0], np.float32))
    np.testing.assert_allclose(balanced, 0.5 * np.asarray(kl) @ gamma, rtol=1e-6)
    gradient = jax.grad(lambda kl: balance_kl(kl, jnp.asarray(0.5), jnp.ones(2)).sum())(
        jnp.ones((2, 2))
    )
    np.testing.assert_allclose(gradient, 0.5)  # gamma is held fixed


def test_plain_sum_after_the_warm_up():
    kl = jnp.asarray([[1.0, 4.0], [3.0, 2.0]])
    plain = balance_kl(kl, jnp.asarray(1.0), jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(plain, [5.0, 5.0])
