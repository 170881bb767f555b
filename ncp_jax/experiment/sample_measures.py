"""Measures of samples that a run asks for: scores, MMD, the audit, nearest pictures."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation import diagnostics
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import extractor, latent_mmd, memorisation
from ncp_jax.evaluation.metrics.extractor import FeatureNet
from ncp_jax.experiment import (
    chosen_rows,
    picture_audit,
    picture_scores,
    sample_stage,
)
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.experiment.vaebm import energies
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.pages.parts import pictures
from ncp_jax.priors import generation, group_samplers, ncp_prior
from ncp_jax.priors.standardized import itself
from ncp_jax.training.loop import Prepare

Array = jax.Array
Drawn = Mapping[str, Mapping[str, np.ndarray]]  # of `sample_stage.load_samples`

OF_MMD = ("base", "sir")  # whose latents Table 9 compares with the posterior's
NUM_SHOWN = 8  # samples beside their neighbours


class Measured(NamedTuple):
    """What one kind of measure found."""

    estimates: dict[str, Estimate]
    arrays: dict[str, Any]  # for the page; of them "note_..." says how it was measured


class Collected(NamedTuple):
    """What is kept of one sampler's draws."""

    features: np.ndarray | None  # float32 [n, D], of its pictures
    groups: list[np.ndarray]  # its latents, per group [m, D_k]
    audited: np.ndarray | None = None  # its pictures [l, *data_shape], for the audit


