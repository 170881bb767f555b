"""How priors are fitted, timed, and found again after a stop."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax.errors import InputError
from ncp_jax.priors.ex_post.contract import (
    Density,
    Encodings,
    LatentPrior,
    Unnormalised,
)
from ncp_jax.records import whole_file
from ncp_jax.training.checkpoint_records import described, short_hash
from ncp_jax.training.checkpoints import identity_of

Array = jax.Array

ARRAYS = (jax.Array, np.ndarray, np.generic, float, int)  # leaves of a prior


class Fitted(NamedTuple):
    """A prior and what it took to fit it."""

    prior: LatentPrior
    seconds: float  # compilation included
    identity: str  # a hash of what it comes from; "" where nothing is kept


def fit(
    name: str,
    settings: Any,
    key: Array,
    encodings: Encodings,
    folder: Path | None = None,
    parts: Mapping[str, Fitted] | None = None,
) -> Fitted:
    """Fits a prior, or finishes a fit that was stopped.

    Args:
      name: of the prior, for messages.
      settings: the `Fit` of it.
      key: PRNG key; consumed here.
      encodings: of the frozen VAE.
      folder: of this prior and this key.  Fits of other settings or encodings lie
        beside each other in it; None keeps nothing.
      parts: those of `contract.PARTS` that are fitted already, by the field of
        `settings` that would fit them again; their seconds are counted.

    Raises:
      InputError: what was fitted is no prior.
    """
    if parts:
        settings = over(settings, {part: of.prior for part, of in parts.items()})
    started, record = time.monotonic(), None
    place, before = None, {"seconds": 0.0, "is_done": False}
    identity = ""
    if folder is not None:
        identity = _identity(settings, key, encodings)
        place = folder / identity
        record = place.with_suffix(".json")
        before = _read(record) or before
        place.mkdir(parents=True, exist_ok=True)
    is_done, seconds = before["is_done"], float(before["seconds"])
    try:
        prior = jax.block_until_ready(settings(key, encodings, place))
        if not is_done:
            seconds, is_done = seconds + time.monotonic() - started, True
    finally:
        if record is not None:
            if not is_done:  # stopped: the seconds so far count
                seconds += time.monotonic() - started
            whole_file.write_json(record, {"seconds": seconds, "is_done": is_done})
    _check(name, prior)
    seconds += sum(part.seconds for part in (parts or {}).values())
    return Fitted(prior, seconds, identity)


def over(settings: Any, parts: Mapping[str, LatentPrior]) -> Any:
    """The same `Fit`, with those of its parts that are fitted already."""
    if hasattr(settings, "over"):  # of a part of z alone
        return settings.over(parts)
    given = {
        part: Given(prior, short_hash(identity_of(prior)))
        for part, prior in parts.items()
    }
    return dataclasses.replace(settings, **given)


def _check(name: str, prior: Any) -> None:
    """Refuses what is no prior, or does not have what its `density` says."""
    kind = type(prior).__name__
    if not isinstance(prior, LatentPrior):
        raise InputError(
            f"prior {name!r}: {kind} must have `density`, `sample(keys)` and "
            "`log_prob(z, key)`"
        )
    if prior.density not in get_args(Density):
        raise InputError(
            f"prior {name!r}: the density of {kind} is {prior.density!r}; it must be "
            f"one of {get_args(Density)}"
        )
    if prior.density == "up to log Z" and not isinstance(prior, Unnormalised):
        raise InputError(
            f"prior {name!r}: {kind} is known up to log Z, so it must have "
            "`log_z_weights(keys)`, log of unbiased estimates of Z: without Z its "
            "gain would be off by log Z"
        )
    if not all(isinstance(leaf, ARRAYS) for leaf in jax.tree.leaves(prior)):
        raise InputError(
            f"prior {name!r}: {kind} must be a pytree of arrays, since it goes through "
            "compiled functions: make it a dataclass under "
            "@jax.tree_util.register_dataclass"
        )


@dataclasses.dataclass(frozen=True)
class Given:
    """A `Fit` that returns what is fitted already.

    Attributes:
      prior: what it returns.
      content: a hash of it, by which fits on top of it are found again.
    """

    prior: LatentPrior = dataclasses.field(repr=False)
    content: str

    def __call__(
        self, key: Array, encodings: Encodings, folder: Path | None = None
    ) -> LatentPrior:
        """Returns the prior, whatever it is asked to be fitted to."""
        del key, encodings, folder
        return self.prior


def num_parameters(prior: LatentPrior) -> int:
    """How many numbers the prior holds, those of its base prior included."""
    return sum(
        jnp.size(leaf)
        for leaf in jax.tree.leaves(prior)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    )


def _identity(settings: Any, key: Array, encodings: Encodings) -> str:
    """A hash of all that the fit depends on."""
    parts = [
        described(settings),
        jax.random.key_data(key).tolist(),
        identity_of(encodings._asdict()),
    ]
    return short_hash(parts)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
        return {"seconds": float(found["seconds"]), "is_done": bool(found["is_done"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of a fit that never began, or that nobody can read: it is fitted
