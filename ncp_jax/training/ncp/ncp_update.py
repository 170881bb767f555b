"""Stage 2: noise contrastive estimation of all groups at once (Eqs. 3 and 4)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from ncp_jax.priors.latents import ContrastiveDraws, contrastive_draws
from ncp_jax.training import loop
from ncp_jax.training.loop import Metrics, Prepare, PyTree
from ncp_jax.training.ncp import held_out, idle_groups, nce
from ncp_jax.training.ncp.held_out import Sums
from ncp_jax.training.ncp.idle_groups import Rows
from ncp_jax.training.ncp.nce import GroupState, Turn

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


def contrast(
    discriminator: nn.Module,
    params: tuple[PyTree, ...],
    draws: tuple[ContrastiveDraws, ...],
) -> tuple[Array, Array]:
    """Logits of posterior and of prior draws of all reweighted groups: [K, B] each.

    Args:
      discriminator: (z_k, context) -> logit.
      params: stacked, per block; None where no group is reweighted.
      draws: per block.
    """
    per_block = [
        stacks.over_groups(partial(nce.logits, discriminator), p, d)
        for p, d in zip(params, draws, strict=True)
        if p is not None
    ]
    logit_q, logit_p = (
        jnp.concatenate(parts) for parts in zip(*per_block, strict=True)
    )
    return logit_q, logit_p


def make_update(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    key: Array,
    *,
    num_negatives: int = 1,
    ranking_weight: float = 0.0,
    negative_weight: float = 1.0,
    ema_decay: float = 0.0,
    patience: int = 0,
    mesh: Mesh | None = None,
    formulation: str = "auto",
    groups: tuple[int, ...] | None = None,
) -> Callable[[NCPState, PyTree, Array], tuple[NCPState, Metrics]]:
    """Returns one update of all groups: (state, data, rows) -> (state, metrics [K]).

    `data` holds "train", as `loop.take` reads it, and the frozen model "vae".  The
    model runs on each device's share of the batch; after one re-layout of its draws
    every device updates its share of the groups and needs no other.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      prepare: makes x from stored examples, with fresh noise each time.
      key: owner of the stage's random streams.
      num_negatives: prior draws of each group per example.
      ranking_weight: of the ranking losses beside those of NCE (`nce.losses`).
      negative_weight: M of the NCE losses (`nce.nce_losses`); 1 is the paper's.
      ema_decay: of the running average of the weights; 0 for none.
      patience: validations without a better held-out score after which a group rests;
        0 for no end.
      mesh: the devices, where the state is spread over them by `place`.
      formulation: of `stacks.over_groups`.
      groups: numbers of those that are trained, as of `place`; None for all.
    """
    mesh = mesh or _one_device()
    prepare_key, draws_key = rng.stream(key, "prepare"), rng.stream(key, "draws")
    weights: dict[str, Any] = {
        "ranking_weight": ranking_weight,
        "negative_weight": negative_weight,
    }
    learn_one = partial(
        nce.learn,
        discriminator,
        optimizer,
        ema_decay=ema_decay,
        patience=patience,
        **weights,
    )
    draw = partial(_draws, mesh, num_negatives=num_negatives)
    learn_stack = partial(stacks.over_groups, learn_one, formulation=formulation)

    def update(state: NCPState, data: PyTree, rows: Array) -> tuple[NCPState, Metrics]:
        blocks = data["vae"].blocks
        of_stacks = idle_groups.rows_of(blocks, groups)
        stored = loop.take(data["train"], rows)
        x = prepare(rng.at_step(prepare_key, state.step), stored)
        draws = draw(data["vae"], x, rng.at_step(draws_key, state.step))
        turns = _turns(blocks, state.step)
        constants = stacks.by_stack(blocks, constants_of(data["vae"]))
        per_stack = _over_stacks(
            mesh, learn_stack, of_stacks, state.stacks, draws, turns, constants
        )
        learned = [
            (old, {}) if new is None else new
            for old, new in zip(state.stacks, per_stack, strict=True)
        ]
        trained, metrics = zip(*learned, strict=True)
        idle = [idle_groups.learned(r, num_negatives, **weights) for r in of_stacks]
        joined = _per_group(mesh, blocks, metrics, idle, of_stacks)
        return state.replace(step=state.step + 1, stacks=trained), joined

    return update


def make_validate(
    discriminator: nn.Module,
    prepare: Prepare,
    key: Array,
    *,
    num_passes: int = 1,
    num_negatives: int = 1,
    ranking_weight: float = 0.0,
    negative_weight: float = 1.0,
    select_by: str = "loss",
    patience: int = 0,
    mesh: Mesh | None = None,
    formulation: str = "auto",
    groups: tuple[int, ...] | None = None,
) -> Callable[[NCPState, PyTree], tuple[NCPState, Metrics]]:
    """Returns the measures of each group on held-out encodings, noise fixed by `key`.

    The function is (state, data) -> (state, metrics [K]), with data["valid"]
    [n, B, ...] and data["valid_mask"] [n, B].  The state remembers each group's best
    weights.  The metrics are those of `held_out.merge`, "best_loss", the lowest score
    so far, and "stopped"; with averaged weights "newest_loss" and "newest_gain" are
    those of the weights that are not averaged.

    Args:
      discriminator: (z_k, context) -> logit.
      prepare: makes x from stored examples.
      key: owner of the validation's noise.
      num_passes: encodings drawn of every example, so that a small validation set does
        not make the choice of the best step noisy.
      num_negatives: as for `make_update`.
      ranking_weight: as for `make_update`.
      negative_weight: as for `make_update`.
      select_by: "loss", or "gain": E_q[log r] - log E_p[r], what the weights are worth
        in likelihood.  It is noisy where few draws carry E_p[r]; then more of them help
        (`num_passes`, `num_negatives`).
      patience: as for `make_update`.
      mesh: as for `make_update`.
      formulation: of `stacks.over_groups`.
      groups: as for `make_update`.
    """
    mesh = mesh or _one_device()
    weights: dict[str, Any] = {
        "ranking_weight": ranking_weight,
        "negative_weight": negative_weight,
    }

    def sums_of(
        group: GroupState, draws: ContrastiveDraws, mask: Array, constants: PyTree
    ) -> tuple[Sums, ...]:
        """Of the weights that would be kept, and of the newest where those are not."""
        each = [group.eval_params]
        if group.ema_params is not None:
            each.append(group.params)
        whole = [nce.with_constants(params, constants) for params in each]
        return tuple(sums_with(params, draws, mask) for params in whole)

    def sums_with(params: PyTree, draws: ContrastiveDraws, mask: Array) -> Sums:
        both = nce.logits(discriminator, params, draws)
        is_shared = draws.context.size == 0
        losses, _ = nce.losses_of(*both, is_shared=is_shared, **weights)
        return held_out.sums(losses, *both, mask)

    def judged(
        groups: GroupState, found: tuple[Sums, ...], counts: Array, is_split: bool
    ) -> tuple[GroupState, Metrics]:
        """The measures of one stack, and its state once they are looked at."""
        merge = partial(held_out.merge, counts=counts, num_negatives=num_negatives)
        measured, *newest = map(merge, found)
        judge, score = jax.vmap(nce.judge), held_out.score(measured, select_by)
        if is_split:
            groups = parallel.over_device_groups(mesh, judge, groups, score)
        else:
            groups = judge(groups, score)
        measured["best_loss"] = groups.best_loss
        measured["stopped"] = _has_stopped(groups, patience).astype(jnp.float32)
        for of_newest in newest:
            measured |= {f"newest_{n}": of_newest[n] for n in ("loss", "gain")}
        return groups, measured

    draw = partial(_draws, mesh, num_negatives=num_negatives)
    sums_of_stack = partial(stacks.over_groups, sums_of, formulation=formulation)

    def validate(state: NCPState, data: PyTree) -> tuple[NCPState, Metrics]:
        vae, num_batches = data["vae"], data["valid"].shape[0]
        of_stacks = idle_groups.rows_of(vae.blocks, groups)
        constants = stacks.by_stack(vae.blocks, constants_of(vae))

        def batch_sums(index: Array) -> tuple[list[Any], Sums, Array]:
            i = index % num_batches
            batch_key = rng.at_step(key, index)
            x = prepare(rng.stream(batch_key, "prepare"), data["valid"][i])
            draws = draw(vae, x, rng.stream(batch_key, "draws"))
            mask = data["valid_mask"][i]
            masks = [jnp.broadcast_to(mask, d.positive.shape[:2]) for d in draws]
            found = _over_stacks(
                mesh, sums_of_stack, of_stacks, state.stacks, draws, masks, constants
            )
            of_idle = idle_groups.sums(mask, num_negatives, **weights)
            return found, of_idle, jnp.sum(mask)

        indices = jnp.arange(num_passes * num_batches)
        per_stack, of_idle, counts = jax.lax.map(batch_sums, indices)
        looked_at = [
            (old, {}) if found is None else judged(old, found, counts, True)
            for old, found in zip(state.stacks, per_stack, strict=True)
        ]
        trained, metrics = zip(*looked_at, strict=True)
        state, of_resting = state.replace(stacks=trained), ()
        if isinstance(state, PartState):
            found = [idle_groups.repeated(of_idle, rows) for rows in of_stacks]
            each = [
                judged(old, (one,) * (1 + (old.ema_params is not None)), counts, False)
                for old, one in zip(state.idle, found, strict=True)
            ]
            resting, of_resting = zip(*each, strict=True)
            state = state.replace(idle=resting)
        joined = _per_group(mesh, vae.blocks, metrics, of_resting, of_stacks)
        return state, joined

    return validate


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


def _draws(
    mesh: Mesh, vae: LatentVariableModel, x: Array, key: Array, num_negatives: int
) -> tuple[ContrastiveDraws, ...]:
    """Both classes per stack, the batch (axis 1) split over the devices."""
    x = parallel.split(mesh, x)
    draws = contrastive_draws(vae, x, key, num_negatives=num_negatives)
    return parallel.split(mesh, stacks.by_stack(vae.blocks, draws), axis=1)


def _turns(blocks: tuple[Block, ...], step: Array) -> tuple[Turn, ...]:
    """The numbers of the groups of every stack, and the step."""
    numbers = map(jnp.asarray, stacks.numbers(blocks))
    return tuple(Turn(each, jnp.full_like(each, step)) for each in numbers)


def _over_stacks(
    mesh: Mesh,
    function: Callable[..., Any],
    of_stacks: tuple[Rows, ...],
    groups: tuple[GroupState, ...],
    *per_stack: Any,
) -> list[Any]:
    """Applies a function of one stack's trained rows to every stack; None of no row."""
    return [
        parallel.over_device_groups(
            mesh, function, stack, *(idle_groups.used(tree, rows) for tree in trees)
        )
        if rows.used
        else None
        for rows, stack, *trees in zip(of_stacks, groups, *per_stack, strict=True)
    ]


def _per_group(
    mesh: Mesh,
    blocks: tuple[Block, ...],
    metrics: Sequence[Metrics],
    of_idle: Sequence[Metrics],
    of_stacks: tuple[Rows, ...],
) -> dict[str, Array]:
    """Joins metrics of stacks, [padded n] each, to [K] in the model's order."""
    whole = [
        idle_groups.join(parallel.join(mesh, trained), idle, rows)
        for trained, idle, rows in zip(
            metrics, of_idle or metrics, of_stacks, strict=True
        )
    ]
    return jax.tree.map(
        lambda *parts: jnp.concatenate(parts), *stacks.by_block(blocks, whole)
    )


def _has_stopped(groups: GroupState, patience: int) -> Array:
    if not patience:
        return jnp.zeros_like(groups.evals_since_best)
    return groups.evals_since_best >= patience


def _one_device() -> Mesh:
    return parallel.mesh_of(jax.local_devices()[:1])
