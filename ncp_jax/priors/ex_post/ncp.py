"""The noise contrastive prior r(z) p(z) / Z: r is learned by telling q from p (Eq. 3).

Aneja, Schwing, Kautz and Vahdat (2021).  Options of the same loss: several negatives;
the ranking loss beside it (Ma and Collins, 2018); M negatives counted for each positive
(Noisier NCE, ICLR 2026); dropout, as the implicit prior of Takahashi et al. (2019) has;
the mean of several ratios (Lakshminarayanan et al., "Deep ensembles", 2017).  And
another prior's draws as proposals: importance sampling from what is near r p.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

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
    check_exact,
    over_base,
    with_base,
)
from ncp_jax.priors.ex_post.fitting import Loss, minimise, of_members
from ncp_jax.samplers.resampling import log_mean_exp
from ncp_jax.training.loop import PyTree
from ncp_jax.training.ncp import nce

Array = jax.Array

PROPOSALS_AT_A_TIME = 2_000  # of all chains together: what caches hold


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How draws of r p / Z are made (Sec. 4.3).

    Attributes:
      method: "sir"; "mala", which starts where SIR ends; or "langevin", which starts at
        a proposal, is not corrected, and when short does not follow the density.
      num_proposals: of SIR, whose bias is O(1 / num_proposals).
      num_steps: of MALA, the first half to adapt its step sizes, or of Langevin.
      step_size: lambda, as of `samplers.langevin`.
    """

    method: Literal["sir", "mala", "langevin"] = "sir"
    num_proposals: int = 5_000
    num_steps: int = 60
    step_size: float = 0.16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reweighted:
    """p(z) r_1(z) ... r_S(z) / Z.

    Attributes:
      base: p, of exact density.
      params: of each r_s.
      network: of all r_s.
      sampling: how draws are made.
      proposal: s, of exact density, whose draws are chosen among with weights r p / s,
        and whose mean weight is Z; None for p.  The nearer it is to r p / Z, the fewer
        draws do.
    """

    density: ClassVar[Density] = "up to log Z"

    base: LatentPrior
    params: tuple[PyTree, ...]
    network: RatioMLP = dataclasses.field(metadata={"static": True})
    sampling: Sampling = dataclasses.field(
        default=Sampling(), metadata={"static": True}
    )
    proposal: LatentPrior | None = None

    def log_r(self, z: Array) -> Array:
        """The sum of log r_s of z [B, D]: [B], nats."""
        log_r = jnp.zeros(len(z))
        for params in self.params:
            log_r += self.network.log_r(params, z)
        return log_r

    def log_prob(self, z: Array, key: Array | None = None) -> Array:
        """log p(z) + log r(z), which lacks - log Z: [B], nats."""
        del key
        return self.base.log_prob(z) + self.log_r(z)

    def log_z_weights(self, keys: Array) -> Array:
        """log of the weight of one proposal per key: [B], nats."""
        return self._log_weight(self._source.sample(keys))

    @property
    def _source(self) -> LatentPrior:
        return self.base if self.proposal is None else self.proposal

    def _log_weight(self, z: Array) -> Array:
        """log of r p by the density of proposals: [B], nats."""
        if self.proposal is None:
            return self.log_r(z)
        return self.log_prob(z) - self.proposal.log_prob(z)

    def sample(self, keys: Array) -> Array:
        """Draws z [B, D], one per key, by the sampler of `sampling`."""
        how = self.sampling
        if how.method == "langevin":
            start = self._source.sample(rng.stream(keys, "start"))
            return self.langevin(rng.stream(keys, "langevin"), start)
        of_sir = rng.stream(keys, "sir")
        draws = resampled(of_sir, self._source, self._log_weight, how.num_proposals)
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


@dataclasses.dataclass(frozen=True)
class ProposedSettings:
    """How a prior r p / Z and another one, that proposes its draws, are fitted.

    Attributes:
      ratio: fits the first, by a ratio.
      proposal: fits the other, of exact density.
      num_proposals: M of SIR.
    """

    ratio: Fit
    proposal: Fit
    num_proposals: int = 200

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> Reweighted:
        """Returns the first, with draws from the other.

        Raises:
          InputError: the first is no ratio, or the other has no exact density.
        """
        prior, proposal = (
            fit(rng.stream(key, name), encodings, folder / name if folder else None)
            for name, fit in (("ratio", self.ratio), ("proposal", self.proposal))
        )
        if not isinstance(prior, Reweighted):
            raise InputError(
                f"{type(prior).__name__} has no ratio whose draws could be proposed"
            )
        check_exact(proposal, "propose draws")
        sampling = dataclasses.replace(prior.sampling, num_proposals=self.num_proposals)
        return dataclasses.replace(prior, sampling=sampling, proposal=proposal)


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
