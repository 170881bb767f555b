"""Checkpoints that survive kills and notice damage (Orbax plus a hash per array)."""

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ncp_jax.errors import InputError, explained
from ncp_jax.training.checkpoint_records import (
    DamagedCheckpoint,
    best_step,
    checked_record,
    described,
    read_record,
    seal_of,
    short_hash,
)

PyTree = Any

_LOGGER = logging.getLogger(__name__)


class Restored(NamedTuple):
    """One verified checkpoint."""

    step: int
    state: PyTree
    metadata: dict[str, Any]


def digests(tree: PyTree) -> dict[str, str]:
    """Returns the sha256 of every array of `tree`, by its path."""
    numbers = jax.device_get(jax.tree.map(_numbers, tree))
    return {
        jax.tree_util.keystr(path): hashlib.sha256(
            np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        ).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(numbers)
    }


def _numbers(leaf: Any) -> Any:
    """An array, or those of typed PRNG keys: the state of a dropout holds some."""
    is_array = isinstance(leaf, jax.Array)
    is_key = is_array and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def fingerprint(tree: PyTree) -> str:
    """Returns one hash of all arrays of `tree` and of their paths."""
    return short_hash(digests(tree))


def identity_of(tree: PyTree) -> list[str]:
    """What tells a pytree from others: its arrays, and what of it is no array.

    A prior with other static fields is another one, with the same arrays.

    Args:
      tree: any; of a function in it the name counts.
    """
    return [fingerprint(tree), described(jax.tree.structure(tree))]


def _paths(tree: PyTree) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path) for path, _ in leaves}


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


