"""Noise contrastive estimation of one density ratio: loss, update, best weights.

Groups learn side by side and apart: nothing of one enters another, so each keeps its
own optimiser, its own best weights and its own end.
"""

import math
from functools import partial
from typing import NamedTuple

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
    best_params: PyTree  # of the lowest held-out score so far
    best_loss: Array  # [] nats: that score, the loss or minus the gain
    evals_since_best: Array  # [] int32

    @property
    def eval_params(self) -> PyTree:
        """The averaged weights where there are any, else the weights."""
        return self.params if self.ema_params is None else self.ema_params


class Turn(NamedTuple):
    """Which update of which group: scalars, or [n] each in a stack."""

    number: Array  # int32: of the group in the model, from 0 on
    step: Array  # int32: updates done before this one


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


def nce_losses(logit_q: Array, logit_p: Array, negative_weight: float = 1.0) -> Array:
    """-log D(z_q) - log(1 - D(z_p)) with D = sigmoid(logit): Eq. (3), [..., B], nats.

    Its mean is 2 log 2 = 1.386 when the classes cannot be told apart, 0 when they do
    not overlap.  With M prior draws counted for each posterior draw, it is
    softplus(log M - f(z_q)) + M softplus(f(z_p) - log M) of the logit f (Noisier NCE,
    ICLR 2026).  Every M has its optimum at f = log q - log p.  A prior draw pulls with
    r M / (r + M), so that at M = 1 nothing is learned where r is large; as M grows the
    loss, less log M, becomes e^f(z_p) - f(z_q), whose gradient is that of maximum
    likelihood.  Then rare draws of large r make it noisy.

    Args:
      logit_q: [..., B] logits of posterior draws (label 1).
      logit_p: [..., B m] logits of prior draws (label 0), m in a row for each of those.
      negative_weight: M, 1 or more; 1 is the paper's.
    """
    shape = (*logit_q.shape, -1)
    if negative_weight == 1.0:
        of_p = jax.nn.softplus(logit_p).reshape(shape)
        return jax.nn.softplus(-logit_q) + jnp.mean(of_p, -1)
    log_m = math.log(negative_weight)
    of_p = jax.nn.softplus(logit_p - log_m).reshape(shape)
    return jax.nn.softplus(log_m - logit_q) + negative_weight * jnp.mean(of_p, -1)


def nce_loss(logit_q: Array, logit_p: Array, negative_weight: float = 1.0) -> Array:
    """The mean of `nce_losses` over the examples: [...], nats."""
    return jnp.mean(nce_losses(logit_q, logit_p, negative_weight), -1)


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
    negative_weight: float = 1.0,
) -> tuple[Array, Metrics]:
    """What one discriminator minimises: [B] nats, and `group_metrics`.

    Args:
      discriminator: (z_k, context) -> logit.
      params: its weights.
      draws: both classes of one group.
      ranking_weight: of the ranking losses beside those of NCE, which alone know the
        factor that r is to have.
      negative_weight: M of `nce_losses`.
    """
    both = logits(discriminator, params, draws)
    is_shared = draws.context.size == 0  # then there is one prior for all
    return losses_of(
        *both,
        is_shared=is_shared,
        ranking_weight=ranking_weight,
        negative_weight=negative_weight,
    )


def losses_of(
    logit_q: Array,
    logit_p: Array,
    *,
    is_shared: bool,
    ranking_weight: float = 0.0,
    negative_weight: float = 1.0,
) -> tuple[Array, Metrics]:
    """The same from logits [B] of posterior and [B m] of prior draws.

    Args:
      logit_q: of posterior draws.
      logit_p: of prior draws, m in a row for each of those.
      is_shared: whether one prior made all prior draws.
      ranking_weight: as for `losses`.
      negative_weight: as for `losses`.
    """
    metrics = group_metrics(logit_q, logit_p)
    of_each = nce_losses(logit_q, logit_p, negative_weight)
    if ranking_weight:
        ranking = ranking_losses(logit_q, logit_p, is_shared=is_shared)
        of_each += ranking_weight * ranking
        metrics["ranking_loss"] = jnp.mean(ranking)
    if ranking_weight or negative_weight != 1.0:
        metrics["loss"] = jnp.mean(of_each)
    return of_each, metrics


