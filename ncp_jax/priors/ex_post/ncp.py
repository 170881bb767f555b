"""The noise contrastive prior r(z) p(z) / Z: r is learned by telling q from p (Eq. 3).

Aneja, Schwing, Kautz and Vahdat (2021).  Options of the same loss: several negatives;
the ranking loss beside it (Ma and Collins, 2018); M negatives counted for each positive
(Noisier NCE, ICLR 2026); dropout, as the implicit prior of Takahashi et al. (2019) has;
the mean of several ratios (Lakshminarayanan et al., "Deep ensembles", 2017).  And the
geometric mean with another prior, whose draws are the proposals (Heskes, "Selecting
weighting factors in logarithmic opinion pools", 1997).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import RatioMLP
from ncp_jax.priors.ex_post.contract import (
    Density,
    Encodings,
    Fit,
    LatentPrior,
    Training,
    check_choice,
    check_exact,
    over_base,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import Loss, minimise, of_members
from ncp_jax.samplers.resampling import log_mean_exp
from ncp_jax.training.loop import PyTree
from ncp_jax.training.ncp import nce

Array = jax.Array

Method = Literal["sir", "mala", "langevin"]

PROPOSALS_AT_A_TIME = 2_000  # of all chains together: what caches hold
NUM_WEIGHTS = 20  # of a pool, that are tried: 0, 1 / 20, .. 1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How draws of r p / Z are made (Sec. 4.3).

    Attributes:
      method: "sir"; "mala", which starts where SIR ends; or "langevin", which starts at
        a proposal, is not corrected, and when short does not follow the density.
      num_proposals: of SIR, whose bias is O(1 / num_proposals).
      num_steps: of MALA, the first half to adapt its step sizes, or of Langevin.
      step_size: lambda, as of `samplers.langevin`.

    Raises:
      InputError: there is no such method.
    """

    method: Method = "sir"
    num_proposals: int = 5_000
    num_steps: int = 60
    step_size: float = 0.16

    def __post_init__(self) -> None:
        """Refuses a method that there is not."""
        check_choice("sampling.method", self.method, get_args(Method))


class OverBase:
    """p(z) r(z) / Z, for a `base` p of exact density and a `log_r`."""

    density: ClassVar[Density] = "up to log Z"

    base: LatentPrior

    def log_r(self, z: Array) -> Array:
        """log r of z [B, D]: [B], nats."""
        raise NotImplementedError

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) + log r(z), which lacks - log Z: [B], nats."""
        del key
        return self.base.log_prob(z) + self.log_r(z)

    def log_z_weights(self, keys: Array) -> Array:
        """log r of one draw from the base per key: [B], nats."""
        return self.log_r(self.base.sample(keys))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reweighted(OverBase):
    """p(z) r_1(z) ... r_S(z) / Z.

    Attributes:
      base: p, of exact density.
      params: of each r_s.
      network: of all r_s.
      sampling: how draws are made.
    """

    base: LatentPrior
    params: tuple[PyTree, ...]
    network: RatioMLP = dataclasses.field(metadata={"static": True})
    sampling: Sampling = dataclasses.field(
        default=Sampling(), metadata={"static": True}
    )

    def log_r(self, z: Array) -> Array:
        """The sum of log r_s of z [B, D]: [B], nats."""
        log_r = jnp.zeros(len(z))
        for params in self.params:
            log_r += self.network.log_r(params, z)
        return log_r

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, by the sampler of `sampling`."""
        how = self.sampling
        if how.method == "langevin":
            start = self.base.sample(rng.stream(keys, "start"))
            return self.langevin(rng.stream(keys, "langevin"), start)
        of_sir = rng.stream(keys, "sir")
        draws = resampled(of_sir, self.base, self.log_r, how.num_proposals)
        if how.method == "sir":
            return draws
        return self.mala(rng.stream(keys, "mala"), draws)

    def langevin(self, keys: Array, start: Array) -> Array:
        """Moves z [B, D] by steps that are not corrected."""
        how = self.sampling
        draws, _ = samplers.langevin(
            keys, start, self.log_prob, step_size=how.step_size, num_steps=how.num_steps
        )
        return draws

    def mala(self, keys: Array, start: Array) -> Array:
        """Moves z [B, D] by steps that leave r p / Z as it is."""
        how = self.sampling
        draws, _ = samplers.mala(
            keys,
            start,
            self.log_prob,
            step_size=how.step_size,
            num_steps=how.num_steps,
            num_adapt_steps=how.num_steps // 2,
        )
        return draws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averaged(Reweighted):
    """p(z) (r_1(z) .. r_K(z))^(1/K) / Z."""

    def log_r(self, z: Array) -> Array:
        """The mean of log r_k of z [B, D]: [B], nats."""
        return super().log_r(z) / len(self.params)


