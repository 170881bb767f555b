"""Stage 1: train a VAE by the evidence lower bound (Eqs. 1 and 2).

A module whose `objective` is another one is trained by that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncp_jax import rng
from ncp_jax.models.base import ElboTerms, FrozenVAE, Objective
from ncp_jax.models.nvae import regularizers
from ncp_jax.training import kl_schedule, loop
from ncp_jax.training.loop import Metrics, Prepare, PyTree, TrainState

Array = jax.Array

# Collections that a pass in training changes: running statistics of the data, and what
# a prior that learns with the VAE carries along.
MOVING = ("batch_stats", "prior_state")
POWER_ITERATIONS = 4  # per step; kernels move little from one to the next
FIRST_POWER_ITERATIONS = 40


@dataclasses.dataclass(frozen=True)
class KLWarmup:
    """The weights of the groups' KL terms in the course of training.

    Attributes:
      num_steps: of the whole run.
      warmup_fraction: share of it over which the weight rises to 1; 0 for none.
      constant_fraction: share of it before the rise starts.
      alphas: [K] for balancing while the weight rises; None for equal weights.
    """

    num_steps: int = 1
    warmup_fraction: float = 0.0
    constant_fraction: float = 0.0
    alphas: np.ndarray | None = None

    def coefficient(self, step: Array) -> Array:
        """The common weight, in (0, 1]."""
        return kl_schedule.kl_coefficient(
            step, self.num_steps, self.warmup_fraction, self.constant_fraction
        )

    def weigh(self, step: Array, kl: Array) -> Array:
        """The weighted sum [B] of kl [B, K], nats."""
        coefficient = self.coefficient(step)
        if self.alphas is None or not self.warmup_fraction:
            return coefficient * jnp.sum(kl, axis=1)
        return kl_schedule.balance_kl(kl, coefficient, self.alphas)


@dataclasses.dataclass(frozen=True)
class Penalty:
    """Keeps a convolutional model smooth: spectral and batch-norm regularisers of NVAE.

    Attributes:
      weight: of both; 0 for neither.
      initial_weight: where it starts, falling to `weight` as the KL's weight rises; 0
        for a constant weight.
    """

    weight: float = 0.0
    initial_weight: float = 0.0

    def value(
        self, coefficient: Array, params: PyTree, kernels: PyTree, power: PyTree
    ) -> tuple[Array, PyTree]:
        """The weighted sum of both, and the state of the power iteration."""
        weight = regularizers.annealed_weight(
            coefficient, self.weight, self.initial_weight or None
        )
        spectral, power = regularizers.spectral_penalty(
            kernels, power, POWER_ITERATIONS
        )
        return weight * (spectral + regularizers.batch_norm_penalty(params)), power


def elbo_loss(terms: ElboTerms) -> Array:
    """Negative ELBO: [B], nats."""
    return jnp.sum(terms.kl, axis=1) - terms.log_likelihood


def method_of(module: nn.Module) -> str:
    """The name of what stage 1 asks of a module: `objective`, or else `elbo_terms`."""
    return "objective" if hasattr(module, "objective") else "elbo_terms"


def objective_loss(objective: Objective, mask: Array | None = None) -> Metrics:
    """The sum of the terms of an objective as "loss", and each by its name: [] each.

    Args:
      objective: of one batch.
      mask: [B], False for rows to be left out of the means; None for no such rows.
    """
    of_examples = {
        name: jnp.mean(term, where=mask) for name, term in objective.of_examples.items()
    }
    terms = of_examples | objective.of_batch
    return {"loss": sum(terms.values(), start=jnp.zeros(())), **terms}


def init_state(
    module: nn.Module,
    variables: dict[str, PyTree],
    optimizer: optax.GradientTransformation,
    x: Array,
    key: Array,
    *,
    ema_decay: float = 0.0,
    penalty: Penalty = Penalty(),
) -> TrainState:
    """Returns the state before the first step.

    Args:
      module: has `elbo_terms(x, key)`, or `objective` and no penalty.
      variables: fresh ones.
      optimizer: an optax optimiser.
      x: [B, *data_shape], any example.
      key: PRNG key; consumed here.
      ema_decay: of the running average of the weights; 0 for none.
      penalty: as for `make_update`.
    """
    model_state = {name: v for name, v in variables.items() if name != "params"}
    power = None
    if penalty.weight:
        _, sown = module.apply(
            variables, x, key, method="elbo_terms", mutable=["kernels"]
        )
        power = regularizers.init_power_iteration(
            sown["kernels"], rng.stream(key, "power iteration")
        )
        _, power = regularizers.spectral_penalty(
            sown["kernels"], power, FIRST_POWER_ITERATIONS
        )
    return loop.init_state(
        variables["params"], model_state, optimizer, ema_decay, power
    )


def make_update(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    key: Array,
    *,
    warmup: KLWarmup = KLWarmup(),
    penalty: Penalty = Penalty(),
    ema_decay: float = 0.0,
) -> Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]:
    """Returns one update of stage 1: (state, data, rows) -> (state, metrics).

    Rows are what `loop.take` makes examples of.

    Args:
      module: has `elbo_terms(x, key)`, or `objective(x, key, mask)`; batch norm sees
        that it trains by its collection "batch_stats" being mutable, and a prior by its
        "prior_state".
      optimizer: an optax optimiser.
      prepare: makes x from stored examples, with fresh noise each time.
      key: owner of the stage's random streams.
      warmup: of the KL terms.
      penalty: on the weights.
      ema_decay: of the running average of the weights; 0 for none.
    """
    prepare_key = rng.stream(key, "prepare")
    posterior_key = rng.stream(key, "posterior")
    mutable = [*MOVING, *(["kernels"] if penalty.weight else [])]

    def loss_fn(params: PyTree, state: TrainState, x: Array) -> tuple[Array, Any]:
        terms, changed = module.apply(
            state.variables | {"params": params},
            x,
            rng.at_step(posterior_key, state.step),
            method=method_of(module),
            mutable=mutable,
        )
        if isinstance(terms, Objective):
            metrics = objective_loss(terms)
            return metrics["loss"], (metrics, changed, state.penalty_state)
        weighted = warmup.weigh(state.step, terms.kl)
        loss = jnp.mean(weighted - terms.log_likelihood)
        metrics = {"loss": loss, "kl": jnp.mean(jnp.sum(terms.kl, axis=1))}
        power, kernels = state.penalty_state, changed.pop("kernels", None)
        if penalty.weight:
            coefficient = warmup.coefficient(state.step)
            value, power = penalty.value(coefficient, params, kernels, power)
            metrics |= {"penalty": value, "kl_weight": coefficient}
            loss += value
        if terms.kl.shape[1] > 1:
            metrics["group_kl"] = jnp.mean(terms.kl, axis=0)
        return loss, (metrics, changed, power)

    def update(
        state: TrainState, data: PyTree, rows: Array
    ) -> tuple[TrainState, Metrics]:
        stored = loop.take(data["train"], rows)
        x = prepare(rng.at_step(prepare_key, state.step), stored)
        gradients, (metrics, changed, power) = jax.grad(loss_fn, has_aux=True)(
            state.params, state, x
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        state = loop.apply_gradients(state, gradients, optimizer, ema_decay, changed)
        return state.replace(penalty_state=power), metrics

    return update


def make_validate(
    module: nn.Module, prepare: Prepare, key: Array
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Returns the loss on held-out data, the negative ELBO; its noise fixed by `key`.

    The function is (state, data) -> (state, metrics) with data["valid"] [n, B, ...] and
    data["valid_mask"] [n, B], False for padding.  With averaged weights "newest_loss"
    is that of the weights that are not averaged.  A module with a method `settle(key)`
    first computes what its prior is measured by, such as log Z, and the state keeps it.
    """

    def settled(variables: PyTree) -> PyTree:
        if not hasattr(module, "settle"):
            return {}
        settle_key = rng.stream(key, "settle")
        _, changed = module.apply(
            variables, settle_key, method="settle", mutable=["prior_state"]
        )
        return changed

    def mean_loss(variables: PyTree, data: PyTree) -> Array:
        def batch_loss(batch: tuple[Array, Array, Array]) -> Array:
            index, stored, mask = batch
            batch_key = rng.at_step(key, index)
            x = prepare(rng.stream(batch_key, "prepare"), stored)
            inputs = x, rng.stream(batch_key, "posterior")
            if method_of(module) == "objective":
                out = module.apply(variables, *inputs, mask, method="objective")
                size = jnp.sum(mask).astype(jnp.float32)
                return size * objective_loss(out, mask)["loss"]
            terms = module.apply(variables, *inputs, method="elbo_terms")
            return jnp.sum(elbo_loss(terms), where=mask)

        num_batches = data["valid"].shape[0]
        batches = (jnp.arange(num_batches), data["valid"], data["valid_mask"])
        total = jnp.sum(jax.lax.map(batch_loss, batches))
        return total / jnp.sum(data["valid_mask"]).astype(total.dtype)

    def validate(state: TrainState, data: PyTree) -> tuple[TrainState, Metrics]:
        kept = settled(state.eval_variables)
        metrics = {"loss": mean_loss(state.eval_variables | kept, data)}
        if state.averages is not None:
            newest = state.variables | settled(state.variables)
            metrics["newest_loss"] = mean_loss(newest, data)
        return state.replace(model_state=state.model_state | kept), metrics

    return validate


def freeze(module: nn.Module, state: TrainState) -> FrozenVAE:
    """Returns the trained model, averaged where it was averaged."""
    return FrozenVAE(module, jax.device_put(state.eval_variables))
