"""Stage 2's validation: each group on held-out encodings, and its best weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.models import stacks
from ncp_jax.priors.directed import constants_of
from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training.loop import Metrics, Prepare, PyTree
from ncp_jax.training.ncp import held_out, idle_groups, nce
from ncp_jax.training.ncp.held_out import Sums
from ncp_jax.training.ncp.nce import GroupState
from ncp_jax.training.ncp.ncp_state import NCPState, PartState
from ncp_jax.training.ncp.ncp_update import draws_of

Array = jax.Array


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
      num_negatives: as for `ncp_update.make_update`.
      ranking_weight: as for `ncp_update.make_update`.
      negative_weight: as for `ncp_update.make_update`.
      select_by: "loss", or "gain": E_q[log r] - log E_p[r], what the weights are worth
        in likelihood.  It is noisy where few draws carry E_p[r]; then more of them help
        (`num_passes`, `num_negatives`).
      patience: as for `ncp_update.make_update`.
      mesh: as for `ncp_update.make_update`.
      formulation: of `stacks.over_groups`.
      groups: as for `ncp_update.make_update`.
    """
    mesh = mesh or parallel.one_device()
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

    draw = partial(draws_of, mesh, num_negatives=num_negatives)
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
            found = idle_groups.over_stacks(
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
        joined = idle_groups.per_group(mesh, vae.blocks, metrics, of_resting, of_stacks)
        return state, joined

    return validate


def _has_stopped(groups: GroupState, patience: int) -> Array:
    if not patience:
        return jnp.zeros_like(groups.evals_since_best)
    return groups.evals_since_best >= patience
