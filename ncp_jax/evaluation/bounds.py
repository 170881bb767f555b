"""Lower bounds on log p(x) under the base prior, the NCP, and what its SIR draws."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.evaluation import importance
from ncp_jax.models.base import GroupPrior, Latents
from ncp_jax.models.distributions import Distribution
from ncp_jax.priors.latents import prior_of, walk
from ncp_jax.priors.ncp_prior import LogRatio, NCPPrior

Array = jax.Array
LogN = Callable[[Array], Array]  # log r_k of an own draw [B] -> log N_k [B], nats


class Bounds(NamedTuple):
    """Lower bounds on log p(x) of each example, in nats: [B]."""

    elbo: Array  # under the base prior, the mean over samples
    base: Array  # importance-weighted, under the base prior
    ncp: Array  # importance-weighted, under r p: still to be reduced by log Z
    snis: Array  # importance-weighted, for what ancestral SIR with M proposals draws


class _Draws(NamedTuple):
    """Posterior draws and their log-weights, in nats."""

    log_w: Array  # [S, B] log p(x, z) - log q(z | x) under the base prior
    log_r: Array  # [S, B] the sum over groups
    log_n_0: Array  # [S, B] log N_0, of group 0
    kept: Latents  # per block [S', num_groups, B, *latent_shape]


def example_bounds(
    ncp: NCPPrior,
    x: Array,
    key: Array,
    *,
    num_importance_samples: int,
    num_snis_samples: int,
    num_snis_proposals: int,
    chunk_size: int,
) -> Bounds:
    """Bounds log p(x) under the base prior, the NCP and its SIR sampler: [B] each.

    The last is Lawson et al., "Energy-Inspired Models", Eq. (5), group by group.
    Ancestral SIR draws z_k, given the z_<k it has drawn, with the density

      s_k(z_k | z_<k) = E[p_k(z_k) r_k(z_k) / N_k],
      N_k = (r_k(z_k) + sum_{j<M} r_k(z_k^j)) / M,  z_k^j ~ p(z_k | z_<k),

    the own draw being one of the M.  For z ~ q(z | x) and fresh z_k^j given its z_<k,
    the N_k are independent given z, so

      w = p(x | z) / q(z | x) prod_k p_k(z_k) r_k(z_k) / N_k

    has the mean  integral p(x | z) prod_k s_k(z_k | z_<k) dz,  the p(x) of the sampler;
    so has an average of several w, and by Jensen's inequality the log of that average
    is a lower bound in expectation.

    N_k for every k of all S draws would cost S K M ratios.  p(z_0) is the same for all:
    its proposals are drawn once per example.  For the other groups S' of the S draws
    are drawn again, with probabilities proportional to v = w prod_{k>0} N_k, and
    mean_S(v) mean_S'(prod_{k>0} 1 / N_k) is, given the S, unbiased for mean_S(w).

    Cost per example: S encodings, decodings and ratios of every group, M - 1 ratios of
    group 0, S' (M - 1) of every other group that is reweighted.  What `encode` makes of
    x alone is computed once per chunk: the chunk is a `vmap` over keys.

    Args:
      ncp: the prior and its frozen VAE.
      x: [B, *data_shape].
      key: PRNG key; consumed here.
      num_importance_samples: S draws of q(z | x) per example.
      num_snis_samples: S'; of no effect where there is one group.
      num_snis_proposals: M, the posterior's own draw included.
      chunk_size: posterior draws, or proposals, per example at a time; bounds the
        memory (with the S' draws that are kept), not the result.
    """
    snis = partial(
        _log_normaliser, num_proposals=num_snis_proposals, chunk_size=chunk_size
    )
    snis_key, later_key = rng.stream(key, "snis"), rng.stream(key, "later groups")
    base, context = prior_of(ncp.vae, 0, 0, ncp.vae.root(len(x)), len(x))
    num_groups = sum(block.num_groups for block in ncp.vae.blocks)
    draws = _posterior_draws(
        ncp,
        x,
        key,
        snis(base, ncp.log_ratio(0, 0, context), snis_key),
        num_samples=num_importance_samples,
        num_kept=num_snis_samples if num_groups > 1 else 0,
        chunk_size=chunk_size,
    )
    bound = importance.importance_weighted_bound
    snis_bound = bound(draws.log_w + draws.log_r - draws.log_n_0)
    if num_groups > 1:

        def log_n(s: Array) -> Array:
            latents = jax.tree.map(lambda kept: kept[s], draws.kept)
            return _log_n_of_later(ncp, latents, rng.at_step(later_key, s), snis)

        snis_bound += bound(-jax.lax.map(log_n, jnp.arange(num_snis_samples)))
    return Bounds(
        elbo=jnp.mean(draws.log_w, 0),
        base=bound(draws.log_w),
        ncp=bound(draws.log_w + draws.log_r),
        snis=snis_bound,
    )


def _posterior_draws(
    ncp: NCPPrior,
    x: Array,
    key: Array,
    log_n_0: LogN,
    *,
    num_samples: int,
    num_kept: int,
    chunk_size: int,
) -> _Draws:
    """Weighs z ~ q(z | x) in chunks and keeps some, drawn in proportion to v.

    Each kept draw is the one with the largest log v + Gumbel noise, so that neither the
    weights nor the latents of all draws need be there at once.
    """
    draw_key, choice_key = rng.stream(key, "posterior"), rng.stream(key, "keep")
    chunk_size = min(chunk_size, num_samples)

    def weigh(s: Array) -> tuple[tuple[Array, Array, Array], Array, Latents]:
        latents, log_q = ncp.vae.encode(x, rng.at_step(draw_key, s))
        log_p, log_r, carry = ncp.terms(latents)  # [B, K]
        log_w = ncp.vae.decode(carry).log_prob(x) + jnp.sum(log_p - log_q, 1)
        terms = log_w, jnp.sum(log_r, 1), log_n_0(log_r[:, 0])
        noise_key = rng.at_step(choice_key, s)
        score = terms[0] + terms[1] - terms[2]
        score = score[None] + jax.random.gumbel(noise_key, (num_kept, len(x)))
        return terms, jnp.where(s < num_samples, score, -jnp.inf), latents

    def step(carry: tuple[Array, Latents], i: Array) -> tuple[tuple, tuple]:
        best, kept = carry
        terms, score, latents = jax.vmap(weigh)(i * chunk_size + jnp.arange(chunk_size))
        winner = jnp.argmax(score, 0)  # [S', B] of the chunk
        is_better = jnp.max(score, 0) > best
        kept = jax.tree.map(partial(_replace, winner, is_better), latents, kept)
        return (jnp.maximum(best, jnp.max(score, 0)), kept), terms

    _, _, like = jax.eval_shape(weigh, jax.ShapeDtypeStruct((), jnp.int32))
    start = (
        jnp.full((num_kept, len(x)), -jnp.inf),
        jax.tree.map(lambda z: jnp.zeros((num_kept, *z.shape), z.dtype), like),
    )
    num_chunks = -(-num_samples // chunk_size)
    (_, kept), terms = jax.lax.scan(step, start, jnp.arange(num_chunks))
    log_w, log_r, at_0 = (t.reshape(-1, len(x))[:num_samples] for t in terms)
    return _Draws(log_w, log_r, at_0, kept)


def _replace(winner: Array, is_better: Array, new: Array, old: Array) -> Array:
    """Takes new[winner] where it is better.

    Args:
      winner: [S', B] numbers in the chunk.
      is_better: [S', B].
      new: [chunk, num_groups, B, *latent_shape].
      old: [S', num_groups, B, *latent_shape].
    """
    num_kept, batch_size = winner.shape
    shape = (num_kept, 1, batch_size, *[1] * (new.ndim - 3))
    taken = jnp.take_along_axis(new, winner.reshape(shape), axis=0)
    return jnp.where(is_better.reshape(shape), taken, old)


def _log_n_of_later(
    ncp: NCPPrior, latents: Latents, key: Array, normaliser: Callable[..., LogN]
) -> Array:
    """The sum over groups k > 0 of log N_k at given z, from fresh proposals: [B]."""

    def visit(b: int, k: Array, prior: GroupPrior, z_k: Array) -> Array:
        if ncp.params[b] is None:  # N_k = 1
            return jnp.zeros(z_k.shape[0])
        log_r = ncp.log_ratio(b, k, prior.context)
        group_key = rng.at_step(rng.at_step(key, b), k)

        def log_n() -> Array:
            return normaliser(prior.base, log_r, group_key)(log_r(z_k))

        is_needed = ncp.is_reweighted(b, k) & (ncp.number(b, k) > 0)
        return jax.lax.cond(is_needed, log_n, lambda: jnp.zeros(z_k.shape[0]))

    per_block, _ = walk(ncp.vae, latents, visit)
    return jnp.sum(jnp.concatenate(per_block), 0)


def _log_normaliser(
    base: Distribution,
    log_r: LogRatio,
    key: Array,
    *,
    num_proposals: int,
    chunk_size: int,
) -> LogN:
    """Draws M - 1 proposals from p(z_k | z_<k); returns log r of an own draw -> log N.

    Both are [B], in nats.
    """

    def ratio(j: Array) -> Array:
        return log_r(base.sample(rng.at_step(key, j)))

    indices = jnp.arange(num_proposals - 1)
    others = jax.nn.logsumexp(jax.lax.map(ratio, indices, batch_size=chunk_size), 0)
    return lambda own: jnp.logaddexp(own, others) - jnp.log(num_proposals)
