"""A ratio for each group, given the groups before: NCP, SNIS and energy-based priors.

All are what ancestral SIR draws: of M proposals u_k ~ N(0, I) one is kept, with
probability proportional to r_k(u_k, u_<k), then comes the next group.  Its density

  prod_k E[p(u_k) r_k(u_k) / N_k],  N_k = (r_k(u_k) + sum_(j<M) r_k(u_k^j)) / M,

normalises every group by itself, so a ratio may be off by any factor of the context.
They differ in how r_k is learned: `ncp` by the paper's Eq. (4), `snis` by ranking each
encoding among proposals of its context (Lawson et al., 2019), `ebm` by maximum
likelihood with short Langevin chains of its context (Pang et al., 2020).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.conditional.groups import Groups, log_normal
from ncp_jax.priors.ex_post import fitting
from ncp_jax.priors.ex_post.contract import Density, Encodings, Training
from ncp_jax.training.ncp import nce

Array = jax.Array
PyTree = Any
LogRatio = Callable[[Array], Array]  # u_k [B, m] -> log r_k [B], nats

ROWS_AT_A_TIME = 20_000  # of all contexts together: what caches hold


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConditionalRatios:
    """What ancestral SIR with these ratios draws.

    Attributes:
      params: of `network`, stacked over the groups.
      network: of log r_k.
      groups: of u.
      num_proposals: M, 2 or more.
    """

    density: ClassVar[Density] = "lower bound"

    params: PyTree
    network: MLPDiscriminator = dataclasses.field(metadata={"static": True})
    groups: Groups = dataclasses.field(metadata={"static": True})
    num_proposals: int = dataclasses.field(default=256, metadata={"static": True})

    def log_ratio(self, params: PyTree, k: Array | int, stacked: Array) -> LogRatio:
        """log r_k(u_k, u_<k) as a function of u_k [B, m], its context read once.

        Args:
          params: of group k.
          k: its number; may be traced.
          stacked: [B, K, m], of which the groups before k are read.
        """
        variables = {"params": params}
        context = self.groups.context(stacked, k)
        feature = self.network.apply(variables, context, method="embed")
        feature = jnp.broadcast_to(feature, (len(stacked), feature.shape[1]))
        return lambda u: self.network.apply(variables, u, feature, method="log_ratio")

    def excesses(self, u: Array, key: Array) -> Array:
        """log of unbiased estimates of r_k / N_k, of u [B, D]: [B, K], nats.

        Args:
          u: [B, D].
          key: PRNG key of the proposals, of each u its own; consumed here.
        """
        stacked, is_used = self.groups.stack(u), self.groups.is_used()
        num_others, keys = self.num_proposals - 1, jax.random.split(key, len(u))
        at_a_time = min(max(1, ROWS_AT_A_TIME // len(u)), num_others)

        def in_group(params_and_k: tuple[PyTree, Array]) -> Array:
            params, k = params_and_k
            log_r, of_group = self.log_ratio(params, k, stacked), rng.at_step(keys, k)
            weigh = partial(_weigh_proposal, log_r, is_used[k], of_group)
            of_proposals = jax.lax.map(
                weigh, jnp.arange(num_others), batch_size=at_a_time
            )  # [M - 1, B]
            own = log_r(stacked[:, k])
            log_sum = jnp.logaddexp(own, jax.nn.logsumexp(of_proposals, axis=0))
            return own - log_sum + jnp.log(self.num_proposals)

        numbers = jnp.arange(self.groups.num_groups)
        return jax.lax.map(in_group, (self.params, numbers)).T

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log of an unbiased estimate of p(u), of u [B, D]: [B], nats.

        Args:
          z: u [B, D].
          key: PRNG key of the proposals, of each u its own; consumed here.
        """
        if key is None:
            raise ValueError("the density is estimated, which needs a key")
        base = log_normal(self.groups.stack(z), self.groups.is_used())
        return jnp.sum(base + self.excesses(z, key), axis=1)

    def sample(self, keys: Array) -> Array:
        """Draws u [B, D], one per key, group after group, of just this density."""
        is_used = self.groups.is_used()

        def draw(params: PyTree, k: Array, stacked: Array, keys: Array) -> Array:
            u_k, _ = samplers.sir(
                keys,
                partial(_proposals, is_used[k]),
                self.log_ratio(params, k, stacked),
                num_proposals=self.num_proposals,
                chunk_size=max(1, ROWS_AT_A_TIME // len(keys)),
            )
            return u_k

        return self.groups.ancestral(keys, self.params, draw)


def _proposals(is_used: Array, keys: Array) -> Array:
    """Draws of the base prior, one per key: [B, m]; zeros where there is padding."""
    draw = jax.vmap(lambda key: jax.random.normal(key, is_used.shape))
    return draw(keys) * is_used[None]


def _weigh_proposal(log_r: LogRatio, is_used: Array, keys: Array, j: Array) -> Array:
    """log r of proposal number j of each key: [B], nats."""
    return log_r(_proposals(is_used, rng.at_step(keys, j)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the ratios are learned, those of all groups at once.

    Attributes:
      groups: of u.
      learned_by: "ncp", "snis" or "ebm".
      hidden_dims: widths of each ratio's hidden layers.
      activation: name of a function in `jax.nn`.
      num_negatives: proposals of each context in an update of "ncp" and "snis".
      num_langevin_steps: of the negatives of "ebm", one of each context.
      step_size: lambda of these.
      num_score_proposals: M of the held-out bound; the weights that are kept are those
        of its highest sum over the groups.
      num_proposals: M of the density and of the sampler.
      training: how long and how fast.
    """

    groups: Groups
    learned_by: Literal["ncp", "snis", "ebm"] = "ncp"
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "swish"
    num_negatives: int = 1
    num_langevin_steps: int = 40
    step_size: float = 0.16
    num_score_proposals: int = 64
    num_proposals: int = 256
    training: Training = dataclasses.field(
        default=Training(num_steps=6_000, batch_size=256, weight_decay=0.1)
    )

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> ConditionalRatios:
        """Returns the prior, its ratios fitted to encodings u [N, P, D]."""
        groups = self.groups
        network = MLPDiscriminator(self.hidden_dims, self.activation)

        def start(key: Array) -> PyTree:
            sizes = (1, groups.widest), (1, groups.context_width)
            return network.init(key, *map(jnp.zeros, sizes))["params"]

        def prior_of(params: PyTree, num_proposals: int) -> ConditionalRatios:
            return ConditionalRatios(params, network, groups, num_proposals)

        def loss(params: PyTree, u: Array, key: Array) -> Array:
            return self._loss(prior_of(params, self.num_proposals), u, key)

        def score(params: PyTree, u: Array, key: Array) -> Array:
            prior = prior_of(params, self.num_score_proposals)
            return -jnp.mean(jnp.sum(prior.excesses(u, key), axis=1))

        keys = jax.random.split(rng.stream(key, "start"), groups.num_groups)
        params = fitting.minimise(
            self.learned_by,
            loss,
            jax.jit(jax.vmap(start))(keys),
            encodings,
            self.training,
            rng.stream(key, "training"),
            folder,
            score=score,
            settings=dataclasses.replace(self, num_proposals=0),
        )
        return prior_of(params, self.num_proposals)

    def _loss(self, prior: ConditionalRatios, u: Array, key: Array) -> Array:
        """The sum over the groups of what each minimises: [] nats."""
        stacked, is_used = self.groups.stack(u), self.groups.is_used()

        def of_group(params: PyTree, k: Array) -> Array:
            log_r = prior.log_ratio(params, k, stacked)
            own, of_key = log_r(stacked[:, k]), rng.at_step(key, k)
            keys = jax.random.split(of_key, len(u))
            if self.learned_by == "ebm":
                still = prior.log_ratio(jax.lax.stop_gradient(params), k, stacked)
                negatives = self._chains(keys, still, is_used[k])
                return jnp.mean(log_r(negatives)) - jnp.mean(own)

            weigh = partial(_weigh_proposal, log_r, is_used[k], keys)
            of_negatives = jax.vmap(weigh)(jnp.arange(self.num_negatives)).T.reshape(-1)
            if self.learned_by == "snis":
                ranked = nce.ranking_losses(own, of_negatives, is_shared=False)
                return jnp.mean(ranked)
            return nce.nce_loss(own, of_negatives)

        numbers = jnp.arange(self.groups.num_groups)
        return jnp.sum(jax.vmap(of_group)(prior.params, numbers))

    def _chains(self, keys: Array, log_r: LogRatio, is_used: Array) -> Array:
        """Short Langevin chains from the base prior: u_k [B, m], without gradient."""

        def log_density(u: Array) -> Array:
            return log_normal(u[:, None], is_used[None])[:, 0] + log_r(u)

        moved, _ = samplers.langevin(
            rng.stream(keys, "moves"),
            _proposals(is_used, rng.stream(keys, "start")),
            lambda u: log_density(u * is_used[None]),
            step_size=self.step_size,
            num_steps=self.num_langevin_steps,
        )
        return jax.lax.stop_gradient(moved * is_used[None])
