"""`signal_covariance.py`: closed forms, noise of draws, the range finder, devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax import parallel, rng
from ncp_jax.data.datasets import padded_batches
from ncp_jax.priors import signal_covariance, signal_sums
from tests import tiny
from tests.signal_toy import D, SignalVAE, examples, planes, prepare
from tests.statistics import FALSE_FAIL_RATE

GAINS = np.array([[0.8, 0.5], [1.3, 0.9]], np.float32)
PULL = 0.5
STD = 0.6
NUM_DRAWS = 4
PLANES = planes(2)


def two_groups(**settings):
    return SignalVAE(jnp.asarray(PLANES), jnp.asarray(GAINS), STD, PULL, **settings)


def leading(vae, x, batch_size=2_000, key=None, **settings):
    settings = {
        "num_leading": 8,
        "max_exact_dim": 1024,
        "num_passes": 3,
        "num_draws": NUM_DRAWS,
        **settings,
    }
    batches = padded_batches(x, batch_size)
    key = rng.root(5) if key is None else key
    (spectrum,) = signal_covariance.leading(vae, batches, prepare, key, **settings)
    return spectrum


def reach(k):
    """The mean of e_k in its plane is x times this; z_0 takes part of x from e_1."""
    return GAINS[k] * (1 - PULL * GAINS[0]) if k else GAINS[k]


def misfit(vectors, plane):
    """The Frobenius norm of the sines of two planes' principal angles."""
    cosines = np.linalg.svd(vectors.T @ plane, compute_uv=False)
    return np.sqrt(np.sum(np.maximum(1 - cosines**2, 0)))


@pytest.fixture(scope="module")
def many():
    return examples(16_000)


@pytest.fixture(scope="module")
def of_draws(many):
    return leading(two_groups(has_means=False), many)


@pytest.mark.parametrize("is_centred", [True, False])
def test_means_give_the_moments_of_the_examples(is_centred):
    x = examples(600) + 0.5
    # The last batch is padded.
    found = leading(two_groups(), x, batch_size=250, is_centred=is_centred)
    assert found.values.shape == (2, 8) and found.vectors.shape == (2, D, 8)
    for k in range(2):
        m = x.astype(np.float64) * reach(k)
        moment = np.cov(m.T) if is_centred else m.T @ m / len(m)
        expected = np.linalg.eigvalsh(moment)[::-1]
        np.testing.assert_allclose(found.values[k, :2], expected, rtol=1e-5)
        np.testing.assert_allclose(found.values[k, 2:], 0, atol=1e-6)
        np.testing.assert_allclose(found.total[k], moment.trace(), rtol=1e-5)
        assert misfit(found.vectors[k, :, :2], PLANES[k]) < 1e-3
        assert misfit(found.vectors[k, :, :2], PLANES[1 - k]) > 0.9
    np.testing.assert_array_equal(found.noise_edge, 0)


def test_draws_have_the_same_covariance_on_average(of_draws, many):
    """Both paths agree: draws leave in the plane what means do, but for noise."""
    z = scipy.stats.norm.isf(FALSE_FAIL_RATE / 2)
    for k in range(2):
        # e_k in the plane: signal a, and noise of z_0 and of its own
        variance = STD**2 * (1 + k * (GAINS[k] * PULL) ** 2)
        inside = (of_draws.vectors[k] * of_draws.values[k]) @ of_draws.vectors[k].T
        inside = np.diag(PLANES[k].T @ inside @ PLANES[k])
        expected = reach(k) ** 2 * np.mean(many**2, 0, dtype=np.float64)
        pairs = NUM_DRAWS * (NUM_DRAWS - 1)
        noise = 4 * expected * variance / NUM_DRAWS + 2 * variance**2 / pairs
        bar = z * np.sqrt(noise / len(many))
        assert (np.abs(inside - expected) < bar).all()
        assert bar[0] < 0.1 * expected[0]  # 10 % more signal would be seen


def test_draws_find_the_plane(of_draws, many):
    """First-order perturbation: noise outside of the plane over the eigenvalue."""
    signal, variance = GAINS[0] ** 2, STD**2
    outside = signal * variance / NUM_DRAWS
    outside = outside + variance**2 / (NUM_DRAWS * (NUM_DRAWS - 1))
    worst = np.max(outside / len(many) / signal**2)
    bar = np.sqrt(worst * scipy.stats.chi2.isf(FALSE_FAIL_RATE, 2 * (D - 2)))
    bar *= 1.2  # higher orders: the noise's own eigenvalues reach a tenth of 0.25
    assert misfit(of_draws.vectors[0, :, :2], PLANES[0]) < bar
    tilted = PLANES[0] + 0.1 * planes(1, seed=9)[0]
    assert misfit(np.linalg.qr(tilted)[0], PLANES[0]) > bar


