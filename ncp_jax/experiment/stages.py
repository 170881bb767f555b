"""The composition root: runs the stages of an experiment in one folder.

Each stage writes its own part of the workdir and reads only the parts before it.
"""

import contextlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import ncp_jax
from ncp_jax import parallel
from ncp_jax.errors import InputError, local_path
from ncp_jax.evaluation import likelihood
from ncp_jax.experiment import (
    benchmark_stage,
    compare_stage,
    evaluate_stage,
    export_stage,
    import_stage,
    picture_scores,
    sample_stage,
    train_stage,
)
from ncp_jax.experiment.pretrained import training_state, weights_export, weights_import
from ncp_jax.experiment.setup import budget, schema, validation, wiring
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.setup.workdir import Workdir
from ncp_jax.experiment.vaebm import energies
from ncp_jax.pages import comparison_page, priors_page, run_page

STAGES = (
    *("all", "vae", "import", "ncp", "vaebm", "sample", "evaluate"),
    *("compare", "report", "export", "benchmark"),
)
MEASURING = {"sample": sample_stage.sample, "evaluate": evaluate_stage.evaluate}
# Which stages of training a call may make longer: none of before what it trains.
MAY_EXTEND = {"all": ("vae", "ncp"), "vae": ("vae", "ncp"), "ncp": ("ncp",)}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(
    config: ConfigDict, workdir: Path, stage: str = "all", command: str = ""
) -> None:
    """Runs one stage, or all that are not complete.

    Args:
      config: settings, from `config.default()` on.
      workdir: folder of the run; created if missing.
      stage: one of `STAGES`.
      command: that asks for it; kept beside weights that are exported.

    Raises:
      InputError: for anything that the caller can mend.
      training.Preempted: after SIGTERM or SIGINT during training, once saved.
    """
    if stage not in STAGES:
        raise InputError(f"--stage must be one of {', '.join(STAGES)}; got {stage!r}")
    config = schema.checked(config)
    validation.validate(config)
    validation.check_stage(config, stage)
    if stage == "report":  # needs files only: neither the data nor the workdir's lock
        if config.report.workdirs:
            names = [name.strip() for name in config.report.workdirs.split(",")]
            workdirs = [local_path("report.workdirs", name) for name in names if name]
            print(f"report: {comparison_page.write(workdirs, workdir)}")
        else:
            report(workdir)
        return
    parallel.check_devices()
    if jax.process_count() > 1 and stage not in ("vae", "ncp"):
        raise InputError(
            "several processes train together: --stage=vae, then --stage=ncp; what "
            "follows is for one process, without the variables that join them"
        )
    is_given = config.vae.checkpoint or config.vae.pretrained
    if (stage == "vae" and config.vae.checkpoint) or (
        stage == "import" and not is_given
    ):
        raise InputError(
            "--stage=import takes the model from --config.vae.checkpoint=FILE.pt, or "
            "from --config.vae.pretrained=NAME, and --stage=vae trains one: give both "
            "or neither; --stage=all does either"
        )
    if config.vae.checkpoint:
        config = import_stage.with_its_model(config)
    elif config.vae.pretrained:
        config = weights_import.with_its_training(config)
    budget.check(config)
    wiring.check_networks(config)
    if stage == "benchmark":  # seconds do not depend on the data
        dataset = wiring.noise_for_data(config)
    else:
        dataset = wiring.load_data(config)
    folder = Workdir(
        workdir,
        config_lib.as_json(config),
        environment(),
        parallel.is_writer(),
        may_extend=MAY_EXTEND.get(stage, ()),
    )
    with contextlib.closing(folder):
        print(f"device: {jax.device_count()} x {jax.devices()[0].device_kind}")
        experiment = Experiment(config, folder, dataset)
        if stage != "benchmark":
            folder.seal_data(experiment.data_seal)
        is_compared = stage == "compare" or (stage == "all" and config.compare.names)
        if stage == "all" and not is_compared:
            experiment.check_batch_sizes()
        if is_compared:
            compare_stage.check(experiment)
        elif stage == "all" and not folder.is_done("evaluate"):
            picture_scores.load_net(experiment)  # or an error, before hours of training
        if config.vae.pretrained and stage != "benchmark":
            weights_import.take(experiment)
        elif stage == "import" or (stage == "all" and config.vae.checkpoint):
            import_stage.import_vae(experiment)
        elif config.vae.workdir and stage in ("all", "vae", "ncp", "compare"):
            import_stage.take_over(experiment)
        elif config.vae.workdir and stage != "benchmark":
            import_stage.check_taken(experiment)
        if config.vae.resume and stage in ("all", "vae"):
            training_state.take(experiment)
        elif config.vae.init_from and stage in ("all", "vae"):
            weights_import.begin(experiment)
        if stage == "vae" or (stage == "all" and not config.vae.checkpoint):
            train_stage.train(experiment, "vae")
        if is_compared:
            if stage == "compare" or not folder.is_done("compare"):
                compare(experiment)
        else:
            _reweight(experiment, stage, command)
        if stage in ("all", "compare"):
            report(workdir)


