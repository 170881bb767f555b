"""Optimisers and learning-rate schedules by name, all from optax."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

OPTIMIZERS = ("adam", "adamax")
SCHEDULES = ("constant", "cosine", "step")


def schedule(
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    final_learning_rate: float = 0.0,
    drop_step: int = 1_000_000,
    drop_factor: float = 1 / 3,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      name: "constant"; "cosine" (to the final one at `num_steps`); or "step" (times
        `drop_factor` from `drop_step` on, as LARS and SNIS train).
      learning_rate: its peak.
      num_steps: length of the run.
      warmup_steps: steps of linear rise from zero, before the schedule proper.
      final_learning_rate: where "cosine" ends.
      drop_step: where "step" drops.
      drop_factor: by how much "step" drops.

    Raises:
      ValueError: for an unknown name.
    """
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(
            learning_rate,
            max(num_steps - warmup_steps, 1),
            alpha=final_learning_rate / learning_rate,
        )
    elif name == "step":
        main = optax.piecewise_constant_schedule(
            learning_rate, {drop_step - warmup_steps: drop_factor}
        )
    else:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {name!r}")
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def optimizer(
    name: str,
    learning_rate: optax.Schedule,
    weight_decay: float | Sequence[float] = 0.0,
) -> optax.GradientTransformation:
    """Returns an optimiser by name.

    Args:
      name: "adam", with decoupled weight decay (AdamW) where that is positive; or
        "adamax" as NVAE is trained, with eps 1e-3 and the decay in the gradient.
      learning_rate: as a function of the step.
      weight_decay: 0 for none; or one for each latent group, which the optimiser then
        chooses by the extra argument `group` of its `update`, the group's number.

    Raises:
      ValueError: for an unknown name.
    """
    if not isinstance(weight_decay, int | float):
        return _with_decays(name, learning_rate, weight_decay)
    if name == "adam" and weight_decay:
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if name == "adam":
        return optax.adam(learning_rate)
    if name == "adamax":
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.adamax(learning_rate, eps=1e-3),
        )
    raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {name!r}")


def _with_decays(
    name: str, learning_rate: optax.Schedule, weight_decays: Sequence[float]
) -> optax.GradientTransformation:
    """The same optimisers with a decay for each latent group."""
    if name == "adam":
        return optax.chain(
            optax.scale_by_adam(),
            _add_decayed_weights(weight_decays),
            optax.scale_by_learning_rate(learning_rate),
        )
    without = optimizer(name, learning_rate)
    return optax.chain(_add_decayed_weights(weight_decays), without)


def _add_decayed_weights(
    weight_decays: Sequence[float],
) -> optax.GradientTransformationExtraArgs:
    """As optax's own, with the rate of the group that is updated."""
    rates = tuple(map(float, weight_decays))

    def update(
        updates: Any, state: Any, params: Any = None, *, group: Array, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        rate = jnp.asarray(rates)[group]
        return jax.tree.map(lambda u, p: u + rate * p, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
