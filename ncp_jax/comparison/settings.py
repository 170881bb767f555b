"""How much a comparison draws and measures."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from ncp_jax.errors import InputError, did_you_mean, number

CAN_BE_0 = ("max_examples", "num_mmd_samples", "num_permutations")


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """How much is drawn and measured.

    Attributes:
      num_encodings: z ~ q(z | x) of each training example, that priors are fitted to.
      num_valid_encodings: of each validation example, which choose weights.
      num_rounds: EM steps, where encodings are resampled by a prior.
      num_proposals: draws of q(z | x) of one x that encodings are resampled from.
      num_resampled: encodings of each such set.
      max_examples: of those that likelihoods are measured on; 0 for all.
      num_importance_samples: z ~ q(z | x) of each of these.
      chunk_size: of them at a time; bounds the memory.
      batch_size: examples at a time.
      num_log_z_draws: estimates of Z, of a prior that is known up to it; up to ten
        times as many where log Z is uncertain by more than 0.02 nats.
      log_z_batch_size: at a time.
      num_samples: draws of each prior that are decoded.
      sample_batch_size: at a time.
      num_mmd_samples: of these and of encodings, for the MMD; 0 for none.
      num_permutations: of its test; 0 for no MMD.
      num_neighbour_queries: draws and held-out pictures whose nearest training picture
        is looked for.

    Raises:
      InputError: a number is too small or no integer.
    """

    num_encodings: int = 10
    num_valid_encodings: int = 2
    num_rounds: int = 1
    num_proposals: int = 64
    num_resampled: int = 2
    max_examples: int = 2_000
    num_importance_samples: int = 1_000
    chunk_size: int = 50
    batch_size: int = 100
    num_log_z_draws: int = 1_000_000
    log_z_batch_size: int = 50_000
    num_samples: int = 10_000
    sample_batch_size: int = 1_000
    num_mmd_samples: int = 2_000
    num_permutations: int = 200
    num_neighbour_queries: int = 1_000

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = int(name not in CAN_BE_0)
            found = number(name, value, operator.index, f"[{least}, inf)")
            object.__setattr__(self, name, found)  # Python's own, which JSON can hold


def checked(
    settings: ComparisonSettings | Mapping[str, Any] | None,
) -> ComparisonSettings:
    """Returns settings from changes of the defaults by name; None changes nothing.

    Raises:
      InputError: there is no such setting, or its number is not allowed.
    """
    if isinstance(settings, ComparisonSettings):
        return settings
    changes = {} if settings is None else settings
    if not isinstance(changes, Mapping):
        raise InputError(
            "settings must be ComparisonSettings, or a mapping of names to numbers; "
            f"got {settings!r}"
        )
    names = [field.name for field in dataclasses.fields(ComparisonSettings)]
    for name in changes:
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise InputError(
                f"settings has no {name!r}.{hint} There are {', '.join(names)}"
            )
    return ComparisonSettings(**changes)
