"""What an update of stage 2 changes: begun, spread over devices, and back in one."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models import stacks
from ncp_jax.models.base import Block, LatentVariableModel
from ncp_jax.priors.directed import constants_of
from ncp_jax.training.loop import PyTree
from ncp_jax.training.ncp import idle_groups, nce
from ncp_jax.training.ncp.nce import GroupState

Array = jax.Array


class NCPState(struct.PyTreeNode):
    """Everything that an update of stage 2 changes; a checkpoint holds just this."""

    step: Array  # int32 scalar: updates done
    stacks: tuple[GroupState, ...]  # one per stack of groups of equal shape

    def best_params(self, blocks: tuple[Block, ...]) -> tuple[PyTree, ...]:
        """Each group's weights at its best held-out score, stacked per block."""
        best = [stack.best_params for stack in self.stacks]
        return stacks.by_block(blocks, best)


class PartState(NCPState):
    """The same on the devices, where some groups are not trained."""

    idle: tuple[GroupState, ...] = ()  # their rows of every stack; not in `stacks`


def init_params(
    discriminator: nn.Module, vae: LatentVariableModel, key: Array
) -> tuple[PyTree, ...]:
    """Returns fresh parameters, per block stacked [num_groups, ...]; r = 1.

    Those that the discriminators of `vae` are given (`constants_of`) are left out.
    """
    constants = constants_of(vae)

    def init_one(b: int, key: Array) -> PyTree:
        _, latent_shape, context_shape = vae.blocks[b]
        z, context = jnp.zeros((1, *latent_shape)), jnp.zeros((1, *context_shape))
        params = discriminator.init(key, z, context)["params"]
        return {n: value for n, value in params.items() if n not in constants[b]}

    return tuple(
        jax.vmap(partial(init_one, b))(
            jax.random.split(rng.at_step(key, b), block.num_groups)
        )
        for b, block in enumerate(vae.blocks)
    )


def init_state(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    vae: LatentVariableModel,
    key: Array,
    *,
    ema_decay: float = 0.0,
) -> NCPState:
    """Returns the state before the first step; r = 1.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      vae: a frozen model.
      key: PRNG key; consumed here.
      ema_decay: of the running average of the weights; 0 for none.
    """
    params = init_params(discriminator, vae, key)
    start = jax.vmap(partial(nce.start, optimizer, ema_decay=ema_decay))
    per_stack = map(start, stacks.by_stack(vae.blocks, params))
    return NCPState(jnp.zeros((), jnp.int32), tuple(per_stack))


def place(
    mesh: Mesh,
    state: NCPState,
    blocks: tuple[Block, ...] = (),
    groups: tuple[int, ...] | None = None,
) -> NCPState:
    """Spreads the groups of a state over the devices; uneven stacks are padded.

    Args:
      mesh: the devices.
      state: of all groups.
      blocks: of the model; needed where `groups` is given.
      groups: numbers of those that are trained; None for all.  The others lie beside,
        on every device.
    """
    step = parallel.replicate(mesh, state.step)
    of_stacks = idle_groups.rows_of(blocks, groups) if blocks else ()
    if not any(rows.idle for rows in of_stacks):
        return NCPState(step, parallel.split_groups(mesh, state.stacks))
    each = list(zip(state.stacks, of_stacks, strict=True))
    trained = tuple(idle_groups.used(stack, rows) for stack, rows in each)
    idle = tuple(idle_groups.pick(stack, rows.idle) for stack, rows in each)
    return PartState(
        step, parallel.split_groups(mesh, trained), parallel.replicate(mesh, idle)
    )


def collect(
    blocks: tuple[Block, ...],
    state: NCPState,
    groups: tuple[int, ...] | None = None,
) -> NCPState:
    """Undoes `place`: the state as NumPy arrays, the padding gone."""
    trained = idle = parallel.gather(state.stacks)
    if isinstance(state, PartState):
        idle = parallel.gather(state.idle)
    each = zip(trained, idle, idle_groups.rows_of(blocks, groups), strict=True)
    whole = tuple(idle_groups.join(*of_stack) for of_stack in each)
    return NCPState(parallel.gather(state.step), whole)
