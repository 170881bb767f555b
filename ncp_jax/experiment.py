"""The composition root: runs the stages of an experiment in one folder.

Each stage writes its own part of the workdir and reads only the parts before it.
"""

import contextlib
import json
import os
import platform
import subprocess
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import clu.parameter_overview
import jax
import numpy as np
from ml_collections import ConfigDict

from ncp_jax import (
    benchmark,
    data,
    evaluation,
    pictures,
    plots,
    prior,
    report,
    rng,
    samplers,
    training,
    wiring,
)
from ncp_jax import config as config_lib
from ncp_jax.errors import InputError
from ncp_jax.importance import Estimate
from ncp_jax.metrics import modes
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.run_log import RunLog
from ncp_jax.wiring import Experiment
from ncp_jax.workdir import Workdir

STAGES = ("all", "vae", "ncp", "sample", "evaluate", "report", "benchmark")
SAMPLERS = ("base", "sir", "langevin")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MAX_SHOWN = 64  # pictures of one grid
MAX_RECONSTRUCTED = 32


def run(config: ConfigDict, workdir: Path, stage: str = "all") -> None:
    """Runs one stage, or all that are not complete.

    Args:
      config: settings, from `config.default()` on.
      workdir: folder of the run; created if missing.
      stage: one of `STAGES`.

    Raises:
      InputError: for anything that the caller can mend.
      training.Preempted: after SIGTERM or SIGINT during training, once saved.
    """
    if stage not in STAGES:
        raise InputError(f"--stage must be one of {', '.join(STAGES)}; got {stage!r}")
    config_lib.validate(config)
    if stage == "report":  # needs files only: neither the data nor the workdir's lock
        print(f"report: {report.write(workdir)}")
        return
    dataset = wiring.load_data(config)
    folder = Workdir(workdir, config_lib.as_json(config), _environment())
    with contextlib.closing(folder):
        print(f"device: {jax.device_count()} x {jax.devices()[0].device_kind}")
        experiment = Experiment(config, folder, dataset)
        for name in ("vae", "ncp"):
            if stage in ("all", name):
                train(experiment, name)
        for name, measure in (("sample", sample), ("evaluate", evaluate)):
            if stage == name or (stage == "all" and not folder.is_done(name)):
                start = time.monotonic()
                folder.unmark(name)  # its files are replaced one by one
                estimates = measure(experiment)
                folder.add_results(name, estimates, time.monotonic() - start)
        if stage in ("all", "evaluate"):
            print(report.summary_table(folder.results()))
        if stage == "benchmark":
            time_training_loop(experiment)
        if stage == "all":
            print(f"report: {report.write(workdir)}")


def train(experiment: Experiment, stage: str) -> None:
    """Trains "vae" or "ncp" to its end, from its newest checkpoint if it has one."""
    settings, workdir = experiment.config[stage], experiment.workdir
    vae = experiment.load_vae() if stage == "ncp" else None
    with experiment.checkpoints(stage, vae) as checkpoints:
        task, state = experiment.ncp_task(vae) if vae else experiment.vae_task()
        restored = checkpoints.restore_latest(state)
        if restored and restored.step == settings.num_steps:
            print(f"{stage}: complete, {settings.num_steps} steps")
            if not workdir.is_done(stage):  # killed between the two
                workdir.add_results(stage, {}, restored.metadata["wall_seconds"])
            return
        params = state.params
        if isinstance(params, tuple):  # the stacked discriminators, per block
            params = {f"block_{b}": block for b, block in enumerate(params)}
        print(clu.parameter_overview.get_parameter_overview(params))
        if restored:
            print(f"{stage}: continues from step {restored.step}")
            state = jax.device_put(restored.state)
        log = RunLog(experiment.path, stage, int(state.step), settings.num_steps)
        with contextlib.closing(log):
            training.fit(
                task,
                state,
                checkpoints,
                log,
                num_steps=settings.num_steps,
                steps_per_dispatch=settings.steps_per_dispatch,
                steps_per_eval=settings.steps_per_eval,
            )
        checkpoints.wait()
        workdir.add_results(stage, {}, checkpoints.wall_seconds())


