"""Stage 1: train a VAE by the evidence lower bound (Eqs. 1 and 2)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ncp_jax import rng, training
from ncp_jax.models.base import ElboTerms
from ncp_jax.training import Metrics, Prepare, PyTree, TrainState

Array = jax.Array


def elbo_loss(terms: ElboTerms, kl_weight: Array | float) -> Array:
    """Negative ELBO with weighted KL: [B], nats."""
    return kl_weight * jnp.sum(terms.kl, axis=1) - terms.log_likelihood


def make_update(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    key: Array,
    *,
    kl_warmup_steps: int = 0,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]:
    """Returns one update of stage 1: (state, data, indices [B]) -> (state, metrics).

    `data` holds the stored examples "train" [N, ...].

    Args:
      module: has `elbo_terms(x, key)`.
      optimizer: an optax optimiser.
      prepare: makes x from stored examples, with fresh noise each time.
      key: owner of the stage's random streams.
      kl_warmup_steps: n; the KL weight of the first updates is 1/n, 2/n, .. 1.
      ema_decay: of the running average of the weights; 0 for none.
    """
    prepare_key = rng.stream(key, "prepare")
    posterior_key = rng.stream(key, "posterior")

    def loss_fn(params: PyTree, state: TrainState, x: Array) -> tuple[Array, Metrics]:
        kl_weight = jnp.minimum(1.0, (state.step + 1) / max(kl_warmup_steps, 1))
        terms = module.apply(
            {"params": params, **state.model_state},
            x,
            rng.at_step(posterior_key, state.step),
            method="elbo_terms",
        )
        loss = jnp.mean(elbo_loss(terms, kl_weight))
        kl = jnp.mean(jnp.sum(terms.kl, axis=1))
        return loss, {"loss": loss, "kl": kl}

    def update(
        state: TrainState, data: PyTree, indices: Array
    ) -> tuple[TrainState, Metrics]:
        x = prepare(rng.at_step(prepare_key, state.step), data["train"][indices])
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, state, x)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return training.apply_gradients(state, gradients, optimizer, ema_decay), metrics

    return update


def make_validate(
    module: nn.Module, prepare: Prepare, key: Array
) -> Callable[[TrainState, PyTree], Metrics]:
    """Returns the negative ELBO on held-out data, its noise fixed by `key`.

    The function is (state, data) -> metrics with data["valid"] [n, B, ...] and
    data["valid_mask"] [n, B], False for padding.
    """

    def validate(state: TrainState, data: PyTree) -> Metrics:
        variables = {"params": state.eval_params, **state.model_state}

        def batch_loss(batch: tuple[Array, Array, Array]) -> Array:
            index, stored, mask = batch
            batch_key = rng.at_step(key, index)
            x = prepare(rng.stream(batch_key, "prepare"), stored)
            terms = module.apply(
                variables, x, rng.stream(batch_key, "posterior"), method="elbo_terms"
            )
            return jnp.sum(elbo_loss(terms, 1.0), where=mask)

        num_batches = data["valid"].shape[0]
        batches = (jnp.arange(num_batches), data["valid"], data["valid_mask"])
        total = jnp.sum(jax.lax.map(batch_loss, batches))
        return {"loss": total / jnp.sum(data["valid_mask"]).astype(total.dtype)}

    return validate
