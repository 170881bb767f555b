"""Stage 2: noise contrastive estimation of all groups at once (Eqs. 3 and 4).

Groups learn side by side and apart: nothing of one enters another, so each keeps its
own optimiser, its own best weights and its own end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ncp_jax import parallel, rng, stacks, training
from ncp_jax.latents import ContrastiveDraws, contrastive_draws
from ncp_jax.models.base import Block, LatentVariableModel
from ncp_jax.training import Metrics, Prepare, PyTree

Array = jax.Array


class GroupState(struct.PyTreeNode):
    """One discriminator in training; in a stack all leaves lead with the groups."""

    params: PyTree
    opt_state: optax.OptState
    ema_params: PyTree  # None without averaging
    best_params: PyTree  # of the lowest held-out loss so far
    best_loss: Array  # [] nats
    evals_since_best: Array  # [] int32

    @property
    def eval_params(self) -> PyTree:
        """The averaged weights where there are any, else the weights."""
        return self.params if self.ema_params is None else self.ema_params


class NCPState(struct.PyTreeNode):
    """Everything that an update of stage 2 changes; a checkpoint holds just this."""

    step: Array  # int32 scalar: updates done
    stacks: tuple[GroupState, ...]  # one per stack of groups of equal shape

    def best_params(self, blocks: tuple[Block, ...]) -> tuple[PyTree, ...]:
        """Each group's weights at its lowest held-out loss, stacked per block."""
        best = [stack.best_params for stack in self.stacks]
        return stacks.by_block(blocks, best)

    def newest_params(self, blocks: tuple[Block, ...]) -> tuple[PyTree, ...]:
        """Each group's weights after the last step, stacked per block."""
        newest = [stack.eval_params for stack in self.stacks]
        return stacks.by_block(blocks, newest)


def nce_loss(logit_q: Array, logit_p: Array) -> Array:
    """-E_q[log D] - E_p[log(1 - D)] with D = sigmoid(logit): Eq. (3), [...], nats.

    2 log 2 = 1.386 when the classes cannot be told apart, 0 when they do not overlap.

    Args:
      logit_q: [..., B] logits of posterior draws (label 1).
      logit_p: [..., B] logits of prior draws (label 0).
    """
    return jnp.mean(jax.nn.softplus(-logit_q), -1) + jnp.mean(
        jax.nn.softplus(logit_p), -1
    )


