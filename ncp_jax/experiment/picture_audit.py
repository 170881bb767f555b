"""The audit of a run: which pictures tell decoded posterior draws from prior draws."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets, pixels
from ncp_jax.evaluation import audit, diagnostics
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.experiment import chosen_rows
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.pages.parts import pictures

Array = jax.Array


def measure(
    experiment: Experiment,
    vae: LatentVariableModel,
    samplers: Mapping[str, np.ndarray],
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Bounds from below what the base prior, and each sampler, leaves to be found.

    Args:
      experiment: the run.
      vae: its model.
      samplers: pictures [n, *data_shape] by name, as `stored` keeps them.

    Returns:
      Estimates by name, see `audit.bounds`; and arrays for the page: the curve over the
      number of groups from q, `audit_curve` [J, 2] (value, standard error) at
      `audit_groups` [J]; the same of each sampler, `audit_NAME` [1, 2]; a note.
    """
    settings = experiment.config.evaluate
    key = rng.stream(experiment.key("evaluate"), "audit")
    of_q, hybrids = _decoded(experiment, vae, rng.stream(key, "decode"))
    print(
        f"evaluate: audits {len(hybrids) + len(samplers)} kinds of pictures, "
        f"{len(of_q):,} of each"
    )
    found = audit.bounds(
        rng.stream(key, "bounds"),
        of_q,
        hybrids,
        samplers,
        num_steps=settings.audit_num_steps,
    )
    arrays: dict[str, Any] = {
        f"audit_{name}": diagnostics.as_rows([found[f"audit_jsd_{name}"]])
        for name in ("base", *samplers)
    }
    if len(hybrids) > 1:
        curve = [found[f"audit_jsd_hybrid/{j}"] for j in hybrids]
        arrays["audit_curve"] = diagnostics.as_rows(curve)
        arrays["audit_groups"] = np.array([*hybrids])
    counts = {name: len(drawn) for name, drawn in samplers.items()}
    arrays["note_audit"] = np.array(_note(len(of_q), counts))
    return found, arrays


def stored(experiment: Experiment, decoded: np.ndarray) -> np.ndarray:
    """What is kept of decoded means: pictures in 8 bits, points as they are."""
    return pictures.to_uint8(decoded) if experiment.has_pictures else decoded


def _decoded(
    experiment: Experiment, vae: LatentVariableModel, key: Array
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Decoded posterior draws [N, *data_shape] of training examples, and hybrids."""
    settings, train = experiment.config.evaluate, experiment.dataset.train
    num_groups = sum(block.num_groups for block in vae.blocks)
    groups = audit.groups_of_curve(num_groups, tuple(settings.audit_groups))
    rows = chosen_rows.rows(experiment, "train", settings.audit_num_images)
    size = min(settings.batch_size, len(rows))

    def batch(rows: np.ndarray, key: Array) -> tuple[np.ndarray, np.ndarray]:
        x = train[rows]
        if experiment.config.data.horizontal_flips:  # as stage 2 sees them
            x = pixels.flip_half(rng.stream(key, "flips"), x)
        x = experiment.prepare(rng.stream(key, "prepare"), jax.numpy.asarray(x))
        out = audit.decoded(vae, x, groups, rng.stream(key, "draws"))
        return jax.tree.map(lambda leaf: stored(experiment, np.asarray(leaf)), out)

    batches = datasets.padded_batches(rows, size)
    of_q, hybrids = diagnostics.over_examples(batch, batches, key)
    return of_q, {j: hybrids[:, i] for i, j in enumerate(groups)}


def _note(num_images: int, counts: Mapping[str, int]) -> str:
    of_samplers = "".join(f", {n:,} of {name}" for name, n in counts.items())
    return (
        f"Lower bound on JSD: a classifier of {num_images:,} decoded encodings of "
        f"training examples against as many base-prior draws{of_samplers}; 70 % train "
        "it, 10 % choose its weights, 20 % judge it. The more of them, the tighter."
    )
