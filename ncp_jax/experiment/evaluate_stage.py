"""The stage that measures: likelihoods, held-out NCE loss, samples against data."""

from functools import partial
from typing import Any

import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation import diagnostics, held_out
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import modes
from ncp_jax.experiment import chosen_rows, picture_scores, sample_measures
from ncp_jax.experiment.sample_stage import AGAIN, LANGEVIN_FIELDS, load_samples
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.pages.parts import pictures
from ncp_jax.priors import ncp_prior
from ncp_jax.priors.standardized import itself

MAX_RECONSTRUCTED = 32  # pictures
OF_HELD_OUT = (  # settings of `held_out.measure`
    "num_passes",
    "num_importance_samples",
    "num_snis_samples",
    "num_snis_proposals",
    "num_log_z_draws",
    "chunk_size",
    "log_z_batch_size",
    "num_binarizations",
    "max_log_z_stderr",
)


def evaluate(experiment: Experiment) -> dict[str, Estimate]:
    """Measures everything on held-out data; writes evaluation/arrays.npz."""
    settings, ncp = experiment.config.evaluate, experiment.load_ncp()
    drawn = load_samples(experiment)
    net = picture_scores.load_net(experiment)  # or an error, before hours of work
    key = experiment.key("evaluate")
    examples = chosen_rows.held_out(experiment, settings.max_examples)
    batches = list(
        datasets.padded_batches(examples, min(settings.batch_size, len(examples)))
    )
    estimates, arrays = held_out.measure(
        ncp,
        batches,
        experiment.prepare,
        key,
        mesh=experiment.mesh,
        section="config.evaluate.",
        **{name: settings[name] for name in OF_HELD_OUT},
    )
    on_samples, shown = _compare_samples(experiment, ncp, drawn, examples)
    measured, of_samples = sample_measures.measure(experiment, ncp, drawn, net)
    for_plots: dict[str, Any] = arrays | shown | of_samples
    for_plots |= _ess_of_sir(experiment, arrays["groups"])
    if _is_plane(ncp):
        for_plots |= _latent_plane(ncp, drawn, estimates["log_z"].value)
    folder = experiment.path / "evaluation"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "arrays.npz", **for_plots)
    return estimates | on_samples | measured


def _ess_of_sir(experiment: Experiment, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Value and standard error of each group [K, 2], from the stage `sample`."""
    if "sir" not in experiment.config.sample.samplers:
        return {}
    metrics = experiment.workdir.results()["metrics"]
    names = (
        [f"sir_ess/{k}" for k in groups] if "sir_ess" not in metrics else ["sir_ess"]
    )
    if missing := [name for name in names if name not in metrics]:
        raise InputError(
            f"{experiment.path / 'results.json'} lacks {', '.join(missing)}, which the "
            f"stage sample leaves: {AGAIN}"
        )
    found = [
        metrics[name].get(field) for name in names for field in ("value", "stderr")
    ]
    rows = [np.nan if number is None else number for number in found]
    return {"sir_ess": np.array(rows, np.float64).reshape(-1, 2)}


def _compare_samples(
    experiment: Experiment,
    ncp: ncp_prior.NCPPrior,
    drawn: dict[str, dict[str, np.ndarray]],
    examples: np.ndarray,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Sets the samples beside decoded posterior draws, the floor that stage 2 has."""
    examples = examples[: MAX_RECONSTRUCTED if experiment.has_pictures else None]
    decoded, latents = _reconstruct(experiment, ncp.vae, examples)
    arrays: dict[str, Any] = {}
    if "langevin" in drawn:
        fields = {name: drawn["langevin"][name] for name in LANGEVIN_FIELDS}
        arrays = {f"langevin_{name}": course for name, course in fields.items()}
    if _is_plane(ncp):
        arrays["plane_z_q"] = latents[:, 0]
    if experiment.has_pictures:
        pairs = pictures.pairs(pictures.as_uint8(examples), decoded, columns=16)
        pictures.save_png(experiment.path / "samples/reconstructions.png", pairs)
        return {}, arrays
    if decoded.shape[1:] != (2,):  # nothing that a plane could show
        return {}, arrays
    points = {name: draws["images"] for name, draws in drawn.items()}
    points["floor"] = decoded
    arrays |= {f"points_{name}": p for name, p in points.items()}
    arrays["points_data"] = examples
    estimates: dict[str, Estimate] = {}
    if experiment.config.data.name == "toy25":
        for name, p in points.items():
            share, visited = modes.on_modes(
                p, datasets.toy25_modes(), datasets.TOY25_STD
            )
            estimates |= {f"off_mode_{name}": share, f"modes_visited_{name}": visited}
    return estimates, arrays


def _reconstruct(
    experiment: Experiment, vae: LatentVariableModel, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decoded posterior draws [N, *data_shape] and z of the first block [N, n, ...]."""
    size = min(experiment.config.evaluate.batch_size, len(examples))
    key = rng.stream(experiment.key("evaluate"), "reconstruct")
    batch = partial(diagnostics.reconstruct_stored, experiment.prepare, vae)
    return diagnostics.over_examples(
        batch, datasets.padded_batches(examples, size), key
    )


def _is_plane(ncp: ncp_prior.NCPPrior) -> bool:
    """Whether z is one group in the plane, so that its densities can be drawn."""
    if itself(ncp.vae) is not ncp.vae:  # log r is of other coordinates
        return False
    return [block[:2] for block in ncp.vae.blocks] == [(1, (2,))]


def _latent_plane(
    ncp: ncp_prior.NCPPrior, drawn: dict[str, dict[str, np.ndarray]], log_z: float
) -> dict[str, Any]:
    """Where each sampler's z lie, and the densities, for one group in the plane."""
    z = {name: draws["latents_0"][:, 0] for name, draws in drawn.items()}
    z["p"] = z.pop("base")
    arrays: dict[str, Any] = {f"plane_z_{name}": points for name, points in z.items()}
    return arrays | diagnostics.plane(ncp, np.concatenate(list(z.values())), log_z)
