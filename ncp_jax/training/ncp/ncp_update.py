"""Stage 2: noise contrastive estimation of all groups at once (Eqs. 3 and 4)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models import stacks
from ncp_jax.models.base import Block, LatentVariableModel
from ncp_jax.priors.directed import constants_of
from ncp_jax.priors.latents import ContrastiveDraws, contrastive_draws
from ncp_jax.training import loop
from ncp_jax.training.loop import Metrics, Prepare, PyTree
from ncp_jax.training.ncp import idle_groups, nce
from ncp_jax.training.ncp.nce import Turn
from ncp_jax.training.ncp.ncp_state import NCPState

Array = jax.Array


def contrast(
    discriminator: nn.Module,
    params: tuple[PyTree, ...],
    draws: tuple[ContrastiveDraws, ...],
) -> tuple[Array, Array]:
    """Logits of posterior and of prior draws of all reweighted groups: [K, B] each.

    K is 0 where no group is reweighted.

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
    none = tuple(jnp.zeros((0, each.shape[1])) for each in draws[0][:2])
    logit_q, logit_p = (
        jnp.concatenate(parts) for parts in zip(none, *per_block, strict=True)
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
    mesh = mesh or parallel.one_device()
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
    draw = partial(draws_of, mesh, num_negatives=num_negatives)
    learn_stack = partial(stacks.over_groups, learn_one, formulation=formulation)

    def update(state: NCPState, data: PyTree, rows: Array) -> tuple[NCPState, Metrics]:
        blocks = data["vae"].blocks
        of_stacks = idle_groups.rows_of(blocks, groups)
        stored = loop.take(data["train"], rows)
        x = prepare(rng.at_step(prepare_key, state.step), stored)
        draws = draw(data["vae"], x, rng.at_step(draws_key, state.step))
        turns = _turns(blocks, state.step)
        constants = stacks.by_stack(blocks, constants_of(data["vae"]))
        per_stack = idle_groups.over_stacks(
            mesh, learn_stack, of_stacks, state.stacks, draws, turns, constants
        )
        learned = [
            (old, {}) if new is None else new
            for old, new in zip(state.stacks, per_stack, strict=True)
        ]
        trained, metrics = zip(*learned, strict=True)
        idle = [idle_groups.learned(r, num_negatives, **weights) for r in of_stacks]
        joined = idle_groups.per_group(mesh, blocks, metrics, idle, of_stacks)
        return state.replace(step=state.step + 1, stacks=trained), joined

    return update


def draws_of(
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
