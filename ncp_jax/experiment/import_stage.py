"""Stage 1 from elsewhere: a checkpoint of the reference NVAE, or another run's."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ncp_jax.errors import InputError, local_path
from ncp_jax.experiment.pretrained import given
from ncp_jax.experiment.pretrained.given import ORIGIN
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup import data_seal
from ncp_jax.experiment.setup.run_files import read_json
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import SECTIONS
from ncp_jax.models.nvae import checkpoint, torch_file
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.records import run_records
from ncp_jax.training.checkpoint_records import (
    DamagedCheckpoint,
    best_weights,
    saved_steps,
)
from ncp_jax.training.run_log import read_metrics


def with_its_model(config: ConfigDict) -> ConfigDict:
    """Returns the config with the model of the file that `vae.checkpoint` names.

    Raises:
      InputError: if the file cannot be read, or its model is of other data.
    """
    module, _ = _read(config.vae.checkpoint)
    for field, found in (("shape", module.data_shape), ("num_bits", module.num_bits)):
        if config.data[field] != found:
            raise InputError(
                f"{config.vae.checkpoint} is a model of data with {field} = {found}: "
                f"give --config.data.{field}={str(found)!r} and the data set that it "
                f"was trained on, not {config.data[field]}"
            )
    fields = {name: getattr(module, name) for name in config_lib.VAES["nvae"]}
    for name in ("dtype", "is_rematerialized"):  # how to compute, not what
        default = config_lib.VAES["nvae"][name]
        fields[name] = config.vae.model.get(name, default)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.vae.model = ConfigDict({"name": "nvae", **fields})
    return config


def import_vae(experiment: Experiment) -> None:
    """Writes the file's model as what stage 1 would have left."""
    settings, workdir = experiment.config.vae, experiment.workdir
    with experiment.checkpoints("vae") as checkpoints:
        task, state = experiment.vae_task()
        restored = checkpoints.restore_latest(state)
        if restored and workdir.is_done("vae"):
            print(f"import: complete, {settings.checkpoint}")
            return
        _, variables = _read(settings.checkpoint)
        params = variables.pop("params")
        averages = None
        if state.averages is not None:
            averages = {"params": params, "batch_stats": variables["batch_stats"]}
        state = state.replace(
            step=jnp.asarray(settings.num_steps, jnp.int32),
            params=params,
            model_state=variables,
            averages=averages,
        )
        loss = given.save(experiment, checkpoints, task, state, settings.checkpoint)
        workdir.add_results("vae", {}, checkpoints.wall_seconds())
        print(f"import: {settings.checkpoint}, held-out negative ELBO {loss:.2f} nats")


def take_over(experiment: Experiment) -> None:
    """Copies the complete stage 1 of the run in `vae.workdir`, unless that is done.

    Raises:
      InputError: if that run has other settings, other data or another stage 1 than
        this one, has not ended its own, or is damaged.
    """
    source = Path(local_path("config.vae.workdir", experiment.config.vae.workdir))
    path, copy = experiment.path, experiment.path / "vae.tmp"
    if saved_steps(path / "vae" / "checkpoints"):
        check_taken(experiment)
        return
    given.check_one_process("stage 1")
    _check_source(experiment, source)
    try:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source / "vae", copy)
        (copy / ORIGIN).write_text(json.dumps({"workdir": str(source.absolute())}))
        experiment.check_stage_1(copy / "checkpoints")
    except (InputError, OSError) as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise InputError(
            f"config.vae.workdir={source}: its stage 1 cannot be taken over: "
            f"{str(error).replace(str(copy), str(source / 'vae'))}"
        ) from error
    _take_records(experiment, source, copy)
    shutil.rmtree(path / "vae", ignore_errors=True)  # a folder without a checkpoint
    os.replace(copy, path / "vae")  # last: it says that all is here
    print(f"vae: taken over from {source}")


def check_taken(experiment: Experiment) -> None:
    """Whether the stage 1 that is here, if any, is that of `vae.workdir`.

    Raises:
      InputError: it is another, or there is none where `vae.workdir` says.
    """
    source = Path(local_path("config.vae.workdir", experiment.config.vae.workdir))
    path = experiment.path / "vae"
    there = source / "vae" / "checkpoints"
    if not there.is_dir():
        try:
            origin = json.loads((path / ORIGIN).read_bytes())
        except (OSError, ValueError):
            origin = None
        if origin == {"workdir": str(source.absolute())}:
            print(f"vae: was taken over from {source}, which is no longer there")
            return
        raise InputError(
            f"config.vae.workdir={source} has no stage 1, and {path} was not taken "
            "over from there: mend the path, or leave config.vae.workdir out"
        )
    here = best_weights(path / "checkpoints")
    try:
        is_other = here is not None and best_weights(there) != here
    except DamagedCheckpoint as damage:
        print(f"vae: {path} is read, not config.vae.workdir={source}: {damage}")
        return
    if is_other:
        raise InputError(
            f"config.vae.workdir={source} has another stage 1 than {path}, which was "
            "there before: leave config.vae.workdir out, or give another --workdir"
        )


def _check_source(experiment: Experiment, source: Path) -> None:
    """Whether a complete stage 1 of these settings and data is there."""
    num_steps = experiment.config.vae.num_steps
    if not (source / "vae" / "checkpoints" / str(num_steps)).exists():
        raise InputError(
            f"config.vae.workdir={source} has no stage 1 of {num_steps} steps: run "
            f"--stage=vae with --workdir={source} first"
        )
    before = read_json(source, "config.json")
    if before is None:
        raise InputError(
            f"config.vae.workdir={source} has no config.json, which says how its "
            f"stage 1 was trained: run --stage=vae with --workdir={source} again"
        )
    mine = config_lib.as_json(experiment.config)
    if lines := config_lib.differences(before, mine, SECTIONS["vae"]):
        raise InputError(
            f"config.vae.workdir={source} was made with another config:\n  "
            + "\n  ".join(lines)
        )
    seal = experiment.data_seal
    trained_on = read_json(source, data_seal.FILE)
    if trained_on and data_seal.is_seal(trained_on) and trained_on != seal:
        raise InputError(
            f"config.vae.workdir={source} was trained on other data:\n  "
            + "\n  ".join(data_seal.differences(trained_on, seal))
        )


def _take_records(experiment: Experiment, source: Path, copy: Path) -> None:
    """Copies what the other run has written down of its stage 1."""
    path = experiment.path
    records = [r for r in read_metrics(source / "metrics.jsonl") if r["stage"] == "vae"]
    with (path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    if (source / "events" / "vae").exists():
        events = path / "events" / "vae"
        shutil.copytree(source / "events" / "vae", events, dirs_exist_ok=True)
    found = run_records.read_json(
        source / "results.json", run_records.CURES["results.json"]
    )
    run = (found or {}).get("run", {})
    try:  # where it was trained, and how long
        seconds = float(run["wall_seconds"]["vae"])
        there = dict(run["stages"]["vae"]["environment"])
    except (LookupError, TypeError, ValueError):
        return  # nobody knows; what is copied is whole
    weights = best_weights(copy / "checkpoints")
    taken = {"vae": weights._asdict()} if weights else {}
    experiment.workdir.add_results("vae", {}, seconds, there, taken)


def _read(path: str) -> tuple[NVAE, dict[str, Any]]:
    return checkpoint.from_checkpoint(
        torch_file.load(local_path("config.vae.checkpoint", path))
    )