def test_a_shift_of_all_examples_is_a_direction():
    x = np.full((300, 2), 0.5, np.float32)
    about_prior, centred = (leading(two_groups(), x, is_centred=c) for c in (0, 1))
    expected = np.sum((0.5 * reach(0)) ** 2)
    np.testing.assert_allclose(about_prior.values[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(centred.values[0], 0, atol=1e-6)


def test_the_total_is_the_trace_of_all_eigenvalues(many):
    found = leading(two_groups(), many[:500], num_leading=D, use_means=False)
    np.testing.assert_allclose(found.values.sum(1), found.total, rtol=1e-5)
    assert found.values[0, -1] < -0.01  # the covariance of draws is not positive


def test_without_signal_nothing_lies_above_the_edge():
    """A millionth of all cases would; and the edge is not far above the noise."""
    vae = SignalVAE(jnp.asarray(planes(8)), jnp.zeros((8, 2)), 1.1)
    found = leading(vae, examples(2_000), use_means=False)
    assert (found.values[:, 0] < found.noise_edge).all()
    assert found.values[:, 0].max() > 0.6 * found.noise_edge.max()


@pytest.mark.parametrize("num_draws", [2, 3, 6])
def test_the_edge_is_that_of_simulated_noise(num_draws):
    """4 n^(-2/3) are 8 units of Tracy-Widom's law: less than 1e-8 on either side."""
    size, count = 400, 600
    noise = np.random.default_rng(num_draws).normal(size=(num_draws, count, size))
    both = noise.sum(0).T @ noise.sum(0) - np.einsum("rnd,rne->de", noise, noise)
    largest = np.linalg.eigvalsh(both / (count * num_draws * (num_draws - 1)))[-1]
    margin = signal_covariance.EDGE_MARGIN * size ** (-2 / 3)
    edge = signal_covariance.noise_edge(size, count, num_draws)
    assert abs(largest / edge - 1) < margin < 0.1


def test_the_edge_of_many_examples_is_a_semicircle_s():
    edge = signal_covariance.noise_edge(1, 10**6, 3)
    np.testing.assert_allclose(edge, 2 * np.sqrt(1e-6 / 6), rtol=2e-3)


@pytest.mark.parametrize("use_means", [True, False])
def test_the_range_finder_finds_what_the_covariance_holds(use_means, many):
    """24 columns of 40; both read the same draws."""
    settings = {"use_means": use_means, "num_leading": 8}
    exact = leading(two_groups(), many, **settings)
    found = leading(two_groups(), many, max_exact_dim=D - 1, **settings)
    np.testing.assert_allclose(found.values[:, :2], exact.values[:, :2], rtol=1e-3)
    np.testing.assert_allclose(found.total, exact.total, rtol=1e-5)
    np.testing.assert_array_equal(found.noise_edge, exact.noise_edge)
    for k in range(2):
        assert misfit(found.vectors[k, :, :2], exact.vectors[k, :, :2]) < 5e-3
        gram = found.vectors[k].T @ found.vectors[k]
        np.testing.assert_allclose(gram, np.eye(8), atol=1e-5)


def test_neither_batch_size_nor_padding_change_the_draws(many):
    whole, parts = (
        leading(two_groups(), many[:1_000], batch_size, use_means=False)
        for batch_size in (1_000, 300)
    )
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-5)
    other = leading(two_groups(), many[:1_000], key=rng.root(6), use_means=False)
    assert np.abs(other.values - whole.values).max() > 1e-3


def test_a_batch_compiles_once(many):
    with tiny.compilations() as count:
        leading(two_groups(), many[:900], batch_size=90)
    assert count[signal_sums._batch_sums.__name__] == 1


def start(name, num_devices=1, **variables):
    """Starts a function of the toy in a process that has so many devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_PLATFORMS": "cpu",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.signal_toy", name],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(*processes):
    """Waits for all and returns what the first has found."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors[-3_000:]
    return json.loads(said[0][0].splitlines()[-1])  # processes that meet say so


def assert_same(ours, theirs):
    for mine, other in zip(ours["spectra"], theirs["spectra"], strict=True):
        assert min(mine[0]) > 0.1
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_eight_devices_find_what_one_does():
    one, eight = finish(start("over_devices")), finish(start("over_devices", 8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert_same(eight, one)


@pytest.mark.slow
def test_two_processes_find_what_one_does():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    names = (parallel.COORDINATOR, parallel.NUM_PROCESSES, parallel.PROCESS_ID)
    both = [
        start("over_devices", 4, **dict(zip(names, (address, "2", i), strict=True)))
        for i in "01"
    ]
    two = finish(*both)
    assert two["devices"] == 8
    assert_same(two, finish(start("over_devices")))


@pytest.mark.slow
def test_twenty_thousand_variables_need_no_covariance():
    """D x D takes 1.7 GB in float32."""
    found = finish(start("large"))
    assert found["gigabytes"] < 0.8
    assert found["widths"] == [2]
    assert min(found["cosines"]) > 0.999
