"""`parallel.py`: any number of devices and processes trains the same discriminators."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import parallel
from ncp_jax.errors import InputError

ROOT = Path(__file__).parent.parent
STEPS = 20


def start(*arguments, num_devices, **variables):
    """Starts `tests.on_devices` in a process that sees so many devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_PLATFORMS": "cpu",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.on_devices", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(*processes):
    """Waits for all and returns what the first has said."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3_000:]
    return outputs[0]


def final(folder):
    with np.load(folder / f"{STEPS}.npz") as arrays:
        return list(arrays.values())


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 20
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """The state after all steps on one device."""
    folder = tmp_path_factory.mktemp("one")
    finish(start(folder, STEPS, num_devices=1))
    return final(folder)


@pytest.mark.slow
def test_what_eight_devices_begin_any_number_finishes_as_one_does(tmp_path, on_one):
    finish(start(tmp_path / "half", STEPS // 2, num_devices=8))
    for num_devices in (8, 4, 2, 1):
        folder = tmp_path / f"on_{num_devices}"
        shutil.copytree(tmp_path / "half", folder)
        finish(start(folder, STEPS, num_devices=num_devices))
        assert_same(final(folder), on_one)


@pytest.mark.slow
def test_two_processes_of_four_devices_learn_what_one_does(tmp_path, on_one):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            tmp_path,
            STEPS,
            num_devices=4,
            NCP_JAX_COORDINATOR=f"127.0.0.1:{port}",
            NCP_JAX_NUM_PROCESSES="2",
            NCP_JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    finish(*processes)
    assert_same(final(tmp_path), on_one)


@pytest.fixture(scope="module")
def on_eight():
    return json.loads(finish(start(num_devices=8)).splitlines()[-1])


def test_the_groups_learn_without_communication_after_one_re_layout(on_eight):
    assert on_eight["groups"] == []
    # The draws change hands; the gather is that of the metrics.
    assert set(on_eight["update"]) == {"all-to-all", "all-gather"}


@pytest.mark.parametrize("sampler", ["sir", "mala"])
def test_chains_on_many_devices_draw_what_they_draw_on_one(on_eight, sampler):
    assert on_eight[sampler]["gap"] < 1e-4
    assert on_eight[sampler]["sent"] == []


def test_log_z_is_the_same_on_many_devices(on_eight):
    assert on_eight["log_z"]["counts"] == [45, 45]
    assert on_eight["log_z"]["gap"] < 1e-5
    assert on_eight["log_z"]["sent"] == []


def test_many_devices_leave_the_same_groups_alone(on_eight):
    """And give the others their directions, split as they are."""
    assert on_eight["resting"]["gap"] < 1e-5
    first, idle, last = on_eight["resting"]["losses"]
    assert abs(idle - 2 * np.log(2)) < 1e-6
    assert min(abs(first - idle), abs(last - idle)) > 1e-4


def test_devices_share_what_stage_1_is_validated_on(on_eight):
    """Each of them computed the whole of it; they need only add up their shares."""
    ours, theirs = on_eight["validating"]["losses"]
    assert abs(ours / theirs - 1) < 1e-5
    of_many, of_one = on_eight["validating"]["sent"]
    assert "all-reduce" in of_many and of_one == []


def test_uneven_groups_are_padded_and_come_back_whole():
    mesh = parallel.mesh_of()
    tree = {"a": np.arange(6.0).reshape(3, 2), "n": np.arange(3)}
    placed = parallel.split_groups(mesh, tree)
    for name, leaf in parallel.gather(placed).items():
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_array_equal(leaf[:3], tree[name])


def test_a_gathered_array_is_a_copy():
    array = jnp.arange(3.0)
    parallel.gather(array)[0] = 7.0
    assert array[0] == 0.0


def test_a_batch_that_devices_cannot_share_is_refused():
    class Mesh:
        size = 8

    parallel.check_batch_size(Mesh, "config.vae.batch_size", 64)
    with pytest.raises(InputError, match=r"config\.vae\.batch_size = 60 .* 8 devices"):
        parallel.check_batch_size(Mesh, "config.vae.batch_size", 60)


@pytest.mark.parametrize(
    "values",
    [
        {"NCP_JAX_NUM_PROCESSES": "2"},
        {
            "NCP_JAX_COORDINATOR": "localhost:1",
            "NCP_JAX_NUM_PROCESSES": "two",
            "NCP_JAX_PROCESS_ID": "0",
        },
        {
            "NCP_JAX_COORDINATOR": "localhost:1",
            "NCP_JAX_NUM_PROCESSES": "\N{SUPERSCRIPT TWO}",
            "NCP_JAX_PROCESS_ID": "0",
        },
    ],
)
def test_half_told_processes_are_refused(monkeypatch, values):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="NCP_JAX_COORDINATOR=HOST:PORT"):
        parallel.join_processes()


@pytest.mark.parametrize(
    ("process_id", "num_processes"), [(5, 2), (2, 2), (0, 0), (1, 0)]
)
def test_a_process_that_cannot_be_is_refused(monkeypatch, process_id, num_processes):
    monkeypatch.setenv("NCP_JAX_COORDINATOR", "localhost:1")
    monkeypatch.setenv("NCP_JAX_NUM_PROCESSES", str(num_processes))
    monkeypatch.setenv("NCP_JAX_PROCESS_ID", str(process_id))
    message = f"NCP_JAX_PROCESS_ID={process_id} of NCP_JAX_NUM_PROCESSES="
    with pytest.raises(InputError, match=message):
        parallel.join_processes()


def test_a_coordinator_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("NCP_JAX_COORDINATOR", "localhost:9")
    monkeypatch.setenv("NCP_JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("NCP_JAX_PROCESS_ID", "1")
    with pytest.raises(InputError, match=r"not been met at localhost:9 in 0\.3 s: "):
        parallel.join_processes(seconds=0.3)


def test_others_that_cannot_be_joined_are_named(monkeypatch):
    def initialize(*arguments):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand a stack")

    monkeypatch.setattr(parallel.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(parallel.rendezvous, "meet", lambda *unused: None)
    monkeypatch.setenv("NCP_JAX_COORDINATOR", "host:1")
    monkeypatch.setenv("NCP_JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("NCP_JAX_PROCESS_ID", "1")
    with pytest.raises(InputError, match=r"1 of 2 .*=host:1: .*nobody there$"):
        parallel.join_processes()
