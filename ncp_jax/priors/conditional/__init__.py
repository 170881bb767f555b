"""Priors over the signal coordinates of several groups, each given those before.

Knows what a conditional prior offers and how it learns, from arrays of coordinates.
Knows no VAE, no data set and no run.
"""

from collections.abc import Mapping
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.priors import ex_post
from ncp_jax.priors.conditional import flow, ratios
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.priors.ex_post.contract import Training

NAMES = ("ncp", "snis", "ebm", "flow")
SAID = ("groups", "learned_by")  # by the VAE and by the name


def settings_of(
    name: str, groups: Groups, changes: Mapping[str, Any] | None = None
) -> Any:
    """Returns how a conditional prior is fitted, an `ex_post.contract.Fit`.

    Args:
      name: one of `NAMES`.
      groups: of the coordinates.
      changes: of its fields, as of `ex_post.settings_of`.

    Raises:
      InputError: there is no such field, or it is not for settings to say.
    """
    for field in SAID:
        if isinstance(changes, Mapping) and field in changes:
            raise InputError(
                f"prior {name!r}: {field} is no setting: the name of the prior and the "
                "VAE say it; context_size is of the directions"
            )
    known: dict[str, Any] = {
        "ncp": ratios.Settings(groups),
        "snis": ratios.Settings(groups, "snis", num_negatives=64),
        "ebm": ratios.Settings(
            groups, "ebm", training=Training(num_steps=6_000, batch_size=128)
        ),
        "flow": flow.Settings(groups),
    }
    return ex_post.changed(name, known[name], changes or {})
