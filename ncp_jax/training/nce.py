"""Noise contrastive estimation of one density ratio: loss, update, best weights.

Groups learn side by side and apart: nothing of one enters another, so each keeps its
own optimiser, its own best weights and its own end.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from ncp_jax.priors.latents import ContrastiveDraws
from ncp_jax.training import loop
from ncp_jax.training.loop import Metrics, PyTree

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


def start(
    optimizer: optax.GradientTransformation, params: PyTree, *, ema_decay: float = 0.0
) -> GroupState:
    """Returns the state of one discriminator before its first step."""
    return GroupState(
        params=params,
        opt_state=optimizer.init(params),
        ema_params=params if ema_decay else None,
        best_params=params,
        best_loss=jnp.asarray(jnp.inf),
        evals_since_best=jnp.zeros((), jnp.int32),
    )


def nce_losses(logit_q: Array, logit_p: Array) -> Array:
    """-log D(z_q) - log(1 - D(z_p)) with D = sigmoid(logit): Eq. (3), [..., B], nats.

    Its mean is 2 log 2 = 1.386 when the classes cannot be told apart, 0 when they do
    not overlap.

    Args:
      logit_q: [..., B] logits of posterior draws (label 1).
      logit_p: [..., B m] logits of prior draws (label 0), m in a row for each of those.
    """
    of_p = jax.nn.softplus(logit_p).reshape(*logit_q.shape, -1)
    return jax.nn.softplus(-logit_q) + jnp.mean(of_p, -1)


def nce_loss(logit_q: Array, logit_p: Array) -> Array:
    """The mean of `nce_losses` over the examples: [...], nats."""
    return jnp.mean(nce_losses(logit_q, logit_p), -1)


def ranking_losses(logit_q: Array, logit_p: Array, *, is_shared: bool) -> Array:
    """-log r(z_q) / (mean of r over z_q and n prior draws): [B], nats.

    Minus its mean is a lower bound on KL(q, p), at most log(1 + n); as n grows it
    becomes minus the gain E_q[log r] - log Z in likelihood.  It is what SNIS (Lawson et
    al., 2019) trains jointly with a VAE, and ranking NCE (Ma and Collins, 2018), and
    the same for r times any constant.

    Args:
      logit_q: [B] logits of posterior draws.
      logit_p: [B m] logits of prior draws, m in a row for each of those.
      is_shared: whether every posterior draw is ranked among all prior draws, which
        the same prior must have made, n = B m; else among its own, n = m.
    """
    against = logit_p if is_shared else logit_p.reshape(*logit_q.shape, -1)  # [.., n]
    excess = logit_q - jax.nn.logsumexp(against, -1)  # [B]
    return jax.nn.softplus(-excess) - jnp.log1p(against.shape[-1])


def losses(
    discriminator: nn.Module,
    params: PyTree,
    draws: ContrastiveDraws,
    ranking_weight: float = 0.0,
) -> tuple[Array, Metrics]:
    """What one discriminator minimises: [B] nats, and `group_metrics`.

    Args:
      discriminator: (z_k, context) -> logit.
      params: its weights.
      draws: both classes of one group.
      ranking_weight: of the ranking losses beside those of NCE, which alone know the
        factor that r is to have.
    """
    logit_q, logit_p = logits(discriminator, params, draws)
    metrics = group_metrics(logit_q, logit_p)
    of_each = nce_losses(logit_q, logit_p)
    if ranking_weight:
        is_shared = draws.context.size == 0  # then there is one prior for all
        ranking = ranking_losses(logit_q, logit_p, is_shared=is_shared)
        of_each += ranking_weight * ranking
        metrics |= {"ranking_loss": jnp.mean(ranking), "loss": jnp.mean(of_each)}
    return of_each, metrics


def logits(
    discriminator: nn.Module, params: PyTree, draws: ContrastiveDraws
) -> tuple[Array, Array]:
    """Logits of posterior [B] and of prior draws [B m] of one group."""
    variables = {"params": params}
    feature = discriminator.apply(variables, draws.context, method="embed")
    log_r = partial(discriminator.apply, variables, method="log_ratio")
    repeats = draws.negative.shape[0] // draws.positive.shape[0]
    features = jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats, 0), feature)
    return log_r(draws.positive, feature), log_r(draws.negative, features)


def group_metrics(logit_q: Array, logit_p: Array) -> Metrics:
    """What the logs say of a group, from logits as of `nce_losses`; values [...]."""
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
    ranking_weight: float = 0.0,
    ema_decay: float = 0.0,
    patience: int = 0,
) -> tuple[GroupState, Metrics]:
    """One update of one discriminator.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      group: its state.
      draws: both classes of its group.
      ranking_weight: of the ranking losses.
      ema_decay: of the running average of the weights; 0 for none.
      patience: validations without a lower loss after which it rests; 0 for no end.
    """

    def loss_fn(params: PyTree) -> tuple[Array, Metrics]:
        _, metrics = losses(discriminator, params, draws, ranking_weight)
        return metrics["loss"], metrics

    def work() -> tuple[GroupState, Metrics]:
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(group.params)
        params, opt_state = loop.descend(
            optimizer, gradients, group.opt_state, group.params
        )
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
