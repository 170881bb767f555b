"""How one group is drawn: the samplers with their settings, for `ncp_prior.ancestral`.

Each is a value that can be compared and hashed, so that `jit` takes it as static; it is
called with (keys [B], target) and returns (z_k [B, *latent_shape], info).
"""

import dataclasses
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax import rng, samplers
from ncp_jax.errors import InputError, number
from ncp_jax.models.distributions import Distribution, Normal, Standardizable
from ncp_jax.models.shared import sample_each
from ncp_jax.priors.ncp_prior import LogRatio, Target
from ncp_jax.priors.signal_space import PaddedNormal

Array = jax.Array
StepSize = float | tuple[float, ...]  # lambda, of all groups or of each

MIN_TO_JUDGE = 16  # proposals, by whose weights a chain may stop


@dataclasses.dataclass(frozen=True)
class Base:
    """The base prior itself.

    Attributes:
      temperature: its standard deviation is multiplied by it; other than 1 needs a base
        prior with the method `tempered`.

    Raises:
      InputError: the base prior has no such method.
    """

    temperature: float = 1.0

    def __call__(self, keys: Array, target: Target) -> tuple[Array, None]:
        """Draws from p(z_k | z_<k)."""
        return self.plain(keys, target.base), None

    def plain(self, keys: Array, base: Any) -> Array:
        """Draws z_k [B, *latent_shape] of a group, reweighted or not."""
        if self.temperature != 1.0:
            if not hasattr(base, "tempered"):
                raise InputError(
                    f"{self}: the base prior is a {type(base).__name__} without a "
                    "method tempered(temperature): draw at temperature 1"
                )
            base = base.tempered(self.temperature)
        return sample_each(keys, base)


@dataclasses.dataclass(frozen=True)
class SIR:
    """Sampling-importance-resampling; see `samplers.sir` for the settings.

    Raises:
      InputError: there is no proposal.
    """

    num_proposals: int = 5_000
    chunk_size: int = 500

    def __post_init__(self) -> None:
        """Looks at the numbers of proposals."""
        _check_numbers(self, num_proposals=1, chunk_size=1)

    def __call__(self, keys: Array, target: Target) -> tuple[Array, samplers.SIRInfo]:
        """Keeps one of the proposals from p(z_k | z_<k)."""
        return samplers.sir(
            keys,
            lambda keys: sample_each(keys, target.base),
            target.log_r,
            num_proposals=self.num_proposals,
            chunk_size=self.chunk_size,
        )


@dataclasses.dataclass(frozen=True)
class AdaptiveSIR:
    """SIR with as many proposals as each draw needs; see `samplers.adaptive_sir`.

    Attributes:
      tolerance: of the bias, chi^2 / M.
      max_proposals: M at most.
      min_proposals: M at least, and by how much it grows: 16 or more, since few that
        happen to be alike look as if they were enough.

    Raises:
      InputError: there is no proposal, or too few to judge by.
    """

    tolerance: float = 3e-3
    max_proposals: int = 5_000
    min_proposals: int = 64

    def __post_init__(self) -> None:
        """Looks at the numbers of proposals."""
        _check_numbers(self, max_proposals=1, min_proposals=MIN_TO_JUDGE)

    def __call__(
        self, keys: Array, target: Target
    ) -> tuple[Array, samplers.AdaptiveSIRInfo]:
        """Keeps one of the proposals from p(z_k | z_<k)."""
        return samplers.adaptive_sir(
            keys,
            lambda keys: sample_each(keys, target.base),
            target.log_r,
            tolerance=self.tolerance,
            max_proposals=self.max_proposals,
            min_proposals=self.min_proposals,
        )


@dataclasses.dataclass(frozen=True)
class IteratedSIR:
    """SIR repeated with the current z among the proposals: exact in the limit.

    Raises:
      InputError: there is no proposal beside the current z, or no step.
    """

    num_proposals: int = 100
    num_steps: int = 10
    chunk_size: int = 100

    def __post_init__(self) -> None:
        """Refuses chains that would stay where they are."""
        if self.num_proposals < 2 or self.num_steps < 1:
            raise InputError(
                f"{self}: num_proposals, the current z among them, must be 2 or more, "
                "and num_steps 1 or more"
            )
        _check_numbers(self, num_proposals=2, num_steps=1, chunk_size=1)

    def __call__(
        self, keys: Array, target: Target
    ) -> tuple[Array, samplers.IteratedSIRInfo]:
        """Starts at a draw from p(z_k | z_<k)."""
        return samplers.iterated_sir(
            rng.stream(keys, "iterated"),
            sample_each(rng.stream(keys, "initial"), target.base),
            lambda keys: sample_each(keys, target.base),
            target.log_r,
            num_proposals=self.num_proposals,
            chunk_size=self.chunk_size,
            num_steps=self.num_steps,
        )


@dataclasses.dataclass(frozen=True)
class Langevin:
    """Langevin dynamics started at the base prior; see `samplers.langevin`.

    Attributes:
      step_size: lambda, one for all groups or one of each.
      num_steps: updates.
      in_noise: moves e in z = mean + std * e instead of z, so that one step size suits
        groups of any scale; needs a `Standardizable` base prior, such as `Normal`.
        The paper moves z.

    Raises:
      InputError: a step size is not above 0, or num_steps is below 0.
    """

    step_size: StepSize = 1e-2
    num_steps: int = 1_000
    in_noise: bool = False

    def __post_init__(self) -> None:
        """Looks at the steps."""
        _check_numbers(self, num_steps=0)
        _check_step_size(self)

    def __call__(
        self, keys: Array, target: Target
    ) -> tuple[Array, samplers.LangevinInfo]:
        """Starts at a draw from p(z_k | z_<k)."""
        moved = _Moved(target, self.in_noise)
        final, info = samplers.langevin(
            rng.stream(keys, "langevin"),
            moved.start(rng.stream(keys, "initial")),
            moved.log_density,
            step_size=_of_group(self.step_size, target.group),
            num_steps=self.num_steps,
        )
        return moved.to_z(final), info