def measure(
    experiment: Experiment,
    ncp: ncp_prior.NCPPrior,
    drawn: Drawn,
    net: FeatureNet | None,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Measures what was drawn, and draws more where a measure needs more.

    Args:
      experiment: the run.
      ncp: its prior.
      drawn: what the stage before has drawn.
      net: of `picture_scores.load_net`.

    Returns:
      Estimates by name; and arrays for the page, of which `note_scores`, `note_mmd`,
      `note_audit` and `note_neighbours` are sentences on how the numbers came about.
    """
    settings, found, vae = experiment.config.evaluate, [], itself(ncp.vae)
    collected = collect(experiment, ncp, drawn, net)
    if net is not None:
        features = {
            name: c.features for name, c in collected.items() if c.features is not None
        }
        scores, note = picture_scores.measure(experiment, vae, net, features)
        found.append(Measured(scores, {"note_scores": np.array(note)}))
    if settings.num_mmd_samples:
        groups = {name: c.groups for name, c in collected.items() if c.groups}
        found.append(_mmd(experiment, vae, groups))
    if settings.audit_num_images:
        audited = {
            name: c.audited for name, c in collected.items() if c.audited is not None
        }
        found.append(Measured(*picture_audit.measure(experiment, vae, audited)))
    num_queries = min(settings.num_neighbour_queries, len(experiment.held_out))
    if experiment.has_pictures and min(_num_images(experiment), num_queries) > 1:
        rows = chosen_rows.rows(experiment, settings.split, num_queries)
        found.append(_memorisation(experiment, vae, drawn, rows))
    estimates = {name: e for m in found for name, e in m.estimates.items()}
    arrays = {name: a for m in found for name, a in m.arrays.items()}
    return estimates, arrays


def collect(
    experiment: Experiment,
    ncp: ncp_prior.NCPPrior,
    drawn: Drawn,
    net: FeatureNet | None,
) -> dict[str, Collected]:
    """Features and latents of as many draws of each sampler as the settings ask for.

    Pictures are drawn, turned into features and forgotten, a batch at a time, but for
    those that are audited.

    Raises:
      InputError: a sampler leaves the finite numbers.
    """
    settings, samplers = experiment.config.evaluate, experiment.config.sample.samplers
    scored = ("base", *(settings.fid_samplers or samplers)) if net else ()
    compared = OF_MMD if settings.num_mmd_samples else ()
    audited = (settings.audit_samplers or samplers) if settings.audit_num_images else ()
    batch_size, collected = experiment.config.sample.batch_size, {}
    for name in ("base", *samplers):
        num_scored = settings.fid_num_images if name in scored else 0
        num_compared = _num_mmd(experiment) if name in compared else 0
        num_audited = settings.audit_num_draws if name in audited else 0
        features: list[np.ndarray] = []
        kept: list[np.ndarray] = []
        latents: list[tuple[np.ndarray, ...]] = []
        seen = 0
        for images, z in draws(
            experiment, ncp, drawn, name, max(num_scored, num_compared, num_audited)
        ):
            if net and seen < num_scored:
                shown = pictures.to_uint8(images[: num_scored - seen])
                features.append(extractor.extract(net, shown, batch_size))
            if seen < num_compared:
                latents.append(tuple(block[: num_compared - seen] for block in z))
            if seen < num_audited:
                shown = images[: num_audited - seen]
                kept.append(picture_audit.stored(experiment, shown))
            seen += len(images)
        joined = [np.concatenate(block) for block in zip(*latents, strict=True)]
        collected[name] = Collected(
            np.concatenate(features) if features else None,
            latent_mmd.groups_of(joined),
            np.concatenate(kept) if kept else None,
        )
    return collected


def draws(
    experiment: Experiment, ncp: ncp_prior.NCPPrior, drawn: Drawn, name: str, num: int
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Yields decoded means [B, *data_shape] and latents [B, ...] of `num` draws.

    First those that the stage before has left, then new ones.  The base prior's are at
    temperature 1: those at another, which are to be looked at, are left out.

    Raises:
      InputError: a new draw is not finite.
    """
    settings = experiment.config.sample
    is_shown_only = name == "base" and (
        settings.temperature != 1.0 or settings.num_readjust_iterations > 0
    )
    num_stored = 0 if is_shown_only else min(num, settings.num_images)
    if num_stored:
        blocks = range(len(itself(ncp.vae).blocks))
        latents = tuple(drawn[name][f"latents_{b}"][:num_stored] for b in blocks)
        yield drawn[name]["images"][:num_stored], latents
    num -= num_stored
    if not num:
        return
    print(f"evaluate: draws {num:,} more by {name!r}")
    ncp = sample_stage.in_dtype(ncp, settings.dtype)
    size = min(settings.batch_size, num)
    draw: ncp_prior.DrawGroup = group_samplers.Base()
    if name != "base":
        num_chains = -(-size // experiment.mesh.size)
        draw = sample_stage.sampler_of(name, settings, ncp, num_chains)
    key = rng.stream(rng.stream(experiment.key("evaluate"), "draws"), name)
    ncp = energies.prior_of(experiment, name, ncp)
    for out in generation.batches(ncp, key, num, size, draw, experiment.mesh):
        images = np.asarray(out.images)
        latents = tuple(np.swapaxes(block, 0, 1) for block in out.latents)
        if not all(np.isfinite(leaf).all() for leaf in (images, *latents)):
            raise InputError(f"sampler {name!r} left the finite numbers")
        yield images, latents


def _mmd(
    experiment: Experiment,
    vae: LatentVariableModel,
    priors: Mapping[str, list[np.ndarray]],
) -> Measured:
    """Held-out encodings, which no discriminator has seen, against the priors.

    And against encodings of as many training examples, which a prior that is q of the
    training set would be like: the floor.
    """
    settings, num = experiment.config.evaluate, _num_mmd(experiment)
    key = rng.stream(experiment.key("evaluate"), "mmd")
    estimates, arrays = latent_mmd.per_group(
        _posterior(experiment, vae, settings.split, num),
        {**priors, "floor": _posterior(experiment, vae, "train", num)},
        seed=rng.numpy_seed(key),
        num_permutations=settings.num_permutations,
    )
    note = (
        f"{num:,} encodings of the {settings.split} set, chosen at random, and as many "
        "draws of each prior; floor: as many encodings of training examples, so what "
        "is not above it says nothing against a prior. Gaussian kernel, its bandwidth "
        "the median distance, on at most 500 principal axes; "
        f"{settings.num_permutations:,} permutations."
    )
    return Measured(estimates, arrays | {"note_mmd": np.array(note)})


def _posterior(
    experiment: Experiment, vae: LatentVariableModel, split: str, num: int
) -> list[np.ndarray]:
    """One z ~ q(z | x) of each of `num` examples at random: per group [num, D_k]."""
    stored = getattr(experiment.dataset, split)
    stored = stored[chosen_rows.rows(experiment, split, num)]
    size = min(experiment.config.evaluate.batch_size, num)
    key = rng.stream(experiment.key("evaluate"), "encode")
    key = rng.stream(key, "training examples") if split == "train" else key
    batches = datasets.padded_batches(stored, size)
    encode = partial(_encode, experiment.prepare, vae)
    return latent_mmd.groups_of(diagnostics.over_examples(encode, batches, key))


@partial(jax.jit, static_argnums=(0,))
def _encode(
    prepare: Prepare, vae: LatentVariableModel, stored: Array, key: Array
) -> tuple[Array, ...]:
    """One z ~ q(z | x) of each stored example, per block [B, n, *latent_shape]."""
    x = prepare(rng.stream(key, "prepare"), stored)
    latents = vae.encode(x, rng.stream(key, "posterior")).latents
    return tuple(block.swapaxes(0, 1) for block in latents)


def _memorisation(
    experiment: Experiment, vae: LatentVariableModel, drawn: Drawn, rows: np.ndarray
) -> Measured:
    """Nearest training pictures, of `rows` of held-out pictures, too.

    Writes samples/neighbours.png.
    """
    train = pictures.as_uint8(experiment.dataset.train)
    samples = {
        name: pictures.to_uint8(d["images"][: len(rows)]) for name, d in drawn.items()
    }
    shown = samples[[*samples][min(1, len(samples) - 1)]][:NUM_SHOWN]
    pictures.save_png(
        experiment.path / "samples" / "neighbours.png",
        memorisation.picture(shown, train),
    )
    split = experiment.config.evaluate.split
    held_out = experiment.held_out[rows]
    decoded = picture_scores.reconstructions(experiment, vae, split, rows)
    samples["floor"] = np.concatenate(list(decoded))
    found = memorisation.measure(samples, pictures.as_uint8(held_out), train)
    estimates, arrays = found
    note = (
        f"Nearest neighbours: among the {len(train):,} training pictures, of "
        f"{len(samples['base']):,} samples each and of {len(held_out):,} {split} "
        "pictures, which are reconstructed, too; Euclidean, at most 64 pixels wide, "
        "the centre of 40 (less of smaller pictures, in proportion)."
    )
    return Measured(estimates, arrays | {"note_neighbours": np.array(note)})


def _num_mmd(experiment: Experiment) -> int:
    """As many draws as there are encodings, of held-out and of training examples."""
    sizes = len(experiment.held_out), len(experiment.dataset.train)
    return min(experiment.config.evaluate.num_mmd_samples, *sizes)


def _num_images(experiment: Experiment) -> int:
    return experiment.config.sample.num_images
