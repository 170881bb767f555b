"""Steps per second of stage 2 against the number of groups and of devices."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncp_jax import parallel, rng
from ncp_jax.benchmark import timing
from ncp_jax.models import stacks
from ncp_jax.models.stacks import Stack
from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training.ncp import nce

Array = jax.Array
Row = dict[str, Any]


def rows(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    stack: Stack,
    key: Array,
    *,
    batch_size: int,
    num_groups: Sequence[int],
    num_repeats: int,
    max_seconds: float,
) -> Iterator[Row]:
    """Times one update of K stacked discriminators, on draws that are noise.

    Args:
      network: the discriminator.
      optimizer: of stage 2.
      stack: whose shapes z and context have.
      key: PRNG key; consumed here.
      batch_size: B draws of each class.
      num_groups: values of K.
      num_repeats: calls of each after the first.
      max_seconds: repeats end after the one that reaches this.

    Yields:
      A row per K on one device, in each formulation, with the cost of a group as a
      multiple of that of one alone; then, where there are more devices, a row for each
      power of two of them with the largest K.
    """
    sizes: Any = {"num_repeats": num_repeats, "max_seconds": max_seconds}
    turn = nce.Turn(jnp.int32(0), jnp.int32(0))  # any costs the same
    learn = partial(nce.learn, network, optimizer, turn=turn)
    make = partial(_stacked, network, optimizer, stack, key, batch_size)
    one = _seconds(partial(stacks.over_groups, learn), *make(1), **sizes)
    default = stacks.formulation_here()
    for k in num_groups:
        groups, draws = make(k)
        row: Row = {"num_groups": k, "num_devices": 1, "batch_size": batch_size}
        for formulation in ("map", "vmap"):
            update = partial(stacks.over_groups, learn, formulation=formulation)
            seconds = _seconds(update, groups, draws, **sizes)
            row[formulation] = {
                "seconds": seconds,
                "cost_of_a_group": seconds / one / k,
            }
        row |= row[default] | {"formulation": default}
        row["steps_per_second"] = 1 / row["seconds"]
        row["loop_over_groups"] = _loop_seconds(learn, groups, draws, **sizes)
        yield row
    if several := powers_of_two(jax.device_count())[1:]:
        yield from on_devices(
            network,
            optimizer,
            stack,
            key,
            batch_size=batch_size,
            num_groups=max(num_groups),
            num_devices=several,
            **sizes,
        )


def on_devices(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    stack: Stack,
    key: Array,
    *,
    batch_size: int,
    num_groups: int,
    num_devices: Sequence[int],
    num_repeats: int,
    max_seconds: float,
) -> Iterator[Row]:
    """Times one update of K stacked discriminators that some devices share.

    Args:
      network: the discriminator.
      optimizer: of stage 2.
      stack: whose shapes z and context have.
      key: PRNG key; consumed here.
      batch_size: B draws of each class.
      num_groups: K.
      num_devices: how many share the groups.
      num_repeats: calls of each after the first.
      max_seconds: repeats end after the one that reaches this.

    Yields:
      A row per number of devices.
    """
    turn = nce.Turn(jnp.int32(0), jnp.int32(0))  # any costs the same
    learn = partial(nce.learn, network, optimizer, turn=turn)
    groups, draws = _stacked(network, optimizer, stack, key, batch_size, num_groups)
    for number in num_devices:
        mesh = parallel.mesh_of(jax.devices()[:number])
        update = partial(
            parallel.over_device_groups, mesh, partial(stacks.over_groups, learn)
        )
        took, _ = timing.time_compiled(
            update,
            parallel.split_groups(mesh, groups),
            draws,
            num_repeats=num_repeats,
            max_seconds=max_seconds,
        )
        yield {
            "num_groups": num_groups,
            "num_devices": number,
            "batch_size": batch_size,
            **took.as_json(),
            "steps_per_second": 1 / took.median,
            "formulation": stacks.formulation_here(),
        }


def _stacked(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    stack: Stack,
    key: Array,
    batch_size: int,
    num_groups: int,
) -> tuple[nce.GroupState, ContrastiveDraws]:
    def normal(name: str, shape: tuple[int, ...]) -> Array:
        shape = (num_groups, batch_size, *shape)
        return jax.random.normal(rng.stream(key, name), shape)

    draws = ContrastiveDraws(
        normal("positive", stack.latent_shape),
        normal("negative", stack.latent_shape),
        normal("context", stack.context_shape),
    )

    @jax.jit
    @jax.vmap
    def start(key: Array) -> nce.GroupState:
        z, context = draws.negative[0, :1], draws.context[0, :1]
        return nce.start(optimizer, network.init(key, z, context)["params"])

    return start(jax.random.split(rng.stream(key, "init"), num_groups)), draws


def _seconds(update: Callable[..., Any], *args: Any, **sizes: Any) -> float:
    took, _ = timing.time_compiled(update, *args, **sizes)
    return took.median


def _loop_seconds(learn: Any, groups: Any, draws: Any, **sizes: Any) -> float:
    """A Python loop over the groups, each with its own compiled update."""
    compiled = jax.jit(learn)
    num_groups = len(draws.positive)
    each = [
        jax.tree.map(lambda leaf, k=k: leaf[k], (groups, draws))
        for k in range(num_groups)
    ]

    def call() -> Any:
        return [compiled(*args) for args in each]

    jax.block_until_ready(call())
    return float(np.median(timing.time_calls(call, **sizes)))


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... as far as `most`."""
    return [2**i for i in range(most.bit_length())]
