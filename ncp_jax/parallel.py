"""Many devices: batches split over them, groups split over them, one re-layout between.

All devices form one axis.  The frozen VAE runs on its share of the batch; then every
device gets the whole batch of its share of the groups, and a discriminator's update
needs nobody else.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ncp_jax.errors import InputError
from ncp_jax.process import rendezvous

PyTree = Any

AXIS = "devices"
# What a scheduler sets for each process; together they start several processes as one.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "NCP_JAX_COORDINATOR",
    "NCP_JAX_NUM_PROCESSES",
    "NCP_JAX_PROCESS_ID",
)


def join_processes(seconds: float = rendezvous.SECONDS) -> None:
    """Joins this process to the others of its run, where the environment names them.

    Args:
      seconds: to wait for them.

    Raises:
      InputError: if only some of the three variables are set, they are no numbers, or
        no process can have this number; or the others cannot be joined.
    """
    values = [
        os.environ.get(name, "") for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    ]
    if not any(values):
        return
    address, *numbers = values
    if not address or not all(number.isdecimal() for number in numbers):
        raise InputError(
            f"several processes need {COORDINATOR}=HOST:PORT, {NUM_PROCESSES}=N and "
            f"{PROCESS_ID}=0..N-1 each; got {values}"
        )
    num_processes, process_id = map(int, numbers)
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"{PROCESS_ID}={process_id} of {NUM_PROCESSES}={num_processes}: the "
            "processes are numbered from 0, and the last is one less than how many "
            "there are"
        )
    rendezvous.meet(address, num_processes, process_id, seconds)
    try:
        jax.distributed.initialize(address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"process {process_id} of {num_processes} cannot join the others at "
            f"{COORDINATOR}={address}: {_first_line(error)}"
        ) from error


def check_devices() -> None:
    """Refuses a machine without the devices that JAX is told to use.

    Raises:
      InputError: naming them.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where CUDA lacks
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            f"JAX finds no device, with JAX_PLATFORMS={asked}: {_first_line(error)}. "
            "Leave that variable out to compute on what there is, or set it to cpu"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def is_writer() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def any_process(flag: int) -> int:
    """Returns the largest of the processes' flags; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return int(np.max(multihost_utils.process_allgather(np.int32(flag))))


def mesh_of(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of some devices, by default all of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def one_device() -> Mesh:
    """Returns the mesh of one device of this process."""
    return mesh_of(jax.local_devices()[:1])


def check_batch_size(mesh: Mesh, name: str, batch_size: int) -> None:
    """Refuses a batch that the devices cannot share evenly."""
    if batch_size % mesh.size:
        raise InputError(
            f"{name} = {batch_size} is not a multiple of the {mesh.size} devices"
        )


def split(mesh: Mesh, tree: PyTree, axis: int = 0) -> PyTree:
    """Splits an axis of every array over the devices; for use under `jit`."""
    spec = PartitionSpec(*[None] * axis, AXIS)
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def join(mesh: Mesh, tree: PyTree) -> PyTree:
    """Gives every device the whole of every array; for use under `jit`."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Puts the whole of every array, the same in all processes, on every device."""
    return jax.tree.map(lambda leaf: _put(mesh, leaf, PartitionSpec()), tree)


def split_groups(mesh: Mesh, stacked: PyTree) -> PyTree:
    """Puts arrays [n, ...] on the devices, the groups split and padded to be even."""
    # XLA calls one device's only layout so; under another name `jit` compiles again.
    spec = PartitionSpec(AXIS) if mesh.size > 1 else PartitionSpec()
    return jax.tree.map(
        lambda leaf: _put(mesh, _padded(np.asarray(leaf), mesh), spec), stacked
    )


def gather(tree: PyTree) -> PyTree:
    """Returns every array as a NumPy copy, in all processes."""
    return jax.tree.map(_gathered, tree)


def over_device_groups(
    mesh: Mesh, function: Callable[..., PyTree], groups: PyTree, *stacked: PyTree
) -> PyTree:
    """Applies a function to each device's share of the groups, without communication.

    Args:
      mesh: of all devices.
      function: of pytrees with a leading group axis, to such pytrees.
      groups: split by `split_groups`, so padded.
      *stacked: more arguments, not yet padded; [num_groups, ...] in any layout.
    """
    # Every output follows from split inputs: there is no replication to check.
    share = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=PartitionSpec(AXIS),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    padded = jax.tree.map(partial(_padded, mesh=mesh), stacked)
    return share(groups, *split(mesh, padded))


def over_device_chains(
    mesh: Mesh, function: Callable[..., PyTree], tree: PyTree, keys: jax.Array
) -> PyTree:
    """Applies a function of chains to each device's share, without communication.

    Args:
      mesh: of all devices.
      function: (tree, keys [B / devices]) -> a pytree of arrays [B / devices, ...].
      tree: the same on every device.
      keys: [B] PRNG keys, one per chain; B is a multiple of the devices.
    """
    share = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    return share(tree, keys)


def _padded(leaf: Any, mesh: Mesh) -> Any:
    """Repeats the last group until the devices can share evenly."""
    missing = -len(leaf) % mesh.size
    if not missing:
        return leaf
    xp = np if isinstance(leaf, np.ndarray) else jnp
    return xp.concatenate([leaf, xp.repeat(leaf[-1:], missing, axis=0)])


def _put(mesh: Mesh, leaf: Any, spec: PartitionSpec) -> jax.Array:
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])


def _gathered(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(leaf)  # a copy: the buffer may be donated next
