"""Stage 2 on signal directions: which are found, kept, and what it trains on."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.directions import Directions, fit_directions
from ncp_jax.priors.ncp_prior import NCPPrior, PyTree
from ncp_jax.priors.signal_space import SignalCoordinates, SignalVAE
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import encodings

Array = jax.Array

LEAST = {"cap": 1, "context_size": 0, "num_examples": 2, "num_encodings": 1}


@dataclasses.dataclass(frozen=True)
class SignalSettings:
    """Which directions of a group's noise its discriminator reads, and from how much.

    Attributes:
      cap: the most directions of a group.
      share: of the signal that they hold, in (0, 1].
      floor: of a direction's signal, the prior's variance being 1; less counts for
        nothing.
      context_size: coordinates of every earlier group that r_k reads, too.
      is_joint: one ratio of all groups' coordinates instead of one for each.
      num_examples: training examples that directions are found from.
      num_encodings: of each training example, made before the first update.  With one,
        discriminators learn them by heart.

    Raises:
      InputError: a value out of range.
    """

    cap: int = 32
    share: float = 0.95
    floor: float = 0.015
    context_size: int = 16
    is_joint: bool = False
    num_examples: int = 10_000
    num_encodings: int = 5

    def __post_init__(self) -> None:
        """Looks at the values."""
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"signal directions: {name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )


def chosen(
    asked: SignalSettings | str | None,
    vae: LatentVariableModel,
    discriminator: nn.Module | None,
) -> SignalSettings | None:
    """Returns the settings of stage 2 on directions; None where it reads z itself.

    Args:
      asked: settings, None, or "auto": the default settings where the VAE has several
        groups or one that is a map, all base priors are `Normal`, and no discriminator
        of z was given.
      vae: the model.
      discriminator: that was given.

    Raises:
      InputError: another word.
    """
    if asked is None or isinstance(asked, SignalSettings):
        return asked
    if asked != "auto":
        raise InputError(
            f"directions must be 'auto', None or a SignalSettings; got {asked!r}"
        )
    num_groups = sum(block.num_groups for block in vae.blocks)
    is_wide = num_groups > 1 or any(len(b.latent_shape) > 1 for b in vae.blocks)
    is_on = discriminator is None and is_wide and _is_normal(vae)
    return SignalSettings() if is_on else None


def _is_normal(vae: LatentVariableModel) -> bool:
    """Whether every base prior can be standardised; nothing is computed."""
    return all(
        isinstance(
            jax.eval_shape(lambda b=b: vae.prior(b, 0, vae.root(2)).base), Normal
        )
        for b in range(len(vae.blocks))
    )


def kept(
    path: Path | None, find: Callable[[], Directions], *, progress: bool = True
) -> Directions:
    """Returns the directions of a file; where there is none, finds and writes them.

    Says in a line how many they are, or that there is no signal.

    Args:
      path: of the file; None for none.
      find: what finds them, for example `find` below.
      progress: whether to say that they are looked for.

    Raises:
      InputError: the file is damaged.
    """
    if path is not None and not parallel.any_process(int(not path.exists())):
        return Directions.load(path)
    if progress:
        print("ncp: finds signal directions")
    found = find()
    if path is not None and parallel.is_writer():
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    if progress and any(found.widths):
        print(f"ncp: directions of each group: {', '.join(map(str, found.widths))}")
    if not any(found.widths):  # nobody should be surprised by that
        print(
            "ncp: no direction of any group has signal above the floor: r = 1, and the "
            "NCP prior is the base prior"
        )
    return found


def find(
    vae: LatentVariableModel,
    train: np.ndarray,
    prepare: Prepare,
    key: Array,
    settings: SignalSettings,
    *,
    batch_size: int,
    mesh: Mesh,
) -> Directions:
    """Finds the directions from some of the training examples.

    Args:
      vae: the frozen model.
      train: [N, ...] stored examples.
      prepare: (key, stored) -> x, as for validation.
      key: owner of the streams of directions.
      settings: how many examples, and what counts.
      batch_size: examples at a time, a multiple of the devices.
      mesh: the devices that share a batch.

    Raises:
      InputError: see `directions.fit_directions`.
    """
    order = np.random.default_rng(rng.numpy_seed(rng.stream(key, "examples")))
    rows = np.sort(order.permutation(len(train))[: settings.num_examples])
    return fit_directions(
        vae,
        datasets.padded_batches(train[rows], batch_size),
        prepare,
        rng.stream(key, "fit"),
        share=settings.share,
        floor=settings.floor,
        cap=settings.cap,
        mesh=mesh,
    )


def view(
    vae: LatentVariableModel, directions: Directions, settings: SignalSettings
) -> SignalVAE:
    """Returns the VAE in signal coordinates.

    Raises:
      InputError: the directions are those of other groups.
    """
    directions.check(vae.blocks)
    return SignalVAE(vae, directions, settings.context_size, settings.is_joint)


def encoded(
    model: SignalVAE,
    train: np.ndarray,
    valid: np.ndarray,
    key: Array,
    settings: SignalSettings,
    *,
    prepare: Prepare,
    prepare_held_out: Prepare,
    num_passes: int,
    batch_size: int,
    mesh: Mesh,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes training and validation examples: u [., K, m] of each.

    Args:
      model: the frozen VAE in signal coordinates.
      train: [N, ...] stored examples.
      valid: [M, ...] held-out ones.
      key: owner of the stream of encodings.
      settings: how often the training examples are encoded.
      prepare: (key, stored) -> x, in training.
      prepare_held_out: the same, in validation.
      num_passes: encodings of each validation example.
      batch_size: examples at a time, a multiple of the devices.
      mesh: the devices that share a batch.
      progress: whether to show how far it is.
    """
    make: Any = partial(
        encodings.pool, model, batch_size=batch_size, mesh=mesh, progress=progress
    )
    num = settings.num_encodings
    if progress:
        print(f"ncp: encodes {len(train):,} training examples {num} times")
    of_train = make(train, prepare, rng.stream(key, "train"), num_passes=num)
    of_valid = make(
        valid, prepare_held_out, rng.stream(key, "valid"), num_passes=num_passes
    )
    return of_train, of_valid


def groups_that_read(vae: LatentVariableModel) -> tuple[int, ...] | None:
    """Numbers of the groups with a signal direction; None where all read z itself."""
    if not isinstance(vae, SignalCoordinates):
        return None
    return tuple(np.flatnonzero(np.any(vae.is_used, axis=1)).tolist())


def trained(model: LatentVariableModel) -> LatentVariableModel:
    """Returns what discriminators see of a model: its coordinates, or all of it."""
    return model.coordinates if isinstance(model, SignalVAE) else model


def prior(
    model: LatentVariableModel,
    discriminator: nn.Module,
    params: tuple[PyTree, ...],
    groups: tuple[int, ...] | None = None,
) -> NCPPrior:
    """Returns the NCP prior of discriminators that saw `trained(model)`.

    Args:
      model: the VAE, or its view in signal coordinates.
      discriminator: the network.
      params: of it, per block of `trained(model)`.
      groups: that are reweighted, of those with signal; None for all.
    """
    if not isinstance(model, SignalVAE):
        return NCPPrior(model, discriminator, params, groups)
    rest = (None,) * (len(model.blocks) - len(params))
    return NCPPrior(model, discriminator, (*params, *rest), model.chosen(groups))