def with_constants(params: PyTree, constants: PyTree | None) -> PyTree:
    """Returns a discriminator's parameters with those that it is given, not taught."""
    return {**params, **constants} if constants else params


def logits(
    discriminator: nn.Module, params: PyTree, draws: ContrastiveDraws
) -> tuple[Array, Array]:
    """Logits of posterior [B] and of prior draws [B m] of one group.

    Contexts are embedded once per example; only the features are repeated.
    """
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
    log_r_q = jnp.mean(logit_q, -1)
    return {
        "loss": nce_loss(logit_q, logit_p),
        "accuracy": 0.5 * correct,
        "log_z": log_z,  # log mean r over prior draws; 0 for the ideal classifier
        "log_r_q": log_r_q,  # mean log r over posterior draws
        "gain": log_r_q - log_z,  # in likelihood; the same for r times any constant
    }


def learn(
    discriminator: nn.Module,
    optimizer: optax.GradientTransformation,
    group: GroupState,
    draws: ContrastiveDraws,
    turn: Turn | None = None,
    constants: PyTree | None = None,
    *,
    ranking_weight: float = 0.0,
    negative_weight: float = 1.0,
    ema_decay: float = 0.0,
    patience: int = 0,
) -> tuple[GroupState, Metrics]:
    """One update of one discriminator.

    Args:
      discriminator: (z_k, context) -> logit.
      optimizer: an optax optimiser.
      group: its state.
      draws: both classes of its group.
      turn: which group and step this is; needed for averaging, which begins fast, and
        by an optimiser that treats groups differently.
      constants: parameters of the network that no update changes
        (`directed.constants_of`); None for none.
      ranking_weight: of the ranking losses.
      negative_weight: M of `nce_losses`.
      ema_decay: of the running average of the weights, once its start is forgotten
        (`loop.decay_at`); 0 for none.
      patience: validations without a lower score after which it rests; 0 for no end.

    Raises:
      ValueError: for averaged weights without a turn.
    """
    if group.ema_params is not None and turn is None:
        raise ValueError("averaging begins fast, so it needs `turn`, with the step")
    of_group = {} if turn is None else {"group": turn.number}

    def loss_fn(params: PyTree) -> tuple[Array, Metrics]:
        whole = with_constants(params, constants)
        _, metrics = losses(
            discriminator, whole, draws, ranking_weight, negative_weight
        )
        return metrics["loss"], metrics

    def work() -> tuple[GroupState, Metrics]:
        gradients, metrics = jax.grad(loss_fn, has_aux=True)(group.params)
        params, opt_state = loop.descend(
            optimizer, gradients, group.opt_state, group.params, **of_group
        )
        ema_params = group.ema_params
        if ema_params is not None and turn is not None:
            ema_params = loop.averaged(params, ema_params, ema_decay, turn.step)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        new = group.replace(params=params, opt_state=opt_state, ema_params=ema_params)
        return new, metrics

    def rest() -> tuple[GroupState, Metrics]:
        _, metrics = loss_fn(group.params)
        return group, metrics | {"gradient_norm": jnp.zeros_like(metrics["loss"])}

    if not patience:
        return work()
    return jax.lax.cond(group.evals_since_best < patience, work, rest)


def judge(group: GroupState, score: Array) -> GroupState:
    """Keeps the weights if their held-out score [] is the lowest so far.

    Args:
      group: its state.
      score: the loss, or minus the gain; nats.
    """
    is_best = score < group.best_loss
    return group.replace(
        best_params=jax.tree.map(
            lambda new, old: jnp.where(is_best, new, old),
            group.eval_params,
            group.best_params,
        ),
        best_loss=jnp.where(is_best, score, group.best_loss),
        evals_since_best=jnp.where(is_best, 0, group.evals_since_best + 1),
    )