def _reweight(experiment: Experiment, stage: str, command: str) -> None:
    """Runs what follows stage 1, but for the comparison of priors."""
    folder = experiment.workdir
    if stage in ("all", "ncp"):
        train_stage.train(experiment, "ncp")
    if stage == "vaebm" or (stage == "all" and energies.named(experiment)):
        energies.train(experiment)
    for name in MEASURING:
        if stage == name or (stage == "all" and not folder.is_done(name)):
            measure(experiment, name)
    if stage in ("all", "evaluate"):
        print(run_page.summary_table(folder.results()))
    if stage == "benchmark":
        benchmark(experiment)
    if stage == "export" and experiment.config.export.format == "weights":
        weights_export.export(experiment, command)
    elif stage == "export" and experiment.config.export.format == "state":
        training_state.export(experiment, command)
    elif stage == "export":
        export_stage.export(experiment)


def report(workdir: Path) -> None:
    """Writes the pages of a run from its files."""
    if priors_page.is_compared(workdir):  # before the page that links to it
        print(f"report: {priors_page.write(workdir)}")
    print(f"report: {run_page.write(workdir)}")


def compare(experiment: Experiment) -> None:
    """Fits priors side by side and records what was found."""
    folder, start = experiment.workdir, time.monotonic()
    folder.unmark("compare")
    found = compare_stage.compare(experiment).as_json()
    seconds = time.monotonic() - start
    folder.add_results("compare", {}, seconds, **{priors_page.KEY: found})


def measure(experiment: Experiment, stage: str) -> None:
    """Runs one stage of `MEASURING` and records what it found.

    Raises:
      InputError: what it reads is not there, or of other settings.
    """
    folder, start = experiment.workdir, time.monotonic()
    if stage == "evaluate" and not folder.is_done("sample"):
        raise InputError(
            f"{experiment.path / 'samples'} is not of these settings, not of the "
            "weights that are there now, or not whole: run --stage=sample first"
        )
    folder.unmark(stage)  # its files are replaced one by one
    estimates, parts = MEASURING[stage](experiment), {}
    if stage == "evaluate" and experiment.is_deterministic:
        parts["likelihoods"] = {"none": likelihood.NONE}
    folder.add_results(stage, estimates, time.monotonic() - start, **parts)


def benchmark(experiment: Experiment) -> None:
    """Times what the settings ask for, on the machine as it is."""
    benchmark_stage.benchmark(experiment, environment())


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code that runs."""
    return {
        "ncp_jax": ncp_jax.__version__,  # all that is known of an installed package
        "git_commit": _git_commit(Path(__file__).parents[2]),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
    }


def _git_commit(root: Path) -> str:
    """The commit of a checkout, "-dirty" if it was changed; "unknown" without one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        if not (root / ".git").exists():  # installed, perhaps in another repository
            return "unknown"
        out = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # no git here, or a folder of another user
        return "unknown"
    return out.stdout.strip() or "unknown"