def time_training_loop(experiment: Experiment) -> None:
    """Compares stage 1's loop with a bare scan; writes benchmark.json."""
    settings = experiment.config.vae
    task, state = experiment.vae_task()
    timings = benchmark.training_loop(
        task,
        state,
        steps_per_dispatch=settings.steps_per_dispatch,
        steps_per_eval=settings.steps_per_eval,
        **experiment.config.benchmark,
    )
    experiment.workdir.write_json("benchmark.json", {"vae": timings})
    print(json.dumps(timings, indent=2))


def sample(experiment: Experiment) -> dict[str, Estimate]:
    """Draws by the base prior, SIR and Langevin; writes samples/."""
    settings, ncp = experiment.config.sample, experiment.load_ncp()
    folder = experiment.path / "samples"
    folder.mkdir(exist_ok=True)
    draws = {
        "base": prior.by_base(settings.temperature),
        "sir": prior.by_sir(settings.num_proposals, settings.chunk_size),
        "langevin": prior.by_langevin(
            settings.langevin_step_size, settings.langevin_num_steps
        ),
    }
    estimates: dict[str, Estimate] = {}
    for name, draw in draws.items():
        key = rng.stream(experiment.key("sample"), name)
        out = prior.generate(ncp, key, settings.num_images, settings.batch_size, draw)
        if not np.isfinite(out.images).all():
            raise InputError(
                f"sampler {name!r} left the finite numbers; lower "
                "config.sample.langevin_step_size"
            )
        arrays: dict[str, Any] = {
            f"latents_{b}": z.swapaxes(0, 1) for b, z in enumerate(out.latents)
        }
        info = jax.tree.map(lambda *blocks: np.concatenate(blocks), *out.infos)
        if isinstance(info, samplers.LangevinInfo):
            arrays |= {f: np.mean(v, axis=-1) for f, v in info._asdict().items()}
        np.savez_compressed(folder / f"{name}.npz", images=out.images, **arrays)
        _save_picture(folder / f"{name}.png", out.images, name)
        estimates |= evaluation.sampler_diagnostics(info)
    return estimates


def evaluate(experiment: Experiment) -> dict[str, Estimate]:
    """Measures everything on the test set; writes evaluation/arrays.npz."""
    settings, ncp = experiment.config.evaluate, experiment.load_ncp()
    drawn = _load_samples(experiment)
    key, prepare = experiment.key("evaluate"), experiment.prepare
    test = experiment.dataset.test[: settings.max_examples or None]
    batches = list(data.padded_batches(test, min(settings.batch_size, len(test))))
    estimates, arrays = evaluation.likelihood(
        ncp,
        batches,
        prepare,
        rng.stream(key, "likelihood"),
        num_importance_samples=settings.num_importance_samples,
        num_snis_proposals=settings.num_snis_proposals,
        num_log_z_draws=settings.num_log_z_draws,
        chunk_size=settings.chunk_size,
        log_z_batch_size=settings.log_z_batch_size,
    )
    held_out, ratios = evaluation.contrast_on_held_out(
        ncp,
        batches,
        prepare,
        rng.stream(key, "contrast"),
        num_passes=settings.num_passes,
    )
    on_samples, shown = _compare_samples(experiment, ncp, drawn, test)
    for_plots: dict[str, Any] = arrays | ratios | shown
    if _is_plane(ncp):
        for_plots |= _latent_plane(ncp, drawn, estimates["log_z"].value)
    folder = experiment.path / "evaluation"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "arrays.npz", **for_plots)
    return estimates | held_out | on_samples


