"""The pool of encodings: which, in what order, from what noise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import parallel, rng
from ncp_jax.priors import directions
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.ncp import encodings
from tests.signal_toy import SignalVAE as SignalToy
from tests.signal_toy import examples, planes

ROOT = Path(__file__).parents[3]
NUM = 10


def as_stored(key, stored):
    return stored


def model(std=0.6):
    toy = SignalToy(
        jnp.asarray(planes(2)), jnp.array([[2.0, 1.0], [1.0, 0.5]]), std=std
    )
    found = directions.random_directions(toy, jax.random.key(0), 2)
    return SignalVAE(toy, found, context_size=1)


def pool(of=None, stored=None, key=5, num_passes=3, batch_size=4, mesh=None):
    return encodings.pool(
        of or model(),
        examples(NUM) if stored is None else stored,
        as_stored,
        rng.root(key),
        num_passes=num_passes,
        batch_size=batch_size,
        mesh=mesh or parallel.mesh_of(jax.devices()[:1]),
    )


def test_every_pass_holds_every_example_in_order_and_no_padding():
    """Without noise the coordinates say whose they are."""
    without_noise = model(std=0.0)
    u = pool(without_noise)
    assert u.shape == (3 * NUM, 2, 2) and u.dtype == np.float32
    expected = without_noise.encode(jnp.asarray(examples(NUM)), rng.root(0)).latents[0]
    for each in np.split(u, 3):
        np.testing.assert_allclose(each, expected.swapaxes(0, 1), atol=1e-5)
    assert np.abs(u[0] - u[1]).max() > 0.1  # so an order could be wrong


def test_a_pool_follows_from_its_key_and_every_pass_has_noise_of_its_own():
    u = pool()
    np.testing.assert_array_equal(u, pool())
    passes = np.split(u, 3)
    for i in range(3):
        assert np.abs(passes[i] - passes[i - 1]).min(axis=(1, 2)).max() > 0
        assert not np.any(np.all(passes[i] == passes[i - 1], axis=(1, 2)))
    assert np.abs(u - pool(key=6)).max() > 0.1
    np.testing.assert_array_equal(u[:NUM], pool(num_passes=1))  # more passes add rows


def test_two_examples_that_are_equal_get_noise_of_their_own():
    same = np.repeat(examples(1), 8, axis=0)
    u = pool(stored=same, num_passes=2)
    assert len(np.unique(u[:, 0, 0])) == 16


if __name__ == "__main__":
    mesh = parallel.mesh_of()
    print(json.dumps([mesh.size, pool(mesh=mesh).tolist()]))


@pytest.mark.slow
def test_any_number_of_devices_makes_the_same_pool():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    out = subprocess.run(
        [sys.executable, "-m", "tests.training.ncp.test_encodings"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    num_devices, u = json.loads(out.stdout.splitlines()[-1])
    assert num_devices == 4
    np.testing.assert_allclose(np.array(u), pool(), atol=1e-5)
