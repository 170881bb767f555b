"""How the priors that learn by gradients do: a loss each, and the loop of both stages.

The weights of the lowest held-out score are kept, and a fit that was stopped goes on
from its last checkpoint to the same bits.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ncp_jax import rng
from ncp_jax.priors.ex_post.contract import Encodings, Training
from ncp_jax.training import loop, optimizers
from ncp_jax.training.checkpoint_records import described
from ncp_jax.training.checkpoints import fingerprint, identity_of, opened
from ncp_jax.training.loop import Metrics, PyTree, Task
from ncp_jax.training.run_log import SilentLog

Array = jax.Array
# (params, z [B, D], key) -> [] nats: what updates minimise, or what chooses weights.
# What `minimise` is told of `fixed` and `carry` comes after the key.
Loss = Callable[..., Any]

STEPS_PER_DISPATCH = 100
VALID_BATCH_SIZE = 2_000  # encodings that are scored at a time
NOT_SAID = {"settings": (None,)}  # by some folders of earlier versions


Data = tuple[Array, Array, tuple[PyTree, ...]]  # z of training, held out; `fixed`


class State(struct.PyTreeNode):
    """A prior in training."""

    step: Array  # int32 scalar: updates done
    params: PyTree
    opt_state: optax.OptState
    best_params: PyTree  # of the lowest held-out score so far
    best_score: Array  # [] nats
    carry: PyTree = None  # what the loss hands on to the next update


def minimise(
    name: str,
    loss: Loss,
    params: PyTree,
    encodings: Encodings,
    training: Training,
    key: Array,
    folder: Path | None = None,
    *,
    score: Loss | None = None,
    fixed: tuple[PyTree, ...] = (),
    carry: PyTree = None,
    settings: Any = None,
) -> PyTree:
    """Returns the parameters with the lowest score on held-out encodings.

    Args:
      name: of the prior, for messages.
      loss: (params, z [B, D], key) -> [] nats, minimised over training encodings.
      params: where to start.
      encodings: of training and of validation examples.
      training: how long and how fast.
      key: PRNG key; consumed here.
      folder: of checkpoints; None keeps none.
      score: as `loss`, of all held-out encodings, the same key each time; None for
        `loss` itself.
      fixed: what loss and score get after the key, such as the base prior: passed to
        the compiled update, not compiled into it.
      carry: what the loss gets last, and returns as (value, carry) for the next
        update, such as a running average; None for none.  The score never sees it.
      settings: of the prior, part of what a checkpoint must agree with.

    Raises:
      InputError: a loss is not finite, or `folder` holds another fit.
    """
    schedule = optimizers.schedule("cosine", training.learning_rate, training.num_steps)
    optimizer = optimizers.optimizer("adam", schedule, training.weight_decay)
    params = jax.tree.map(jnp.asarray, params)
    state = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        best_params=jax.tree.map(jnp.copy, params),
        best_score=jnp.asarray(jnp.inf),
        carry=jax.tree.map(jnp.asarray, carry),
    )
    if carry is not None and score is None:
        raise ValueError("a loss with a carry needs a score without")
    losses = loss if carry is not None else _without_carry(loss), score or loss
    task = _task(name, *losses, optimizer, encodings, fixed, training, key)
    metadata = {
        "prior": name,
        "training": dataclasses.asdict(training),
        **provenance(key, encodings),
    }
    if settings is not None:
        metadata["settings"] = described(settings)
    if fixed:
        metadata["fixed"] = identity_of(fixed)
    with opened(folder, metadata, NOT_SAID) as saved:
        restored = saved.restore_latest(state)
        if restored is not None:
            state = restored.state
        if int(state.step) < training.num_steps:
            state = loop.fit(
                task,
                state,
                saved,
                SilentLog(),
                num_steps=training.num_steps,
                steps_per_dispatch=min(STEPS_PER_DISPATCH, training.steps_per_eval),
                steps_per_eval=training.steps_per_eval,
            )
            saved.wait()
    return jax.tree.map(jnp.asarray, state.best_params)


def kept(
    make: Callable[[], PyTree], like: PyTree, metadata: dict, folder: Path | None
) -> PyTree:
    """Returns what `make` returns, from `folder` where it is there already.

    Args:
      make: the fit, which is not done by `minimise`.
      like: a pytree of the shapes and dtypes of its arrays.
      metadata: JSON values that name what is fitted; another fit is refused.
      folder: of one checkpoint; None keeps none.

    Raises:
      InputError: `folder` holds another fit.
    """
    with opened(folder, metadata) as saved:
        restored = saved.restore_latest(like)
        if restored is not None:
            return jax.tree.map(jnp.asarray, restored.state)
        made = make()
        saved.save(0, made, None)
    return made


def of_members(num: int, key: Array, folder: Path | None) -> list[Any]:
    """What each of several fits of one prior has of its own.

    Args:
      num: of them.
      key: PRNG key; consumed here.
      folder: of all checkpoints; None keeps none.

    Returns:
      A key and a folder, or None, for each.
    """
    return [
        (
            rng.at_step(rng.stream(key, "members"), k),
            folder / f"member-{k + 1}" if folder else None,
        )
        for k in range(num)
    ]


def provenance(key: Array, encodings: Encodings) -> dict[str, Any]:
    """What a fit was made from, as JSON values that name it in its checkpoints."""
    return {
        "key": jax.random.key_data(key).tolist(),
        "encodings": fingerprint((encodings.train, encodings.valid)),
    }


def _task(
    name: str,
    loss: Loss,
    score: Loss,
    optimizer: optax.GradientTransformation,
    encodings: Encodings,
    fixed: tuple[PyTree, ...],
    training: Training,
    key: Array,
) -> Task:
    train, valid = (
        jnp.reshape(z, (-1, z.shape[-1])) for z in (encodings.train, encodings.valid)
    )

    def update(state: State, data: Data, step: Array) -> tuple[State, Metrics]:
        of_step = rng.at_step(rng.stream(key, "updates"), step)
        rows = jax.random.randint(
            rng.stream(of_step, "rows"), (training.batch_size,), 0, len(data[0])
        )
        of_loss = rng.stream(of_step, "loss")
        (value, carry), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, data[0][rows], of_loss, *data[2], state.carry
        )
        params, opt_state = loop.descend(
            optimizer, gradients, state.opt_state, state.params
        )
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, carry=carry
        )
        return state, {"loss": value}

    def validate(state: State, data: Data) -> tuple[State, Metrics]:
        size = min(VALID_BATCH_SIZE, len(data[1]))
        blocks, rest = jnp.split(data[1], [len(data[1]) // size * size])
        blocks = blocks.reshape(-1, size, valid.shape[-1])
        keys = jax.vmap(rng.at_step, (None, 0))(
            rng.stream(key, "held out"), jnp.arange(len(blocks) + 1)
        )
        value = jnp.mean(
            jax.lax.map(
                lambda one: score(state.params, *one, *data[2]), (blocks, keys[:-1])
            )
        )
        if len(rest):
            of_rest = score(state.params, rest, keys[-1], *data[2])
            value += (of_rest - value) * (len(rest) / len(data[1]))
        is_best = value < state.best_score
        best = jax.tree.map(
            lambda new, old: jnp.where(is_best, new, old),
            state.params,
            state.best_params,
        )
        state = state.replace(
            best_params=best, best_score=jnp.minimum(value, state.best_score)
        )
        return state, {"loss": value}

    return Task(
        name,
        data=(train, valid, fixed),
        inputs=lambda first, n: first + jnp.arange(n, dtype=jnp.int32),
        update=update,
        validate=validate,
        scores_start=True,
        kind="prior",
        learning_rate="training.learning_rate of its settings",
    )


def _without_carry(loss: Loss) -> Loss:
    """The same with nothing to hand on."""
    return lambda *arguments: (loss(*arguments[:-1]), None)
