"""Stage 1 from elsewhere: a checkpoint of the reference NVAE, or another run's."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import SECTIONS
from ncp_jax.models.nvae import checkpoint, torch_file
from ncp_jax.models.nvae.model import NVAE
from ncp_jax.training.run_log import RunLog, read_metrics


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
        state, metrics = jax.jit(task.validate)(task.place(state), task.data)
        valid = jax.device_get(metrics)
        if not np.isfinite(valid["loss"]).all():
            raise InputError(
                f"{settings.checkpoint} has a held-out loss of {valid['loss']} on "
                f"{experiment.config.data.name}: its weights or the data are broken"
            )
        log = RunLog(experiment.path, "vae", 0, settings.num_steps)
        with contextlib.closing(log):
            log.write(settings.num_steps, "valid", valid)
        loss = float(np.sum(valid["loss"]))
        checkpoints.save(settings.num_steps, task.collect(state), loss)
        checkpoints.wait()
        workdir.add_results("vae", {}, checkpoints.wall_seconds())
        print(f"import: {settings.checkpoint}, held-out negative ELBO {loss:.2f} nats")


def take_over(experiment: Experiment) -> None:
    """Copies the complete stage 1 of the run in `vae.workdir`, unless that is done.

    Raises:
      InputError: if that run has other settings of stage 1, or has not ended it.
    """
    source, path = Path(experiment.config.vae.workdir), experiment.path
    if (path / "vae").exists():
        return
    if jax.process_count() > 1:
        raise InputError(
            "stage 1 is taken over by one process: run --stage=vae without the "
            "variables that join several"
        )
    num_steps = experiment.config.vae.num_steps
    if not (source / "vae" / "checkpoints" / str(num_steps)).exists():
        raise InputError(
            f"config.vae.workdir={source} has no stage 1 of {num_steps} steps: run "
            f"--stage=vae with --workdir={source} first"
        )
    before = json.loads((source / "config.json").read_bytes())
    mine = config_lib.as_json(experiment.config)
    if lines := config_lib.differences(before, mine, SECTIONS["vae"]):
        raise InputError(
            f"config.vae.workdir={source} was made with another config:\n  "
            + "\n  ".join(lines)
        )
    records = [r for r in read_metrics(source / "metrics.jsonl") if r["stage"] == "vae"]
    with (path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    if (source / "events" / "vae").exists():
        events = path / "events" / "vae"
        shutil.copytree(source / "events" / "vae", events, dirs_exist_ok=True)
    if (source / "results.json").exists():  # where it was trained, and how long
        run = json.loads((source / "results.json").read_bytes())["run"]
        if record := run.get("stages", {}).get("vae"):
            seconds, there = run["wall_seconds"]["vae"], record["environment"]
            experiment.workdir.add_results("vae", {}, seconds, there)
    shutil.copytree(source / "vae", path / "vae.tmp", dirs_exist_ok=True)
    os.replace(path / "vae.tmp", path / "vae")  # last: it says that all is here
    print(f"vae: taken over from {source}")


def _read(path: str) -> tuple[NVAE, dict[str, Any]]:
    return checkpoint.from_checkpoint(torch_file.load(path))
