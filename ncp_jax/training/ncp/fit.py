"""Stage 2 for a VAE of one's own: from a frozen model to its NCP prior."""

import contextlib
import dataclasses
import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.errors import InputError, NotFinite, Range, local_path, number
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.models.check import check_discriminator
from ncp_jax.priors.ncp_prior import NCPPrior
from ncp_jax.records import folder_lock
from ncp_jax.training import checkpoints, loop, optimizers
from ncp_jax.training.checkpoint_records import described
from ncp_jax.training.checkpoints import Checkpoints, fingerprint
from ncp_jax.training.loop import Prepare, Task
from ncp_jax.training.ncp import held_out, preparation, signal, signal_settings
from ncp_jax.training.ncp.ncp_state import NCPState
from ncp_jax.training.ncp.signal_settings import SignalSettings
from ncp_jax.training.ncp.stage_two import SETTINGS, Given, StageTwo
from ncp_jax.training.run_log import Progress, RunLog, SilentLog

Array = jax.Array

STEPS_PER_DISPATCH = 50  # of one compiled call, between two moves of the bar
HELD_OUT_SHARE = 10  # one in so many, where there is no validation set
NUMBERS: dict[str, Range] = {  # arguments of `fit`
    "num_steps": (operator.index, "[1, inf)"),
    "steps_per_eval": (operator.index, "[1, inf)"),
    "batch_size": (operator.index, "[1, inf)"),
    "learning_rate": (float, "(0, inf)"),
    "weight_decay": (float, "[0, inf)"),
    "ema_decay": (float, "[0, 1)"),
    "num_negatives": (operator.index, "[1, inf)"),
    "ranking_weight": (float, "[0, inf)"),
    "negative_weight": (float, "[1, inf)"),
    "num_passes": (operator.index, "[1, inf)"),
    "patience": (operator.index, "[0, inf)"),
}


class Length(NamedTuple):
    """How long stage 2 trains, in updates."""

    num_steps: int
    steps_per_eval: int