def resampled(
    keys: Array,
    source: LatentPrior,
    log_weight: Callable[[Array], Array],
    num_proposals: int,
) -> Array:
    """One of M draws of a prior per key, chosen by its weight: z [B, D]."""
    draws, _ = samplers.sir(
        keys,
        source.sample,
        log_weight,
        num_proposals=num_proposals,
        chunk_size=max(1, PROPOSALS_AT_A_TIME // len(keys)),
    )
    return draws


@dataclasses.dataclass(frozen=True)
class Settings:
    """How r is learned.

    Attributes:
      base: the prior that is reweighted, fitted first; None for the VAE's own.
      hidden_dims: widths of the ratio's hidden layers; the paper's 50-100-100-1.
      activation: name of a function in `jax.nn`.
      dropout: of the last hidden layer while it learns.
      num_negatives: base draws for each encoding of an update.
      ranking_weight: of the ranking loss beside that of NCE.
      negative_weight: M of `nce.nce_losses`; 1 is the paper's.
      num_score_draws: base draws for log Z of the held-out gain, which chooses the
        weights that are kept.
      training: how long and how fast.
      sampling: how draws are made.
    """

    base: Fit | None = None
    hidden_dims: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    dropout: float = 0.0
    num_negatives: int = 1
    ranking_weight: float = 0.0
    negative_weight: float = 1.0
    num_score_draws: int = 20_000
    training: Training = dataclasses.field(default=Training())
    sampling: Sampling = Sampling()

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Reweighted:
        """Returns the prior whose r has the highest held-out gain."""
        encodings = with_base(self.base, key, encodings, folder)
        params = contrast(self, key, encodings, encodings.base, folder)
        return Reweighted(encodings.base, (params,), self.network, self.sampling)

    @property
    def network(self) -> RatioMLP:
        """What log r is computed with."""
        return RatioMLP(self.hidden_dims, self.activation, dropout=self.dropout)


@dataclasses.dataclass(frozen=True)
class EnsembleSettings:
    """How several ratios learn, whose mean of log r is that of the prior.

    Each tells q from p by itself, from another start and on other draws.  What they
    have over-fitted differs and averages out.

    Attributes:
      base: the prior that is reweighted, fitted first; None for the VAE's own.
      num_members: K.
      member: the loss, the network and the training of every member; its base and
        sampling do not count.
      sampling: how draws are made.
    """

    base: Fit | None = None
    num_members: int = 3
    member: Settings = dataclasses.field(default=Settings())
    sampling: Sampling = dataclasses.field(default=Sampling())

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Averaged:
        """Returns the prior with the geometric mean of all r_k."""
        encodings = with_base(self.base, key, encodings, folder)
        params = tuple(
            contrast(self.member, own_key, encodings, encodings.base, place)
            for own_key, place in of_members(self.num_members, key, folder)
        )
        return Averaged(encodings.base, params, self.member.network, self.sampling)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pooled(OverBase):
    """p_A(z)^w p_B(z)^(1 - w) / Z, a logarithmic opinion pool.

    It is p_B reweighted by (p_A / p_B)^w.  So draws of B are the proposals, and the
    mean of their weights is Z.  With w = 1 it is A, sampled by way of B.

    Attributes:
      first: A, of density "exact" or "up to log Z".
      second: B, of exact density.
      weight: w [], 0 or more.
      num_proposals: M of SIR.
    """

    first: LatentPrior
    second: LatentPrior
    weight: Array
    num_proposals: int = dataclasses.field(metadata={"static": True})

    @property
    def base(self) -> LatentPrior:  # type: ignore[override]
        """B, which proposes."""
        return self.second

    def log_r(self, z: Array) -> Array:
        """w log p_A(z) / p_B(z) of z [B, D]: [B], nats."""
        return _to_the(self.weight, log_ratio(self.first, self.second, z))

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, by SIR."""
        return resampled(keys, self.base, self.log_r, self.num_proposals)


def log_ratio(first: LatentPrior, second: LatentPrior, z: Array) -> Array:
    """log p_A(z) / p_B(z) of z [B, D], but for a constant: [B], nats."""
    return first.log_prob(z) - second.log_prob(z)


def _to_the(weight: Array, log_r: Array) -> Array:
    """log r^w, which is 0 for w = 0 wherever r = 0, too."""
    return jnp.where(weight == 0, 0.0, weight * log_r)


@dataclasses.dataclass(frozen=True)
class PooledSettings:
    """How two priors are fitted and w, the share of the first, is chosen.

    Attributes:
      first: fits A, of density "exact" or "up to log Z".
      second: fits B, of exact density.
      weight: w; 0 for the one from 0 to 1 with the highest held-out gain, which is
        concave in w.
      num_score_draws: of B, for the log Z of each w that is tried.
      num_proposals: M of SIR.
    """

    first: Fit
    second: Fit
    weight: float = 0.0
    num_score_draws: int = 100_000
    num_proposals: int = 20

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Pooled:
        """Returns the pool.

        Raises:
          InputError: the density of one is not what it has to be.
        """
        first, second = (
            fit(rng.stream(key, name), encodings, folder / name if folder else None)
            for name, fit in (("first", self.first), ("second", self.second))
        )
        check_exact(second, "propose draws")
        if first.density not in ("exact", "up to log Z"):
            raise InputError(
                f"the density of {type(first).__name__} is {first.density!r}; only one "
                "that is exact, or exact up to log Z, can be pooled"
            )
        weight = jnp.asarray(self.weight)
        if not self.weight:
            weight = self._chosen(first, second, rng.stream(key, "score"), encodings)
        return Pooled(first, second, weight, self.num_proposals)

    def _chosen(
        self,
        first: LatentPrior,
        second: LatentPrior,
        key: Array,
        encodings: Encodings,
    ) -> Array:
        """w with the highest E_q[log r^w] - log E_B[r^w], r = p_A / p_B: []."""
        weigh = partial(log_ratio, first, second)
        of_draws = over_base(second, weigh, key, self.num_score_draws)
        with jax.default_matmul_precision("float32"):  # as that has it
            of_valid = jax.lax.map(weigh, encodings.valid.swapaxes(0, 1))
        weights = jnp.arange(NUM_WEIGHTS + 1) / NUM_WEIGHTS
        log_z = log_mean_exp(_to_the(weights[:, None], of_draws[None]), axis=1)
        return weights[jnp.argmax(_to_the(weights, jnp.mean(of_valid)) - log_z)]


def contrast(
    settings: Settings,
    key: Array,
    encodings: Encodings,
    held_out_base: LatentPrior,
    folder: Path | None = None,
) -> PyTree:
    """Learns to tell encodings from draws of `encodings.base`: parameters of log r.

    Args:
      settings: of the loss; those of base and sampling do not count.
      key: PRNG key; consumed here.
      encodings: both classes; the base only has to have `sample`.
      held_out_base: its draws score the gain; the same base, or other draws of it.
      folder: of checkpoints; None keeps none.
    """
    network = settings.network
    params = network.start(rng.stream(key, "start"), encodings.train.shape[-1])

    def loss(
        params: PyTree, z: Array, key: Array, base: LatentPrior, *rest: LatentPrior
    ) -> Array:
        del rest
        num_draws = len(z) * settings.num_negatives
        z_p = base.sample(jax.random.split(rng.stream(key, "negatives"), num_draws))
        both = jnp.concatenate([z, z_p])
        logits = network.log_r(params, both, rng.stream(key, "dropout"))
        of_each, _ = nce.losses_of(
            logits[: len(z)],
            logits[len(z) :],
            is_shared=True,
            ranking_weight=settings.ranking_weight,
            negative_weight=settings.negative_weight,
        )
        return jnp.mean(of_each)

    return minimise(
        "ncp",
        loss,
        params,
        encodings,
        settings.training,
        key,
        folder,
        score=minus_gain(network, settings.num_score_draws),
        fixed=(encodings.base, held_out_base),
        settings=dataclasses.replace(settings, base=None, sampling=Sampling()),
    )


def minus_gain(network: RatioMLP, num_draws: int) -> Loss:
    """Returns the score log E_p[r] - E_q[log r] in nats, with p the last of `fixed`.

    Donsker and Varadhan's bound on -KL(q, p): minus what r is worth in likelihood,
    whatever constant r is off by.

    Args:
      network: of log r.
      num_draws: of p; log of their mean is too low by about var(r / Z) / (2 num_draws).
    """

    def score(params: PyTree, z: Array, key: Array, *fixed: LatentPrior) -> Array:
        log_r = over_base(
            fixed[-1], lambda z_p: network.log_r(params, z_p), key, num_draws
        )
        return log_mean_exp(log_r) - jnp.mean(network.log_r(params, z))

    return score