@dataclasses.dataclass(frozen=True)
class MALA:
    """Langevin dynamics with accept and refuse; see `samplers.mala`.

    Attributes:
      step_size: lambda at the start, one for all groups or one of each.
      num_steps: updates, adaptation included.
      num_adapt_steps: the first so many, in which each chain finds its own lambda; None
        for a fifth of them.
      in_noise: as of `Langevin`.

    Raises:
      InputError: no step is left after the adaptation, or a step size is not above 0.
    """

    step_size: StepSize = 1e-1
    num_steps: int = 1_000
    num_adapt_steps: int | None = None
    in_noise: bool = True

    def __post_init__(self) -> None:
        """Looks at the numbers of steps."""
        _check_steps(self)

    def __call__(self, keys: Array, target: Target) -> tuple[Array, samplers.MALAInfo]:
        """Starts at a draw from p(z_k | z_<k)."""
        moved = _Moved(target, self.in_noise)
        final, info = samplers.mala(
            rng.stream(keys, "mala"),
            moved.start(rng.stream(keys, "initial")),
            moved.log_density,
            step_size=_of_group(self.step_size, target.group),
            num_steps=self.num_steps,
            num_adapt_steps=_num_adapting(self, 5),
        )
        return moved.to_z(final), info


@dataclasses.dataclass(frozen=True)
class SIRThenMALA:
    """SIR, whose choice MALA moves on; the settings are those of both.

    Without `num_adapt_steps` half of the steps find the step size.
    """

    num_proposals: int = 100
    chunk_size: int = 100
    step_size: StepSize = 1e-1
    num_steps: int = 20
    num_adapt_steps: int | None = None
    in_noise: bool = True

    def __post_init__(self) -> None:
        """Looks at the numbers of proposals and of steps."""
        _check_numbers(self, num_proposals=1, chunk_size=1)
        _check_steps(self)

    def __call__(
        self, keys: Array, target: Target
    ) -> tuple[Array, samplers.SIRThenMALAInfo]:
        """Chooses among proposals from p(z_k | z_<k)."""
        moved = _Moved(target, self.in_noise)
        final, info = samplers.sir_then_mala(
            keys,
            moved.start,
            lambda at: target.log_r(moved.to_z(at)),
            moved.log_density,
            num_proposals=self.num_proposals,
            chunk_size=self.chunk_size,
            step_size=_of_group(self.step_size, target.group),
            num_steps=self.num_steps,
            num_adapt_steps=_num_adapting(self, 2),
        )
        return moved.to_z(final), info


class _Moved:
    """The variable that a chain moves: z, or e in z = mean + std * e.

    Padded coordinates are moved as e: there std is 0, and whatever e does z stays 0.

    Raises:
      InputError: e is asked for, and the base prior does not say that it is normal.
    """

    def __init__(self, target: Target, in_noise: bool):
        self.log_r: LogRatio = target.log_r
        base = target.base
        self.base: Distribution = base
        self.to_z: Callable[[Array], Array] = lambda at: at
        if in_noise or isinstance(base, PaddedNormal):
            if not isinstance(base, Standardizable):
                raise InputError(
                    f"the base prior is a {type(base).__name__} without a method "
                    "standardization(), so it need not be mean + std * e with normal "
                    "e, and a chain cannot move e: give the sampler in_noise=False, "
                    "or draw by SIR or iterated SIR"
                )
            mean, std = base.standardization()
            self.base = Normal(jnp.zeros_like(mean), jnp.ones_like(std))
            self.to_z = lambda at: mean + std * at

    def start(self, keys: Array) -> Array:
        """Draws from the base prior, [B, *latent_shape]."""
        return sample_each(keys, self.base)

    def log_density(self, at: Array) -> Array:
        """log p + log r: [B], nats, up to a constant."""
        return self.base.log_prob(at) + self.log_r(self.to_z(at))


def _check_numbers(sampler: Any, **fewest: int) -> None:
    for name, least in fewest.items():
        asked = getattr(sampler, name)
        number(f"{sampler}: {name}", asked, operator.index, f"[{least}, inf)")


def _check_step_size(sampler: Langevin | MALA | SIRThenMALA) -> None:
    sizes = sampler.step_size
    each = sizes if isinstance(sizes, tuple) else (sizes,)
    if not all(isinstance(size, numbers.Real) and size > 0 for size in each):
        raise InputError(
            f"{sampler}: step_size must be a number above 0, or a tuple of one for "
            "each group"
        )


def _check_steps(sampler: MALA | SIRThenMALA) -> None:
    _check_step_size(sampler)
    if not 0 <= _num_adapting(sampler, 2) < sampler.num_steps:
        raise InputError(
            f"{sampler}: the first num_adapt_steps of num_steps find the step size, so "
            "they must be fewer"
        )
    given = {} if sampler.num_adapt_steps is None else {"num_adapt_steps": 0}
    _check_numbers(sampler, num_steps=1, **given)


def _num_adapting(sampler: MALA | SIRThenMALA, share: int) -> int:
    """How many steps find the step size: one in `share`, where that is not said."""
    given = sampler.num_adapt_steps
    return sampler.num_steps // share if given is None else given


def _of_group(step_size: StepSize, group: Array) -> float | Array:
    return jnp.array(step_size)[group] if isinstance(step_size, tuple) else step_size