def fit(
    vae: LatentVariableModel,
    train: np.ndarray | Array,
    *,
    key: Array,
    valid: np.ndarray | Array | None = None,
    prepare: Prepare | None = None,
    discriminator: nn.Module | None = None,
    directions: SignalSettings | str | None = "auto",
    num_steps: int = 5_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    ema_decay: float = 0.99,
    num_negatives: int = 1,
    ranking_weight: float = 0.0,
    negative_weight: float = 1.0,
    select_by: str = "loss",
    num_passes: int = 1,
    steps_per_eval: int = 250,
    patience: int = 8,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> NCPPrior:
    """Trains one discriminator per latent group of a frozen VAE: stage 2 (Eqs. 3, 4).

    The result keeps, of every group, the weights of its lowest held-out loss.  Adam
    with a cosine schedule; all devices share the work.

    Args:
      vae: the model, whose variables do not change: a `LatentVariableModel`, for
        example `FrozenVAE(module, variables)`.
      train: [N, *data_shape] examples; float32, or uint8 pictures.
      key: PRNG key; consumed here.  The same key gives the same prior.
      valid: [M, *data_shape] examples that only choose the best weights; None holds
        out a tenth of `train`.
      prepare: (key, stored examples [B, ...]) -> x, pure; None leaves real numbers as
        they are and divides uint8 by 255.  `binarize` makes zeros and ones.
      discriminator: (z_k, context) -> logit, one network for every group, each with
        weights of its own; None chooses by the groups' shapes.
      directions: which signal directions of each group's noise discriminators read in
        the place of z: settings, or None for z itself.  "auto" is the default settings
        where the VAE has several groups or one that is a map, its base priors are
        `Normal`, and no `discriminator` is given; else None.
      num_steps: updates, at most.
      batch_size: examples of an update, a multiple of the devices; where there are
        fewer, as many as the devices can share.
      learning_rate: the peak.
      weight_decay: decoupled; 0 for none.
      ema_decay: of the running average of the weights; 0 for none.
      num_negatives: prior draws of each group per example.
      ranking_weight: of the ranking losses beside those of NCE (`nce.losses`).
      negative_weight: M of the weighted NCE loss; 1 is the paper's (`nce.nce_losses`).
      select_by: "loss" or "gain", the held-out number that best weights have.
      num_passes: encodings of each validation example: more, where these are few.
      steps_per_eval: updates between validations.
      patience: validations without a lower loss after which a group rests; training
        ends when all do.  0 for no end before `num_steps`.
      workdir: folder for checkpoints and metrics; None keeps nothing.  The same call
        again goes on where it was stopped, to the same bits.  A VAE is known by its
        class, settings and arrays: numbers within its functions are not seen.
      mesh: the devices; None for all.
      progress: whether to show how far it is.

    Raises:
      InputError: the VAE, the examples or the settings are not as they should be;
        `workdir` holds another training, or another process holds it; or a loss is not
        finite.
    """
    key, mesh = rng.typed(key), mesh or parallel.mesh_of()
    numbers = _numbers(
        num_steps=num_steps,
        steps_per_eval=steps_per_eval,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        ema_decay=ema_decay,
        num_negatives=num_negatives,
        ranking_weight=ranking_weight,
        negative_weight=negative_weight,
        num_passes=num_passes,
        patience=patience,
    )
    length = Length(*(numbers.pop(name) for name in Length._fields))
    of_optimizer = {n: numbers.pop(n) for n in ("learning_rate", "weight_decay")}
    if select_by not in held_out.SELECT_BY:
        raise InputError(
            f"select_by must be one of {held_out.SELECT_BY}, got {select_by!r}"
        )
    if workdir is not None:
        workdir = local_path("workdir", str(workdir))
    train, valid = _split(train, valid, rng.stream(key, "held out"))
    prepare = preparation.checked(vae, train, prepare)
    batch_size = _batch_size(numbers.pop("batch_size"), len(train), mesh)
    given = Given(vae, train, valid, prepare, numbers["num_passes"], progress)
    named = {
        "key": jax.random.key_data(key).tolist(),
        "vae": preparation.identity(vae, train, prepare),
        "train": fingerprint(train),
        "valid": fingerprint(valid),
        "prepare": preparation.named(prepare, train),
    }
    with _held(workdir):
        settings, found = signal.chosen(directions, vae, discriminator), None
        if settings is not None:
            path = _directions_file(workdir, named, settings)
            given = given.in_directions(settings, key, path, batch_size, mesh)
            found = f"{settings} {given.vae.directions.digest()[:16]}"
        model = signal.trained(given.vae)
        network = signal_settings.network(settings, model, discriminator)
        check_discriminator(model, network)
        schedule = optimizers.schedule(
            "cosine", of_optimizer["learning_rate"], length.num_steps
        )
        optimizer = optimizers.optimizer("adam", schedule, of_optimizer["weight_decay"])
        stage = StageTwo(
            network, optimizer, batch_size=batch_size, select_by=select_by, **numbers
        )
        metadata = {
            **named,
            "directions": found,
            "discriminator": described(network),
            **length._asdict(),
            **{name: getattr(stage, name) for name in SETTINGS},
            **of_optimizer,
        }

        def make_task() -> Task:
            task = given.task(stage, key, settings, mesh)
            return _in_own_words(task, bool(of_optimizer["weight_decay"]))

        state = stage.initial(model, key)
        if settings is None or any(given.vae.directions.widths):
            folder = Path(workdir) / "ncp" / "checkpoints" if workdir else None
            with checkpoints.opened(folder, metadata) as saved:
                try:
                    state = _trained(make_task, state, saved, length, workdir, progress)
                except NotFinite:
                    preparation.find_fault(vae, prepare, train=train, valid=valid)
                    raise
        params = jax.device_put(state.best_params(model.blocks))
        return signal.prior(given.vae, network, params)


def _held(workdir: str | Path | None) -> contextlib.AbstractContextManager[None]:
    """The lock of the folder, for the one process that writes to it."""
    folder = Path(workdir) if workdir is not None and parallel.is_writer() else None
    return folder_lock.held(folder, "workdir")


def _numbers(**values: Any) -> dict[str, Any]:
    """The arguments in `NUMBERS` as numbers of Python's own, which JSON can hold."""
    return {name: number(name, values[name], *NUMBERS[name]) for name in values}


def _batch_size(asked: int, num_examples: int, mesh: Mesh) -> int:
    """That asked for, or the largest that examples and devices allow."""
    if asked <= num_examples:
        parallel.check_batch_size(mesh, "batch_size", asked)
        return asked
    if num_examples < mesh.size:
        raise InputError(
            f"train holds {num_examples} examples, fewer than the {mesh.size} devices: "
            "give a mesh of fewer"
        )
    return num_examples // mesh.size * mesh.size


def _directions_file(
    workdir: str | Path | None, named: dict[str, Any], settings: SignalSettings
) -> Path | None:
    """Where directions that depend on just this are kept; None for nowhere."""
    if workdir is None:
        return None
    return signal.file_in(Path(workdir) / "ncp", [named, settings.named()])


def _split(train: Any, valid: Any, key: Array) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out examples; without the latter, a tenth of the former."""
    if valid is not None:
        found = preparation.splits(train=train, valid=valid)
        return found["train"], found["valid"]
    train = preparation.examples("train", train)
    if len(train) < 2:
        raise InputError("train holds one example: none is left to be held out")
    rows = np.random.default_rng(rng.numpy_seed(key)).permutation(len(train))
    num_valid = max(len(train) // HELD_OUT_SHARE, 1)
    return train[rows[num_valid:]], train[rows[:num_valid]]


def _in_own_words(task: Task, has_decay: bool) -> Task:
    """The same task, whose messages name arguments of `fit`, not fields of a config."""
    remedy = "more num_steps or another learning_rate may help"
    if has_decay:
        remedy = "weight decay may be why: lower weight_decay"
    remarks: Any = task.remarks  # those of `held_out`
    return dataclasses.replace(
        task, learning_rate="learning_rate", remarks=partial(remarks, remedy=remedy)
    )


def _trained(
    make_task: Callable[[], Task],
    state: NCPState,
    saved: Checkpoints,
    length: Length,
    workdir: str | Path | None,
    progress: bool,
) -> NCPState:
    """The state after the last update, from the newest checkpoint if there is one."""
    restored = saved.restore_latest(state)
    if restored is not None:
        state = restored.state
    first_step = int(state.step)
    if first_step == length.num_steps:
        return state
    task = make_task()  # encodings take their time: not before they are needed
    log: Progress = SilentLog()
    if workdir is not None and parallel.is_writer():
        log = RunLog(Path(workdir), task.name, first_step, length.num_steps, progress)
    elif progress and parallel.is_writer():
        log = Progress(task.name, first_step, length.num_steps)
    with loop.interruptible(), contextlib.closing(log):
        state = loop.fit(
            task,
            state,
            saved,
            log,
            steps_per_dispatch=min(STEPS_PER_DISPATCH, length.steps_per_eval),
            **length._asdict(),
        )
    saved.wait()
    return task.collect(state)