def _load_samples(experiment: Experiment) -> dict[str, dict[str, np.ndarray]]:
    drawn = {}
    for name in SAMPLERS:
        path = experiment.path / "samples" / f"{name}.npz"
        if not path.exists():
            raise InputError(f"{path} is missing: run --stage=sample first")
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                drawn[name] = dict(arrays)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}): run --stage=sample again"
            ) from error
    return drawn


def _compare_samples(
    experiment: Experiment,
    ncp: prior.NCPPrior,
    drawn: dict[str, dict[str, np.ndarray]],
    test: np.ndarray,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Sets the samples beside decoded posterior draws, the floor that stage 2 has."""
    num_samples = len(drawn["base"]["images"])
    test = test[: MAX_RECONSTRUCTED if experiment.has_pictures else num_samples]
    decoded, latents = _reconstruct(experiment, ncp.vae, test)
    arrays: dict[str, Any] = {
        f"langevin_{field}": drawn["langevin"][field]
        for field in samplers.LangevinInfo._fields
    }
    if _is_plane(ncp):
        arrays["plane_z_q"] = latents[:, 0]
    if experiment.has_pictures:
        pairs = pictures.pairs(test, decoded, columns=16)
        pictures.save_png(experiment.path / "samples/reconstructions.png", pairs)
        return {}, arrays
    points = {name: draws["images"] for name, draws in drawn.items()}
    points["floor"] = decoded
    arrays |= {f"points_{name}": p for name, p in points.items()}
    arrays["points_data"] = test
    estimates: dict[str, Estimate] = {}
    if experiment.config.data.name == "toy25":
        for name, p in points.items():
            share, visited = modes.on_modes(p, data.toy25_modes(), data.TOY25_STD)
            estimates |= {f"off_mode_{name}": share, f"modes_visited_{name}": visited}
    return estimates, arrays


def _reconstruct(
    experiment: Experiment, vae: LatentVariableModel, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded posterior draws [N, *data_shape] and z of the first block [N, n, ...]."""

    @jax.jit
    def batch(stored: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = experiment.prepare(rng.stream(key, "prepare"), stored)
        mean, latents = evaluation.reconstruct(vae, x, rng.stream(key, "posterior"))
        return mean, latents[0].swapaxes(0, 1)

    size = min(experiment.config.evaluate.batch_size, len(test))
    key = rng.stream(experiment.key("evaluate"), "reconstruct")
    return evaluation.over_examples(batch, data.padded_batches(test, size), key)


def _is_plane(ncp: prior.NCPPrior) -> bool:
    """Whether z is one group in the plane, so that its densities can be drawn."""
    return [block[:2] for block in ncp.vae.blocks] == [(1, (2,))]


def _latent_plane(
    ncp: prior.NCPPrior, drawn: dict[str, dict[str, np.ndarray]], log_z: float
) -> dict[str, Any]:
    """Where each sampler's z lie, and the densities, for one group in the plane."""
    z = {name: draws["latents_0"][:, 0] for name, draws in drawn.items()}
    z["p"] = z.pop("base")
    arrays: dict[str, Any] = {f"plane_z_{name}": points for name, points in z.items()}
    return arrays | evaluation.plane(ncp, np.concatenate(list(z.values())), log_z)


def _save_picture(path: Path, samples: np.ndarray, name: str) -> None:
    """A grid of pictures [N, H, W, C] in [0, 1], or a scatter of points [N, 2]."""
    if samples.ndim == 4:
        shown = pictures.to_uint8(samples[:MAX_SHOWN])
        pictures.save_png(path, pictures.grid(shown, columns=8))
    else:
        (panel,) = plots.points({f"points_{name}": samples})
        path.write_bytes(panel.png)


def _environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code that runs."""
    return {
        "git_commit": _git_commit(Path(__file__).parent.parent),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
    }


def _git_commit(root: Path) -> str:
    """The commit of a checkout, "-dirty" if it was changed; "unknown" without one."""
    if not (root / ".git").exists():  # installed, perhaps inside another repository
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        out = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return out.stdout.strip() or "unknown"
