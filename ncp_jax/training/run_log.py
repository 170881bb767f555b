"""What a run tells while it trains: metrics.jsonl, TensorBoard files and progress."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ncp_jax.records import log_lines, whole_file

SECONDS_BETWEEN_LINES = 10.0
ORDER = ("vae", "ncp")  # of the stages' records; others come after them

Metrics = Mapping[str, Any]  # name -> float, or [K] values of the K groups


class Progress:
    """Shows how far a training stage is, and writes nothing.

    Args:
      stage: name of the stage, "vae" or "ncp".
      first_step: steps already done.
      num_steps: steps in all.
      is_shown: False to show nothing.
    """

    def __init__(
        self, stage: str, first_step: int, num_steps: int, is_shown: bool = True
    ):
        self._stage = stage
        self._num_steps = num_steps
        self._start = (time.monotonic(), first_step)
        self._last_line = 0.0
        self._is_shown = is_shown
        self._bar = None
        if is_shown and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            self._bar = tqdm.tqdm(
                total=num_steps, initial=first_step, desc=stage, unit="step"
            )

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Leaves metrics, each a float or the [K] values of the groups, to others."""

    def progress(self, step: int, train_loss: float, valid_loss: float | None) -> None:
        """Moves the bar on a terminal, else prints a line now and then."""
        if not self._is_shown:
            return
        losses = f"loss {train_loss:.4f}"
        if valid_loss is not None:
            losses += f" valid {valid_loss:.4f}"
        if self._bar is not None:
            self._bar.set_postfix_str(losses, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and step < self._num_steps:
            return
        self._last_line = now
        started, first_step = self._start
        rate = (step - first_step) / max(now - started, 1e-9)
        left = tqdm.tqdm.format_interval((self._num_steps - step) / max(rate, 1e-9))
        print(
            f"{self._stage} step {step}/{self._num_steps} {losses} "
            f"{rate:.1f} steps/s {left} left",
            flush=True,
        )

    def ended(self, step: int) -> None:
        """Says that the steps after this one are not taken."""
        if self._is_shown:
            print(f"{self._stage} ends at step {step}: validations get no better")

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class RunLog(Progress):
    """The log of one training stage, continued after `first_step`.

    A stage that goes back, since a checkpoint is lost, leaves what an unbroken run
    would have left: its later records go, and those of the next stage stay after its
    own.

    Args:
      workdir: run folder; gets metrics.jsonl and events/<stage>.
      stage: name of the stage, "vae" or "ncp".
      first_step: steps already done; later records of an interrupted run are dropped.
      num_steps: steps in all.
      is_shown: False to show no progress.
    """

    def __init__(
        self,
        workdir: Path,
        stage: str,
        first_step: int,
        num_steps: int,
        is_shown: bool = True,
    ):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            _rewrite(self._path, _kept(self._path, stage, first_step))
        self._file = self._path.open("a", buffering=1)
        # Not SummaryWriter: its thread dies of a full disk, then its queue blocks us.
        board = workdir / "events" / stage
        board.mkdir(parents=True, exist_ok=True)
        self._board = EventsWriter(str(board / "events"), f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)  # hides the later events before it
        self._board.write_event(Event(step=first_step + 1, session_log=start))
        super().__init__(stage, first_step, num_steps, is_shown)

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Records metrics, each a float or the [K] values of the groups."""
        plain = {name: np.asarray(value).tolist() for name, value in metrics.items()}
        record = {"stage": self._stage, "split": split, "step": step, **plain}
        self._file.write(json.dumps(record) + "\n")
        event = Event(step=step, wall_time=time.time())
        for name, value in plain.items():
            values = value if isinstance(value, list) else [value]
            for k, scalar in enumerate(values):
                tag = f"{split}/{name}" + (f"/{k}" if len(values) > 1 else "")
                event.summary.MergeFrom(summary.scalar(tag, scalar))
        self._board.write_event(event)
        self._board.flush()

    def close(self) -> None:
        """Closes everything; what was written is on disk already."""
        super().close()
        with self._file, contextlib.closing(self._board):
            pass
        records = read_metrics(self._path)
        if records != (ordered := _kept(self._path, "", 0)):
            _rewrite(self._path, ordered)


class SilentLog(Progress):
    """The log of a process that leaves telling to another."""

    def __init__(self) -> None:
        self._bar, self._is_shown = None, False

    def progress(self, step: int, train_loss: float, valid_loss: float | None) -> None:
        """Does nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the whole records of a metrics.jsonl, as `log_lines.read` does."""
    return log_lines.read(path)


def _kept(path: Path, stage: str, step: int) -> list[dict[str, Any]]:
    """The records without those of a stage beyond a step, the stages in their order."""
    kept = [r for r in read_metrics(path) if r["stage"] != stage or r["step"] <= step]
    return sorted(kept, key=lambda r: (*ORDER, r["stage"]).index(r["stage"]))


def _rewrite(path: Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    whole_file.write(path, lines.encode())
