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
from ncp_jax.priors.directed import DirectedVAE, constants_of
from ncp_jax.priors.directions import Directions, fit_directions
from ncp_jax.priors.feature_directions import fit_features
from ncp_jax.priors.ncp_prior import NCPPrior, PyTree
from ncp_jax.priors.signal_space import SignalCoordinates, SignalVAE
from ncp_jax.training.checkpoint_records import short_hash
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import encodings
from ncp_jax.training.ncp.signal_settings import SignalSettings, check_features

Array = jax.Array


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


def file_in(folder: Path, identity: list[Any]) -> Path:
    """Where directions that depend on just these JSON values are kept."""
    return folder / f"directions-{short_hash(identity)}.npz"


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
    if settings.context == "features":
        check_features(vae)
    order = np.random.default_rng(rng.numpy_seed(rng.stream(key, "examples")))
    rows = np.sort(order.permutation(len(train))[: settings.num_examples])
    batches = list(datasets.padded_batches(train[rows], batch_size))
    found = fit_directions(
        vae,
        batches,
        prepare,
        rng.stream(key, "fit"),
        share=settings.share,
        floor=settings.floor,
        cap=settings.cap,
        mesh=mesh,
    )
    if settings.context != "features":
        return found
    basis, shift = fit_features(
        vae,
        batches,
        prepare,
        rng.stream(key, "features"),
        size=settings.context_size,
        mesh=mesh,
    )
    return dataclasses.replace(found, feature_basis=basis, feature_shift=shift)


def view(
    vae: LatentVariableModel, directions: Directions, settings: SignalSettings
) -> SignalVAE | DirectedVAE:
    """Returns the VAE in signal coordinates; or in e_k, where ratios read more.

    Raises:
      InputError: the directions are those of other groups.
    """
    directions.check(vae.blocks)
    if settings.is_whole:
        has_context = settings.context == "features"
        return DirectedVAE(vae, directions, settings.cap, has_context)
    return SignalVAE(vae, directions, settings.num_earlier, settings.is_joint)


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
    if isinstance(vae, DirectedVAE):
        return vae.chosen(None)
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

    Parameters that they are given, not taught, join the others here.

    Args:
      model: the VAE, or its view in signal coordinates.
      discriminator: the network.
      params: of it, per block of `trained(model)`.
      groups: that are reweighted, of those with signal; None for all.
    """
    if isinstance(model, DirectedVAE):
        constants = constants_of(model)
        each = zip(params, constants, strict=True)
        whole = tuple({**learned, **given} for learned, given in each)
        return NCPPrior(model, discriminator, whole, model.chosen(groups))
    if not isinstance(model, SignalVAE):
        return NCPPrior(model, discriminator, params, groups)
    rest = (None,) * (len(model.blocks) - len(params))
    return NCPPrior(model, discriminator, (*params, *rest), model.chosen(groups))
