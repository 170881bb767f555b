"""Which signal directions stage 2 reads, what beside them, and by which network."""

import dataclasses
import operator
from typing import Any

import flax.linen as nn

from ncp_jax.errors import InputError, Range, number
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.models.direction_discriminator import DirectionDiscriminator
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.discriminator_choice import (
    ACTIVATION,
    HIDDEN_DIMS,
    discriminator_for,
)
from ncp_jax.models.residual_discriminator import ResidualDiscriminator

NUMBERS: dict[str, Range] = {
    "cap": (operator.index, "[1, inf)"),
    "share": (float, "(0, 1]"),
    "floor": (float, "[0, inf)"),
    "context_size": (operator.index, "[0, inf)"),
    "num_examples": (operator.index, "[2, inf)"),
    "num_encodings": (operator.index, "[1, inf)"),
    "map_channels": (operator.index, "[2, inf)"),
}
CONTEXTS = ("coordinates", "features", "none")
# Settings that came later: at their defaults they do not tell a training from one that
# was begun before.
ADDED = ("context", "with_maps", "map_channels", "map_blocks")


@dataclasses.dataclass(frozen=True)
class SignalSettings:
    """Which directions of a group's noise its discriminator reads, and from how much.

    Attributes:
      cap: the most directions of a group.
      share: of the signal that they hold, in (0, 1].
      floor: of a direction's signal, the prior's variance being 1; less counts for
        nothing.
      context_size: coordinates of every earlier group that r_k reads, too; or of the
        feature.
      is_joint: one ratio of all groups' coordinates instead of one for each.
      num_examples: training examples that directions are found from.
      num_encodings: of each training example, made before the first update.  With one,
        discriminators learn them by heart.  Not looked at where `is_whole`.
      context: what r_k reads beside u_k: "coordinates" of earlier groups; "features",
        the decoder's own of p(z_k | z_<k) in its leading directions; or "none".
      with_maps: adds to the ratio of u_k one of the whole map e_k.
      map_channels: of that one, a `ResidualDiscriminator`.
      map_blocks: of it.

    Raises:
      InputError: a value out of range, or two that exclude each other.
    """

    cap: int = 32
    share: float = 0.95
    floor: float = 0.015
    context_size: int = 16
    is_joint: bool = False
    num_examples: int = 10_000
    num_encodings: int = 5
    context: str = "coordinates"
    with_maps: bool = False
    map_channels: int = 32
    map_blocks: str = "AAB"

    @property
    def is_whole(self) -> bool:
        """Whether ratios read more than coordinates, so that e_k has to be there."""
        return self.context == "features" or self.with_maps

    @property
    def num_earlier(self) -> int:
        """How many coordinates of each earlier group r_k reads."""
        return self.context_size if self.context == "coordinates" else 0

    def __post_init__(self) -> None:
        """Looks at the values."""
        for name, bounds in NUMBERS.items():
            value = number(f"signal directions: {name}", getattr(self, name), *bounds)
            object.__setattr__(self, name, value)
        if fault := self._fault():
            raise InputError(f"signal directions: {fault}")

    def named(self) -> dict[str, Any]:
        """The values by name; of `ADDED` those that are not the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ADDED or getattr(self, field.name) != field.default
        }

    def __str__(self) -> str:
        """What a checkpoint of `fit` is known by."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.named().items())
        return f"{type(self).__name__}({values})"

    def _fault(self) -> str:
        """What is no name, or excludes each other, and what to do; "" if nothing."""
        if self.context not in CONTEXTS:
            return f"context must be one of {CONTEXTS}, got {self.context!r}"
        if self.is_joint and self.is_whole:
            return (
                "is_joint is one ratio of all groups' coordinates, which reads neither "
                "the decoder's features nor maps: give is_joint=False, or context="
                "'coordinates' and with_maps=False"
            )
        if self.with_maps and self.context == "coordinates":
            return (
                "with_maps walks the VAE group by group, where r_k reads the decoder's "
                "feature or nothing: give context='features' or 'none'"
            )
        if self.context == "features" and not self.context_size:
            return (
                "context='features' needs a context_size of 1 or more; for none of the "
                "feature give context='none'"
            )
        if self.with_maps:
            try:
                ResidualDiscriminator(self.map_channels, self.map_blocks)
            except InputError as error:
                return f"map_{error}"
        return ""


def check_features(vae: LatentVariableModel) -> None:
    """Refuses a VAE that offers no group a feature.

    Raises:
      InputError: it does not.
    """
    if all(0 in block.context_shape for block in vae.blocks):
        raise InputError(
            "signal directions: context='features' reads the context that the VAE "
            "offers with p(z_k | z_<k), and this VAE offers none: give context="
            "'coordinates' or 'none'"
        )


def check_maps(vae: LatentVariableModel) -> None:
    """Refuses a VAE whose groups are no maps.

    Raises:
      InputError: naming the shape of such a group.
    """
    for block in vae.blocks:
        if len(block.latent_shape) != 3:
            raise InputError(
                "signal directions: with_maps reads groups that are maps [H, W, C], "
                f"and this VAE has one of shape {tuple(block.latent_shape)}: give "
                "with_maps=False"
            )


def network(
    settings: SignalSettings | None,
    vae: LatentVariableModel,
    discriminator: nn.Module | None,
) -> nn.Module:
    """Returns the network that reads what `settings` let it read.

    Args:
      settings: of the directions; None where discriminators read z itself.
      vae: what they are trained on, `trained(view(...))`.
      discriminator: that was given; None chooses by the groups' shapes.

    Raises:
      InputError: another network than an MLP, where its ratio is only a part.
    """
    if settings is None or not settings.is_whole:
        return discriminator or discriminator_for(vae.blocks)
    if settings.with_maps:
        check_maps(vae)
    mlp = discriminator or MLPDiscriminator(HIDDEN_DIMS, ACTIVATION)
    if type(mlp) is not MLPDiscriminator:
        raise InputError(
            "signal directions: with features or maps the ratio of u_k is that of an "
            f"MLPDiscriminator, not of a {type(mlp).__name__}"
        )
    return DirectionDiscriminator(
        num_directions=settings.cap,
        context_size=settings.context_size,
        hidden_dims=tuple(mlp.hidden_dims),
        activation=mlp.activation,
        with_maps=settings.with_maps,
        channels=settings.map_channels,
        blocks=settings.map_blocks,
        dtype=mlp.dtype,
    )