class Checkpoints:
    """The checkpoints of one stage: the latest two and the best.

    A checkpoint is written to a temporary folder and renamed, so a kill in mid-save
    leaves nothing that looks whole.  Orbax restores flipped bytes without a word, hence
    the hashes.  A context manager; errors of its own closing never hide the body's.

    Args:
      directory: created if missing.
      metadata: JSON values that name what is trained; stored with every checkpoint,
        and a checkpoint with other values is refused.
      started: `time.monotonic()` when the stage began; None for now.
      also: other values of metadata, by name, that a checkpoint may have.

    Raises:
      InputError: if the directory cannot be made or read.
    """

    keeps = True  # whether what is saved can be restored

    def __init__(
        self,
        directory: Path,
        metadata: Mapping[str, Any],
        started: float | None = None,
        also: Mapping[str, Collection[Any]] | None = None,
    ):
        self._directory = directory.absolute()
        self._metadata = dict(metadata)
        self._also = also or {}
        self._started = time.monotonic() if started is None else started
        self._seconds_before = 0.0
        self._losses: dict[int, float] = {}  # step -> validation loss
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except InputError as error:
            if exc_type is None:
                raise
            _LOGGER.warning("%s", error)

    def latest_step(self) -> int | None:
        """Returns the newest step on disk, verified or not; None if there is none."""
        return self._manager.latest_step()

    def wall_seconds(self) -> float:
        """Returns the time that led to now, over all processes that took part.

        What a killed process did after its last checkpoint is not in it.
        """
        return self._seconds_before + time.monotonic() - self._started

    def save(self, step: int, state: PyTree, valid_loss: float | None) -> None:
        """Saves in the background, unless that step is saved already.

        Args:
          step: updates done.
          state: arrays; may be donated as soon as this returns.
          valid_loss: decides which checkpoint is best; None if not known.

        Raises:
          InputError: if this save or the one before could not be written (disk full).
        """
        if step in self._manager.all_steps():
            return
        if valid_loss is not None:
            self._losses[step] = valid_loss
        metadata = self._metadata | {
            "step": step,
            "valid_loss": valid_loss,
            "wall_seconds": self.wall_seconds(),
            "sha256": digests(state),
        }
        self._write(
            self._manager.save,
            step,
            force=True,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                metadata=ocp.args.JsonSave(metadata | {"seal": seal_of(metadata)}),
            ),
        )

    def restore_latest(self, like: PyTree) -> Restored | None:
        """Returns the newest checkpoint whose bytes are right; None if there is none.

        All are read.  Damaged ones are named in a warning and moved aside, so that
        training can write those steps again and no reader meets them.  What a killed
        process left half written is removed: so only who is about to write asks this.

        Args:
          like: a pytree of the arrays' shapes and dtypes; NumPy arrays are restored.

        Raises:
          InputError: if it was made with other metadata or by other code.
        """
        if jax.process_index() == 0:
            # Orbax's own clearing may still be at work after it was closed.
            for torn in self._directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(torn, ignore_errors=True)
        newest = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._verified(step, like)
            except DamagedCheckpoint as damage:
                self._set_aside(step, damage.reason)
            else:
                newest = newest or restored
        if newest:
            self._seconds_before = newest.metadata["wall_seconds"]
        return newest

    def restore_best(self, like: PyTree) -> Restored:
        """Returns the checkpoint of lowest validation loss.

        Raises:
          DamagedCheckpoint: it is damaged, or another is so that it may be the best.
          InputError: if there is none, or it was made with other metadata.
        """
        steps = self._manager.all_steps()
        for step in steps:
            checked_record(self._directory / str(step))
        if not steps:
            raise InputError(
                f"no usable checkpoint in {self._directory}: train this stage again "
                "(remove the folder first)"
            )
        return self._verified(best_step(steps, self._losses), like)

    def restore(self, step: int, like: PyTree) -> Restored:
        """Returns the checkpoint of a step.

        Raises:
          DamagedCheckpoint: it is damaged or not there.
          InputError: it was made with other metadata.
        """
        return self._verified(step, like)

    def forget(self, step: int) -> None:
        """Deletes the checkpoint of a step."""
        self._losses.pop(step, None)
        self._manager.delete(step)

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          InputError: if it could not be written.
        """
        self._write(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the save under way, with the errors of `wait`, and closes."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _open(self) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestTwoAndBest(self._losses)
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            message = f"cannot use {self._directory}: {explained(error)}"
            raise InputError(message) from error
        for step in self._manager.all_steps():
            record = read_record(self._directory / str(step)) or {}
            loss = record.get("valid_loss")
            if loss is not None:
                self._losses[step] = loss

    def _verified(self, step: int, like: PyTree) -> Restored:
        metadata = checked_record(self._directory / str(step))
        for name, value in self._metadata.items():
            if metadata.get(name) not in (value, *self._also.get(name, ())):
                raise InputError(
                    f"{self._directory / str(step)} was made with another {name} "
                    f"({metadata.get(name)}, now {value}): give the old settings, or "
                    "another workdir; if a damaged checkpoint was named above, "
                    "remove this folder and train its stage again"
                )
        if metadata["sha256"].keys() != _paths(like):
            raise InputError(
                f"{self._directory / str(step)} holds other arrays than this code has: "
                "it was saved by another version. Use that one, or another workdir."
            )
        _check_readable(self._directory / str(step))
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            state = self._manager.restore(step, args=args).state
        except Exception as error:  # tensorstore raises a bare Exception for bad bytes
            path, reason = self._directory / str(step), _reason(error)
            raise DamagedCheckpoint(path, f"cannot be read ({reason})") from error
        if digests(state) != metadata["sha256"]:
            reason = "holds other bytes than were written"
            raise DamagedCheckpoint(self._directory / str(step), reason)
        if _shapes(state) != _shapes(like):
            raise InputError(
                f"{self._directory / str(step)} holds arrays of other shapes than are "
                "trained now: give the old settings, or another workdir"
            )
        return Restored(step, state, metadata)

    def _set_aside(self, step: int, reason: str) -> None:
        path, aside = (
            self._directory / str(step),
            self._directory.with_name("damaged") / str(step),
        )
        _LOGGER.warning("checkpoint %s %s: moved to %s", path, reason, aside.parent)
        self._manager.close()
        self._losses.pop(step, None)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(path, aside)
        self._open()

    def _write(self, function: Any, *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # Orbax wraps the OSError of its writer thread
            raise InputError(
                f"cannot write a checkpoint to {self._directory}: {_reason(error)}\n"
                "Free some disk space or mend the folder, then run the same command "
                "again: it continues from the checkpoint before."
            ) from error


class Nowhere(Checkpoints):
    """Checkpoints of a training that nobody wants to go on with."""

    keeps = False

    def __init__(self) -> None:
        pass

    def save(self, step: int, state: PyTree, valid_loss: float | None) -> None:
        """Does nothing."""

    def restore_latest(self, like: PyTree) -> None:
        """Finds nothing."""

    def wait(self) -> None:
        """Does not wait."""


@contextlib.contextmanager
def opened(
    directory: Path | None,
    metadata: dict[str, Any],
    also: Mapping[str, Collection[Any]] | None = None,
) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, as of `Checkpoints`; `Nowhere` without one."""
    if directory is None:
        yield Nowhere()
        return
    with Checkpoints(directory, metadata, also=also) as saved:
        yield saved


class _LatestTwoAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax's own best-N reads a file of each checkpoint that nobody verifies."""

    def __init__(self, losses: Mapping[int, float]):
        self._losses = losses

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(sorted(steps)[-2:])
        if scored := [step for step in steps if step in self._losses]:
            kept.add(min(scored, key=lambda step: (self._losses[step], -step)))
        return [step in kept for step in steps]


def _check_readable(path: Path) -> None:
    """Raises the system's error, lest a file of another user be taken for damage."""
    for file in path.rglob("*"):
        if file.is_file():
            file.open("rb").close()


def _reason(error: Exception) -> str:
    """Returns the end of the chain of causes that tensorstore makes a message of."""
    line = str(error).partition("\n")[0].partition(" [")[0]
    return ": ".join(line.split(": ")[-2:]) or type(error).__name__