def init_params(
    discriminator: nn.Module, vae: LatentVariableModel, key: Array
) -> tuple[PyTree, ...]:
    """Returns fresh parameters, per block stacked [num_groups, ...]; r = 1."""

    def init_one(key: Array, latent_shape: Any, context_shape: Any) -> PyTree:
        z, context = jnp.zeros((1, *latent_shape)), jnp.zeros((1, *context_shape))
        return discriminator.init(key, z, context)["params"]

    return tuple(
        jax.vmap(lambda k, block=block: init_one(k, *block[1:]))(
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

    def init_one(params: PyTree) -> GroupState:
        return GroupState(
            params=params,
            opt_state=optimizer.init(params),
            ema_params=params if ema_decay else None,
            best_params=params,
            best_loss=jnp.asarray(jnp.inf),
            evals_since_best=jnp.zeros((), jnp.int32),
        )

    params = init_params(discriminator, vae, key)
    per_stack = map(jax.vmap(init_one), stacks.by_stack(vae.blocks, params))
    return NCPState(jnp.zeros((), jnp.int32), tuple(per_stack))


def logits(
    discriminator: nn.Module, params: PyTree, draws: ContrastiveDraws
) -> tuple[Array, Array]:
    """Logits of posterior and of prior draws of one group: two arrays [B]."""
    variables = {"params": params}
    feature = discriminator.apply(variables, draws.context, method="embed")
    log_r = partial(discriminator.apply, variables, method="log_ratio")
    return log_r(draws.positive, feature), log_r(draws.negative, feature)


def contrast(
    discriminator: nn.Module,
    params: tuple[PyTree, ...],
    draws: tuple[ContrastiveDraws, ...],
) -> tuple[Array, Array]:
    """Logits of posterior and of prior draws of all groups: two arrays [K, B].

    Args:
      discriminator: (z_k, context) -> logit.
      params: stacked, per block.
      draws: per block.
    """
    per_block = [
        stacks.over_groups(partial(logits, discriminator), p, d)
        for p, d in zip(params, draws, strict=True)
    ]
    logit_q, logit_p = (
        jnp.concatenate(parts) for parts in zip(*per_block, strict=True)
    )
    return logit_q, logit_p


def group_metrics(logit_q: Array, logit_p: Array) -> Metrics:
    """What the logs say of a group, from logits [..., B]; every value is [...]."""
    correct = jnp.mean(logit_q > 0, -1) + jnp.mean(logit_p <= 0, -1)
    log_z = jax.nn.logsumexp(logit_p, -1) - jnp.log(logit_p.shape[-1])
    return {
        "loss": nce_loss(logit_q, logit_p),
        "accuracy": 0.5 * correct,
        "log_z": log_z,  # log mean r over prior draws; 0 for the ideal classifier
    }


def learn(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    group: GroupState,
    draws: ContrastiveDraws,
    *,
    ema_decay: float = 0.0,
    patience: int = 0,
) -> tuple[GroupState, Metrics]:
    """One update of one discriminator.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      group: its state.
      draws: both classes: [B, *latent_shape], with contexts [B, *context_shape].
      ema_decay: of the running average of the weights; 0 for none.
      patience: validations without a lower loss after which it rests; 0 for no end.
    """

    def loss_fn(params: PyTree) -> tuple[Array, Metrics]:
        metrics = group_metrics(*logits(discriminator, params, draws))
        return metrics["loss"], metrics

    def work() -> tuple[GroupState, Metrics]:
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(group.params)
        with jax.numpy_dtype_promotion("standard"):  # Adam counts in int32
            updates, opt_state = optimizer.update(
                gradients, group.opt_state, group.params
            )
        params = optax.apply_updates(group.params, updates)
        ema_params = group.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        new = group.replace(params=params, opt_state=opt_state, ema_params=ema_params)
        return new, metrics

    def rest() -> tuple[GroupState, Metrics]:
        _, metrics = loss_fn(group.params)
        return group, metrics | {"gradient_norm": jnp.zeros(())}

    if not patience:
        return work()
    return jax.lax.cond(group.evals_since_best < patience, work, rest)


def judge(group: GroupState, loss: Array) -> GroupState:
    """Keeps the weights if their held-out loss [] is the lowest so far."""
    is_best = loss < group.best_loss
    return group.replace(
        best_params=jax.tree.map(
            lambda new, old: jnp.where(is_best, new, old),
            group.eval_params,
            group.best_params,
        ),
        best_loss=jnp.where(is_best, loss, group.best_loss),
        evals_since_best=jnp.where(is_best, 0, group.evals_since_best + 1),
    )


def make_update(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    key: Array,
    *,
    ema_decay: float = 0.0,
    patience: int = 0,
    mesh: Mesh | None = None,
    formulation: str = "auto",
) -> Callable[[NCPState, PyTree, Array], tuple[NCPState, Metrics]]:
    """Returns one update of all groups: (state, data, rows) -> (state, metrics [K]).

    `data` holds "train", as `training.take` reads it, and the frozen model "vae".  The
    model runs on each device's share of the batch; after one re-layout of its draws
    every device updates its share of the groups and needs no other.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      prepare: makes x from stored examples, with fresh noise each time.
      key: owner of the stage's random streams.
      ema_decay: of the running average of the weights; 0 for none.
      patience: validations without a lower held-out loss after which a group rests; 0
        for no end.
      mesh: the devices, where the state is spread over them by `place`.
      formulation: of `stacks.over_groups`.
    """
    mesh = mesh or _one_device()
    prepare_key, draws_key = rng.stream(key, "prepare"), rng.stream(key, "draws")
    learn_one = partial(
        learn, discriminator, optimizer, ema_decay=ema_decay, patience=patience
    )
    learn_stack = partial(stacks.over_groups, learn_one, formulation=formulation)

    def update(state: NCPState, data: PyTree, rows: Array) -> tuple[NCPState, Metrics]:
        stored = training.take(data["train"], rows)
        x = prepare(rng.at_step(prepare_key, state.step), stored)
        draws = _draws(mesh, data["vae"], x, rng.at_step(draws_key, state.step))
        per_stack = [
            parallel.over_device_groups(mesh, learn_stack, groups, d)
            for groups, d in zip(state.stacks, draws, strict=True)
        ]
        groups, metrics = zip(*per_stack, strict=True)
        joined = _per_group(mesh, data["vae"].blocks, metrics)
        return state.replace(step=state.step + 1, stacks=groups), joined

    return update


def make_validate(
    discriminator: nn.Module,
    prepare: Prepare,
    key: Array,
    *,
    num_passes: int = 1,
    patience: int = 0,
    mesh: Mesh | None = None,
    formulation: str = "auto",
) -> Callable[[NCPState, PyTree], tuple[NCPState, Metrics]]:
    """Returns the NCE loss of each group on held-out encodings, noise fixed by `key`.

    The function is (state, data) -> (state, metrics [K]), with data["valid"]
    [n, B, ...] and data["valid_mask"] [n, B].  The state remembers each group's best
    weights.

    Args:
      discriminator: (z_k, context) -> logit.
      prepare: makes x from stored examples.
      key: owner of the validation's noise.
      num_passes: encodings drawn of every example, so that a small validation set does
        not make the choice of the best step noisy.
      patience: as for `make_update`.
      mesh: as for `make_update`.
      formulation: of `stacks.over_groups`.
    """
    mesh = mesh or _one_device()

    def loss_of(group: GroupState, draws: ContrastiveDraws, mask: Array) -> Array:
        logit_q, logit_p = logits(discriminator, group.eval_params, draws)
        loss = jax.nn.softplus(-logit_q) + jax.nn.softplus(logit_p)  # [B]
        return jnp.sum(loss, where=mask)

    loss_of_stack = partial(stacks.over_groups, loss_of, formulation=formulation)

    def validate(state: NCPState, data: PyTree) -> tuple[NCPState, Metrics]:
        vae, num_batches = data["vae"], data["valid"].shape[0]

        def batch_loss(index: Array) -> tuple[list[Array], Array]:
            i = index % num_batches
            batch_key = rng.at_step(key, index)
            x = prepare(rng.stream(batch_key, "prepare"), data["valid"][i])
            draws = _draws(mesh, vae, x, rng.stream(batch_key, "draws"))
            mask = data["valid_mask"][i]
            totals = [
                parallel.over_device_groups(
                    mesh,
                    loss_of_stack,
                    groups,
                    d,
                    jnp.broadcast_to(mask, (d.positive.shape[0], *mask.shape)),
                )
                for groups, d in zip(state.stacks, draws, strict=True)
            ]
            return totals, jnp.sum(mask)

        totals, counts = jax.lax.map(batch_loss, jnp.arange(num_passes * num_batches))
        count = jnp.sum(counts).astype(jnp.float32)
        losses = [jnp.sum(total, 0) / count for total in totals]
        judged = tuple(
            parallel.over_device_groups(mesh, jax.vmap(judge), groups, loss)
            for groups, loss in zip(state.stacks, losses, strict=True)
        )
        metrics = [
            {
                "loss": loss,
                "best_loss": groups.best_loss,
                "stopped": _has_stopped(groups, patience).astype(jnp.float32),
            }
            for groups, loss in zip(judged, losses, strict=True)
        ]
        return state.replace(stacks=judged), _per_group(mesh, vae.blocks, metrics)

    return validate


def place(mesh: Mesh, state: NCPState) -> NCPState:
    """Spreads the groups of a state over the devices; uneven stacks are padded."""
    return NCPState(
        parallel.replicate(mesh, state.step), parallel.split_groups(mesh, state.stacks)
    )


def collect(blocks: tuple[Block, ...], state: NCPState) -> NCPState:
    """Undoes `place`: the state as NumPy arrays, the padding gone."""
    whole = [
        jax.tree.map(lambda leaf, n=stack.num_groups: leaf[:n], parallel.gather(groups))
        for stack, groups in zip(stacks.stack_blocks(blocks), state.stacks, strict=True)
    ]
    return NCPState(parallel.gather(state.step), tuple(whole))


def _draws(
    mesh: Mesh, vae: LatentVariableModel, x: Array, key: Array
) -> tuple[ContrastiveDraws, ...]:
    """Both classes per stack, the batch (axis 1) split over the devices."""
    draws = contrastive_draws(vae, parallel.split(mesh, x), key)
    return parallel.split(mesh, stacks.by_stack(vae.blocks, draws), axis=1)


def _per_group(
    mesh: Mesh, blocks: tuple[Block, ...], per_stack: Any
) -> dict[str, Array]:
    """Joins metrics of stacks, [padded n] each, to [K] in the model's order."""
    sizes = [stack.num_groups for stack in stacks.stack_blocks(blocks)]
    whole = [
        jax.tree.map(lambda leaf, n=n: leaf[:n], parallel.join(mesh, metrics))
        for n, metrics in zip(sizes, per_stack, strict=True)
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
