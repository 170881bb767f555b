"""Stage 2: noise contrastive estimation of all groups at once (Eqs. 3 and 4)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ncp_jax import rng, training
from ncp_jax.latents import ContrastiveDraws, contrastive_draws
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.training import Metrics, Prepare, PyTree, TrainState

Array = jax.Array


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


def group_logits(
    discriminator: nn.Module, params: PyTree, z: Array, context: Array
) -> Array:
    """Logits of the n discriminators of a block, z [n, B, ...] -> [n, B]."""
    return jax.vmap(lambda p, z, c: discriminator.apply({"params": p}, z, c))(
        params, z, context
    )


def contrast(
    discriminator: nn.Module,
    params: tuple[PyTree, ...],
    draws: tuple[ContrastiveDraws, ...],
) -> tuple[Array, Array]:
    """Logits of posterior and of prior draws of all groups: two arrays [K, B]."""
    logits = [
        (
            group_logits(discriminator, p, d.positive, d.context),
            group_logits(discriminator, p, d.negative, d.context),
        )
        for p, d in zip(params, draws, strict=True)
    ]
    logit_q, logit_p = (jnp.concatenate(parts) for parts in zip(*logits, strict=True))
    return logit_q, logit_p


def group_metrics(logit_q: Array, logit_p: Array) -> Metrics:
    """What the logs say of each group, from logits [K, B]; every value is [K]."""
    correct = jnp.mean(logit_q > 0, -1) + jnp.mean(logit_p <= 0, -1)
    log_z = jax.nn.logsumexp(logit_p, -1) - jnp.log(logit_p.shape[-1])
    return {
        "loss": nce_loss(logit_q, logit_p),
        "accuracy": 0.5 * correct,
        "log_z": log_z,  # log mean r over prior draws; 0 for the ideal classifier
    }


def make_update(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    key: Array,
    *,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, PyTree, Array], tuple[TrainState, Metrics]]:
    """Returns one update of stage 2: (state, data, indices [B]) -> (state, metrics).

    `data` holds the stored examples "train" [N, ...] and the frozen model "vae".

    The groups' losses are summed: no parameter is shared, so each discriminator gets
    just its own gradient.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser that treats every parameter by itself.
      prepare: makes x from stored examples, with fresh noise each time.
      key: owner of the stage's random streams.
      ema_decay: of the running average of the weights; 0 for none.
    """
    prepare_key, draws_key = rng.stream(key, "prepare"), rng.stream(key, "draws")

    def loss_fn(
        params: tuple[PyTree, ...], draws: tuple[ContrastiveDraws, ...]
    ) -> tuple[Array, Metrics]:
        metrics = group_metrics(*contrast(discriminator, params, draws))
        return jnp.sum(metrics["loss"]), metrics

    def update(
        state: TrainState, data: PyTree, indices: Array
    ) -> tuple[TrainState, Metrics]:
        x = prepare(rng.at_step(prepare_key, state.step), data["train"][indices])
        draws = contrastive_draws(data["vae"], x, rng.at_step(draws_key, state.step))
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params, draws)
        per_block = [jax.vmap(optax.tree.norm)(block) for block in gradients]
        metrics["gradient_norm"] = jnp.concatenate(per_block)  # [K]
        return training.apply_gradients(state, gradients, optimizer, ema_decay), metrics

    return update


def make_validate(
    discriminator: nn.Module, prepare: Prepare, key: Array, num_passes: int = 1
) -> Callable[[TrainState, PyTree], Metrics]:
    """Returns the NCE loss of each group on held-out encodings, noise fixed by `key`.

    The function is (state, data) -> metrics [K], with data["valid"] [n, B, ...] and
    data["valid_mask"] [n, B].  `num_passes` encodings are drawn of every example, so
    that a small validation set does not make the choice of the best step noisy.
    """

    def validate(state: TrainState, data: PyTree) -> Metrics:
        num_batches = data["valid"].shape[0]

        def batch_loss(index: Array) -> tuple[Array, Array]:
            i = index % num_batches
            batch_key = rng.at_step(key, index)
            x = prepare(rng.stream(batch_key, "prepare"), data["valid"][i])
            draws = contrastive_draws(data["vae"], x, rng.stream(batch_key, "draws"))
            logit_q, logit_p = contrast(discriminator, state.eval_params, draws)
            loss = jax.nn.softplus(-logit_q) + jax.nn.softplus(logit_p)  # [K, B]
            mask = data["valid_mask"][i]
            return jnp.sum(loss, -1, where=mask[None]), jnp.sum(mask)

        totals, counts = jax.lax.map(batch_loss, jnp.arange(num_passes * num_batches))
        return {"loss": jnp.sum(totals, 0) / jnp.sum(counts).astype(totals.dtype)}

    return validate
