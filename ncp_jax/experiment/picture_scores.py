"""Pictures of a run against real ones by their features: FID or its kin, and KID."""

from collections.abc import Iterator, Mapping
from functools import partial

import jax
import numpy as np

from ncp_jax import rng
from ncp_jax.data import datasets, pixels
from ncp_jax.errors import InputError, local_path
from ncp_jax.evaluation import diagnostics
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import feature_scores
from ncp_jax.evaluation.metrics.extractor import FeatureNet
from ncp_jax.evaluation.metrics.feature_scores import Reference
from ncp_jax.experiment import chosen_rows
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.models.base import LatentVariableModel
from ncp_jax.pages.parts import pictures

Array = jax.Array

OTHER = {"train": "test", "test": "train"}


def load_net(experiment: Experiment) -> FeatureNet | None:
    """Returns the feature network that the settings name, None where they name none.

    Raises:
      InputError: it cannot be read, is of other pictures, or has more features than
        there are pictures.
    """
    settings = experiment.config.evaluate
    if not settings.feature_net:
        return None
    if not experiment.has_pictures:
        raise InputError(
            "config.evaluate.feature_net is for pictures: "
            f"{experiment.config.data.name} has none"
        )
    weights = local_path("config.evaluate.feature_weights", settings.feature_weights)
    net = feature_scores.load(settings.feature_net, weights)
    size = feature_scores.num_features(net, tuple(experiment.config.data.shape))
    counts = {
        "fid_num_images": settings.fid_num_images,
        "fid_num_reference": len(_rows(experiment, settings.fid_reference)),
    }
    for name, count in counts.items():
        if count <= size:
            raise InputError(
                f"config.evaluate.{name} gives {count} pictures, too few for the "
                f"covariance of {net.label}'s {size} features: at least {size + 1} are "
                "needed, or a smaller feature network"
            )
    return net


def measure(
    experiment: Experiment,
    vae: LatentVariableModel,
    net: FeatureNet,
    generated: Mapping[str, np.ndarray],
) -> tuple[dict[str, Estimate], str]:
    """Scores generated pictures, reconstructions and real ones.

    The reference is the training set as the model sees it in training, flips and
    reduced bits included but never binarised (what is scored are grey means), or the
    test set.  Reconstructions are of the reference's own pictures, so they are the
    floor of a perfect prior, which draws z as those pictures encode.  Real pictures are
    of the other set.

    Args:
      experiment: the run.
      vae: its model.
      net: the feature network.
      generated: features [n, D] by sampler.

    Returns:
      Two estimates of each source, see `feature_scores.score`; and a sentence on how
      they came about.
    """
    settings = experiment.config.evaluate
    size, split = experiment.config.sample.batch_size, settings.fid_reference
    rows, num = _rows(experiment, split), settings.fid_num_images
    reference = reference_of(experiment, net)
    # From the end, so that they are not of the pictures that KID compares them with.
    decoded = reconstructions(experiment, vae, split, rows[::-1][:num])
    others = _rows(experiment, OTHER[split])[:num]
    real = _real(experiment, OTHER[split], others)
    features = {
        **generated,
        "floor": feature_scores.features_of(net, decoded, size),
        "real": feature_scores.features_of(net, real, size),
    }
    apart = {"floor": len(rows) - len(reference.features)}
    seed = rng.numpy_seed(rng.stream(experiment.key("evaluate"), "kid"))
    scores = {
        name: feature_scores.score(
            found, reference, seed=seed, num_for_kid=apart.get(name, 0)
        )
        for name, found in features.items()
    }
    estimates = {
        f"{family}_{name}": found[i]
        for i, family in enumerate(feature_scores.families(net))
        for name, found in scores.items()
    }
    known = {name: e for name, e in estimates.items() if e is not None}
    return known, _note(net, reference, split, num)


def reference_of(experiment: Experiment, net: FeatureNet) -> Reference:
    """Features of the reference pictures, or what the run's folder holds of them."""
    split = experiment.config.evaluate.fid_reference
    rows = _rows(experiment, split)
    return feature_scores.reference(
        net,
        partial(_real, experiment, split, rows),
        experiment.path / "evaluation" / "reference",
        batch_size=experiment.config.sample.batch_size,
        num_for_kid=min(feature_scores.KID_PICTURES, len(rows) // 2),
    )


def _note(net: FeatureNet, reference: Reference, split: str, num: int) -> str:
    return (
        f"{net.label} and KID: {num:,} pictures of each sampler (the base prior's at "
        f"temperature 1), rounded to 8 bits, against {reference.moments.count:,} of "
        f"the {split} set; KID from disjoint subsets, against "
        f"{len(reference.features):,} of them. Reconstructions are of the {split} set, "
        f"real pictures of the {OTHER[split]} set. A Frechet distance falls with n: "
        f"only equal n compare. Weights: sha256 {net.sha256[:16]}."
    )


def _rows(experiment: Experiment, split: str) -> np.ndarray:
    """Which pictures of a split are used: at most `fid_num_reference`, at random."""
    most = experiment.config.evaluate.fid_num_reference
    return chosen_rows.rows(experiment, split, most)


def _real(experiment: Experiment, split: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields uint8 pictures [B, H, W, C] as the model sees them, but not binarised."""
    settings, size = experiment.config.data, experiment.config.sample.batch_size
    stored = getattr(experiment.dataset, split)
    key = rng.stream(experiment.key("evaluate"), "flips")
    for i, start in enumerate(range(0, len(rows), size)):
        batch = pictures.as_uint8(stored[rows[start : start + size]])
        if split == "train" and settings.horizontal_flips:
            batch = np.asarray(
                pixels.flip_half(rng.at_step(key, i), jax.numpy.asarray(batch))
            )
        if settings.binarization == "none" and settings.num_bits < 8:
            levels = pixels.quantize(jax.numpy.asarray(batch), settings.num_bits)
            batch = pictures.to_uint8(np.asarray(levels))
        yield batch


def reconstructions(
    experiment: Experiment, vae: LatentVariableModel, split: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields uint8 pictures [B, H, W, C]: E[x | z] at one z ~ q(z | x) of each.

    Args:
      experiment: the run.
      vae: its model.
      split: of the data set.
      rows: which of its examples, [N].
    """
    stored = getattr(experiment.dataset, split)
    key = rng.stream(experiment.key("evaluate"), "decode")
    size = min(experiment.config.evaluate.batch_size, len(rows))
    for i, (batch, mask) in enumerate(datasets.padded_batches(rows, size)):
        decoded, _ = diagnostics.reconstruct_stored(
            experiment.prepare, vae, stored[batch], rng.at_step(key, i)
        )
        yield pictures.to_uint8(np.asarray(decoded)[mask])
