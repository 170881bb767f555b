"""What a comparison found, by prior, and as the JSON that its page is made of."""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import draws
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.errors import InputError, did_you_mean, number
from ncp_jax.evaluation.importance import Estimate, or_null
from ncp_jax.priors.ex_post.contract import Density, LatentPrior
from ncp_jax.priors.generation import Generated

Array = jax.Array
Metrics = Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class PriorResult:
    """One prior, fitted once or several times.

    Attributes:
      density: what is known of its density.
      metrics: by name, means over the fits; their errors are those of examples and
        draws, not of the fits.
      spreads: by name, standard deviations over the fits; empty of one fit.
      of_fits: the metrics of each fit.
      priors: the fitted priors.
    """

    density: Density
    metrics: Metrics
    spreads: Mapping[str, float]
    of_fits: tuple[Metrics, ...] = dataclasses.field(repr=False)
    priors: tuple[LatentPrior, ...] = dataclasses.field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Returns all but the priors."""
        return {
            "density": self.density,
            "metrics": _as_json(self.metrics),
            "spreads": {name: or_null(sd) for name, sd in self.spreads.items()},
            "of_fits": [_as_json(metrics) for metrics in self.of_fits],
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Priors side by side, on the same frozen VAE and the same examples.

    Printed, it is a table of the priors in the order of the page.

    Attributes:
      results: by the name of the prior, in the order they were asked for.
      nll_base: of the VAE's own prior; None where z is a function of x, and there are
        no likelihoods.
      floor: of decoded encodings, which no prior's draws can beat; samples only.
      about: how it was measured, JSON values.
      model: the frozen VAE, which draws are decoded by.
      page: the HTML page, where a folder was given.
    """

    results: Mapping[str, PriorResult]
    nll_base: Estimate | None
    floor: Metrics
    about: Mapping[str, Any]
    model: Compared
    page: Path | None = None

    def __repr__(self) -> str:
        """A row for each prior: what it gains and what it costs."""
        from ncp_jax.pages import priors_page  # and matplotlib, which takes a second

        return priors_page.plain(self.as_json())

    def draw(
        self,
        name: str,
        key: Array,
        num: int = 64,
        *,
        fit: int = 0,
        batch_size: int = 1_000,
    ) -> Generated:
        """Draws z from a fitted prior and decodes it.

        Draw i depends on (key, i) alone.

        Args:
          name: of the prior, in `results`.
          key: PRNG key; consumed here.
          num: N.
          fit: number of its fit, where there are several.
          batch_size: draws at a time; bounds the memory.

        Returns:
          As `ncp_jax.sample`: images E[x | z] [N, *data_shape], and per block of the
          VAE latents z [num_groups, N, *latent_shape]; without infos.

        Raises:
          InputError: there is no such prior or fit, or a draw is not finite.
        """
        if name not in self.results:
            hint = did_you_mean(name, self.results)
            there_are = ", ".join(self.results)
            raise InputError(f"no prior {name!r}: {there_are} are here.{hint}")
        priors = self.results[name].priors
        prior = priors[number("fit", fit, operator.index, f"[0, {len(priors)})")]
        num, size = (
            number(name, value, operator.index, "[1, inf)")
            for name, value in {"num": num, "batch_size": batch_size}.items()
        )
        return draws.decoded(self.model, prior, rng.typed(key), num, size)

    def as_json(self) -> dict[str, Any]:
        """Returns what `pages.priors_page` shows."""
        nll = None if self.nll_base is None else self.nll_base.as_json()
        return {
            "about": dict(self.about),
            "nll_base": nll,
            "floor": _as_json(self.floor),
            "priors": {name: each.as_json() for name, each in self.results.items()},
        }


def over_fits(
    density: Density,
    of_fits: Sequence[Metrics],
    likelihoods: Metrics,
    priors: Sequence[LatentPrior],
) -> PriorResult:
    """Averages what several fits of one prior were measured to be.

    Args:
      density: of the prior.
      of_fits: the metrics of each.
      likelihoods: those metrics whose means are known already, since all fits saw the
        same examples; the others come from draws of each fit's own.
      priors: the fits.
    """
    names = [name for name in of_fits[0] if all(name in each for each in of_fits)]
    found = {name: [each[name] for each in of_fits] for name in names}
    metrics = {name: _mean_of_fits(estimates) for name, estimates in found.items()}
    with np.errstate(invalid="ignore"):  # -inf has no standard deviation
        spreads = {
            name: float(np.std([e.value for e in estimates], ddof=1))
            for name, estimates in found.items()
            if len(estimates) > 1
        }
    return PriorResult(
        density, metrics | dict(likelihoods), spreads, tuple(of_fits), tuple(priors)
    )


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, with the errors that they have themselves."""
    value = float(np.mean([e.value for e in estimates]))
    errors = [e.stderr for e in estimates if e.stderr is not None]
    stderr = None
    if len(errors) == len(estimates):
        stderr = math.sqrt(math.fsum(e**2 for e in errors)) / len(errors)
    return Estimate(value, stderr, estimates[0].n, estimates[0].unit)


def _mean_of_fits(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates against the same held-out examples, which do not average.

    How much of each error is theirs is not known: it is as large as that of one fit.
    """
    found = mean(estimates)
    errors = [e.stderr for e in estimates if e.stderr is not None]
    return (
        found if found.stderr is None else found._replace(stderr=float(np.mean(errors)))
    )


def _as_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    return {name: estimate.as_json() for name, estimate in metrics.items()}
