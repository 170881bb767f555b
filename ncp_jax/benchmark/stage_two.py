"""Steps per second of stage 2 against the number of groups and of devices."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Update(NamedTuple):
    """One update of stacked discriminators, on draws that are noise.

    Attributes:
      network: the discriminator.
      optimizer: of stage 2.
      stack: whose shapes z and context have.
      key: PRNG key; consumed here.
      batch_size: B draws of each class.
      num_repeats: calls of each after the first.
      max_seconds: repeats end after the one that reaches this.
    """

    network: nn.Module
    optimizer: optax.GradientTransformation
    stack: Stack
    key: Array
    batch_size: int
    num_repeats: int
    max_seconds: float

    @property
    def learn(self) -> Callable[..., Any]:
        """The update of one group."""
        turn = nce.Turn(jnp.int32(0), jnp.int32(0))  # any costs the same
        return partial(nce.learn, self.network, self.optimizer, turn=turn)

    def stacked(self, num_groups: int) -> tuple[nce.GroupState, ContrastiveDraws]:
        """States and draws of so many groups."""

        def normal(name: str, shape: tuple[int, ...]) -> Array:
            shape = (num_groups, self.batch_size, *shape)
            return jax.random.normal(rng.stream(self.key, name), shape)

        draws = ContrastiveDraws(
            normal("positive", self.stack.latent_shape),
            normal("negative", self.stack.latent_shape),
            normal("context", self.stack.context_shape),
        )

        @jax.jit
        @jax.vmap
        def start(key: Array) -> nce.GroupState:
            z, context = draws.negative[0, :1], draws.context[0, :1]
            params = self.network.init(key, z, context)["params"]
            return nce.start(self.optimizer, params)

        return start(jax.random.split(rng.stream(self.key, "init"), num_groups)), draws

    def time(self, function: Callable[..., Any], *args: Any) -> timing.Timing:
        """Times a compiled function of states and draws."""
        took, _ = timing.time_compiled(
            function, *args, num_repeats=self.num_repeats, max_seconds=self.max_seconds
        )
        return took


def rows(update: Update, num_groups: Sequence[int]) -> Iterator[Row]:
    """Times an update of K groups.

    Args:
      update: of stage 2.
      num_groups: values of K.

    Yields:
      A row per K on one device, in each formulation, with the cost of a group as a
      multiple of that of one alone; then, where there are more devices, a row for each
      power of two of them with the largest K.
    """
    over_groups = partial(stacks.over_groups, update.learn)
    one = update.time(over_groups, *update.stacked(1)).median
    default = stacks.formulation_here()
    for k in num_groups:
        groups, draws = update.stacked(k)
        row: Row = {"num_groups": k, "num_devices": 1, "batch_size": update.batch_size}
        for formulation in ("map", "vmap"):
            formulated = partial(over_groups, formulation=formulation)
            seconds = update.time(formulated, groups, draws).median
            row[formulation] = {
                "seconds": seconds,
                "cost_of_a_group": seconds / one / k,
            }
        row |= row[default] | {"formulation": default}
        row["steps_per_second"] = 1 / row["seconds"]
        row["loop_over_groups"] = _loop_seconds(update, groups, draws)
        yield row
    if several := powers_of_two(jax.device_count())[1:]:
        yield from on_devices(update, max(num_groups), several)


def on_devices(
    update: Update, num_groups: int, num_devices: Sequence[int]
) -> Iterator[Row]:
    """Times an update of K groups that some devices share.

    Args:
      update: of stage 2.
      num_groups: K.
      num_devices: how many share the groups.

    Yields:
      A row per number of devices.
    """
    over_groups = partial(stacks.over_groups, update.learn)
    groups, draws = update.stacked(num_groups)
    for number in num_devices:
        mesh = parallel.mesh_of(jax.devices()[:number])
        took = update.time(
            partial(parallel.over_device_groups, mesh, over_groups),
            parallel.split_groups(mesh, groups),
            draws,
        )
        yield {
            "num_groups": num_groups,
            "num_devices": number,
            "batch_size": update.batch_size,
            **took.as_json(),
            "steps_per_second": 1 / took.median,
            "formulation": stacks.formulation_here(),
        }


def _loop_seconds(update: Update, groups: Any, draws: Any) -> float:
    """A Python loop over the groups, each with its own compiled update."""
    compiled = jax.jit(update.learn)
    num_groups = len(draws.positive)
    each = [
        jax.tree.map(lambda leaf, k=k: leaf[k], (groups, draws))
        for k in range(num_groups)
    ]

    def call() -> Any:
        return [compiled(*args) for args in each]

    jax.block_until_ready(call())
    taken = timing.time_calls(call, update.num_repeats, update.max_seconds)
    return float(np.median(taken))


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... as far as `most`."""
    return [2**i for i in range(most.bit_length())]
