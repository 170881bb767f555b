"""A run's folder: who may write to it, which config made it, what it holds."""

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import data_seal, extension
from ncp_jax.experiment.setup.run_files import CURES, EXTENDED, read_json
from ncp_jax.records import folder_lock, whole_file
from ncp_jax.training.checkpoint_records import best_weights, saved_steps

# A stage's output depends on these sections of the config.
SECTIONS = {
    "vae": ("seed", "data", "vae"),
    "ncp": ("seed", "data", "vae", "ncp"),
    "vaebm": ("seed", "data", "vae", "vaebm"),
    "sirvaebm": ("seed", "data", "vae", "ncp", "vaebm"),
    "sample": ("seed", "data", "vae", "ncp", "vaebm", "sample"),
    "evaluate": ("seed", "data", "vae", "ncp", "vaebm", "sample", "evaluate"),
    # Of "evaluate" it is the feature network and what it is compared on.
    "compare": ("seed", "data", "vae", "evaluate", "compare"),
}

# Samplers with an energy of their own, trained in a folder that is called so.
ENERGIES = ("vaebm", "sirvaebm")


def built_on(stage: str) -> list[str]:
    """The stages that read what `stage` gives, itself the first."""
    return [name for name in SECTIONS if set(SECTIONS[name]) >= set(SECTIONS[stage])]


class Workdir:
    """The folder of one run, held by one process at a time.

    Training stages that have started pin their part of the config; the other stages
    may be run again with other settings, and a training stage may become longer.

    Args:
      path: created if missing.
      config: of this call, as JSON values.
      environment: versions and devices, for the records.
      is_writer: False for readers, and for the processes of a run that leave locking
        and records to one: nothing in the folder changes.
      pinning_stages: those that, once started, fix their part of the config.
      may_extend: those of them that may become longer by this call.

    Raises:
      InputError: if the folder cannot be written, its name is no UTF-8, another
        process holds it, or it was made with another config (the fields that differ
        are listed).
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        is_writer: bool = True,
        pinning_stages: Sequence[str] = ("vae", "ncp"),
        may_extend: Collection[str] = (),
    ):
        self.path = path
        self._is_writer = is_writer
        self._pinning_stages = pinning_stages
        self._config = config
        self._environment = environment
        self._extended: dict[str, list[dict[str, Any]]] = {}  # by this call
        try:
            os.fsencode(path.absolute()).decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"--workdir={os.fsencode(path)!r} is not valid UTF-8, and checkpoints "
                "cannot be written into such a folder: rename it"
            ) from error
        self._lock = contextlib.ExitStack()
        try:
            if is_writer:
                self._lock.enter_context(folder_lock.held(path, "--workdir"))
            self.results()  # a damaged one is named now, not after hours of training
            self._adopt_config(may_extend)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process have the folder."""
        self._lock.close()

    def fingerprint(self, stage: str) -> str:
        """Returns the hash of the settings that the output of `stage` depends on."""
        return config_lib.fingerprint(self._config, SECTIONS[stage])

    def earlier(self, stage: str) -> list[dict[str, Any]]:
        """Returns the lengths that a training stage had before, see `extension`."""
        written = extension.earlier(self.path / stage)
        own = self._extended.get(stage, [])  # perhaps another process writes them yet
        return [*written, *(length for length in own if length not in written)]

    def is_done(self, stage: str) -> bool:
        """Whether `stage` has ended, with these settings and weights, and is whole."""
        record = self.results()["run"].get("stages", {}).get(stage, {})
        is_same = record.get("fingerprint") == self.fingerprint(stage)
        if not is_same or not all(
            (self.path / name).exists() for name in self._files(stage)
        ):
            return False
        weights = self.weights(stage)  # of old records it is not known
        return record.get("weights", weights) == weights

    def weights(self, stage: str) -> dict[str, dict[str, Any]]:
        """Returns step and hash of the checkpoints that `stage` gives or reads.

        Raises:
          InputError: one of them is damaged.
        """
        found = {}
        names = [name for name in self._pinning_stages if name in SECTIONS[stage]]
        if "sample" in SECTIONS[stage]:
            names += [n for n in ENERGIES if n in self._config["sample"]["samplers"]]
        for name in names:
            best = best_weights(self.path / name / "checkpoints")
            if best:
                found[name] = best._asdict()
        return found

    def _files(self, stage: str) -> list[str]:
        """Without them a stage is not done, whatever the records say."""
        if stage == "sample":
            names = ("base", *self._config["sample"]["samplers"])
            return [f"samples/{name}.npz" for name in names]
        return ["evaluation/arrays.npz"] if stage == "evaluate" else []

    def results(self) -> dict[str, Any]:
        """Returns the content of results.json."""
        return {"metrics": {}, "run": {}} | (self._read_json("results.json") or {})

    def seal_data(self, seal: Mapping[str, Any]) -> None:
        """Refuses other data than trained stages have read, else records them.

        Args:
          seal: of the data of this call, from `data_seal.of`.

        Raises:
          InputError: naming what differs.
        """
        before = self._read_json(data_seal.FILE)
        if before is not None and not data_seal.is_seal(before):
            raise InputError(
                f"{self.path / data_seal.FILE} is not one of ours: "
                + CURES[data_seal.FILE]
            )
        if before == seal:
            return
        if before and self._started():
            raise InputError(
                f"--workdir={self.path} was made with other data:\n  "
                + "\n  ".join(data_seal.differences(before, seal))
                + "\nBring the old files back (config.data.dir), or give another "
                f"--workdir. To go on with these, delete {data_seal.FILE} there."
            )
        self.write_json(data_seal.FILE, seal)

    def _started(self) -> dict[str, int]:
        """The newest step of the pinning stages that have left a checkpoint."""
        steps = {
            stage: saved_steps(self.path / stage / "checkpoints")
            for stage in self._pinning_stages
        }
        return {stage: max(found) for stage, found in steps.items() if found}

    def _lengths_from(self, stage: str, step: int) -> list[int]:
        """The lengths before that a stage has not yet gone beyond."""
        lengths = [length["num_steps"] for length in self.earlier(stage)]
        return [num_steps for num_steps in lengths if num_steps >= step]

    def _extend(self, before: Mapping[str, Any], started: Collection[str]) -> None:
        """Records which settings the checkpoints that are there were saved with."""
        for stage in started:
            old = config_lib.fingerprint(before, SECTIONS[stage])
            lengths = self.earlier(stage)
            known = [self.fingerprint(stage), *(e["fingerprint"] for e in lengths)]
            if old not in known:
                length = {"num_steps": before[stage]["num_steps"], "fingerprint": old}
                self._extended[stage] = [length]
                self.write_json(f"{stage}/{EXTENDED}", {"lengths": [*lengths, length]})

    def add_results(
        self,
        stage: str,
        metrics: Mapping[str, Estimate],
        wall_seconds: float,
        environment: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        **parts: Mapping[str, Any],
    ) -> None:
        """Replaces a stage's metrics in results.json and marks the stage as done.

        Args:
          stage: its name.
          metrics: what it measured.
          wall_seconds: what it took.
          environment: where it ran, if not here and now.
          weights: which its numbers are of, if not those that are in the folder.
          **parts: of results.json beside metrics and run, whole.
        """
        results = self.results() | parts
        names = results["run"].get("metric_names", {})
        for name in names.get(stage, []):  # a refused one must not survive
            results["metrics"].pop(name, None)
        results["metrics"] |= {
            name: estimate.as_json() for name, estimate in metrics.items()
        }
        seconds = results["run"].get("wall_seconds", {})
        stages = results["run"].get("stages", {})
        stages[stage] = {  # each may have run with other settings and elsewhere
            "fingerprint": self.fingerprint(stage),
            "config": {  # a VAE that was given has no energy of pictures
                name: self._config[name]
                for name in SECTIONS[stage]
                if name in self._config
            },
            "weights": self.weights(stage) if weights is None else dict(weights),
            "environment": environment or self._environment,
        }
        if lengths := self.earlier(stage):
            stages[stage]["extended_from"] = [e["num_steps"] for e in lengths]
        if stage in self._pinning_stages:  # trained: who knows what others measured
            _drop_unweighted(stages, stage)
        results["run"] = {
            **self._environment,  # of the last call, as is the config
            "config": self._config,
            "seed": self._config["seed"],
            "wall_seconds": seconds | {stage: round(wall_seconds, 2)},
            "metric_names": names | {stage: list(metrics)},
            "stages": stages,
        }
        self.write_json("results.json", results)

    def unmark(self, stage: str) -> None:
        """Forgets that `stage`, and what builds on it, has ended.

        The numbers stay until others replace them, and so do the settings of theirs.
        """
        results = self.results()
        for name in built_on(stage):
            results["run"].get("stages", {}).get(name, {}).pop("fingerprint", None)
        self.write_json("results.json", results)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file at once: a reader sees the old one or the new one."""
        if self._is_writer:
            whole_file.write_json(self.path / name, content, indent=2)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        return read_json(self.path, name)

    def _adopt_config(self, may_extend: Collection[str]) -> None:
        """Refuses a config that trained stages contradict, else records it."""
        if before := self._read_json("config.json"):
            started = self._started()
            pinned = tuple({name for stage in started for name in SECTIONS[stage]})
            if changes := config_lib.changes(before, self._config, pinned):
                lengths = {
                    s: self._lengths_from(s, step) for s, step in started.items()
                }
                own = {s for s in may_extend if not extension.is_given(self.path / s)}
                longer = extension.stages_of(changes, self._config, own, lengths)
                if not longer:
                    lines = config_lib.differences(before, self._config, pinned)
                    raise InputError(
                        f"--workdir={self.path} was made with another config:\n  "
                        + "\n  ".join(lines)
                        + "\nGive the old values, or another --workdir."
                    )
                extension.check(longer, before, self._config, started)
                self._extend(before, started)
        self.write_json("config.json", self._config)
        self.write_json("environment.json", self._environment)


def _drop_unweighted(stages: dict[str, Any], trained: str) -> None:
    """Forgets later stages whose records are too old to say which weights they read."""
    for name in built_on(trained)[1:]:
        if "weights" not in stages.get(name, {}):
            stages.pop(name, None)
