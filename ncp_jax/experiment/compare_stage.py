"""The stage that sets priors side by side on the run's frozen VAE."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import one_vector, protocol
from ncp_jax.comparison.draws import Scores
from ncp_jax.comparison.protocol import Examples
from ncp_jax.comparison.results import Comparison
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import modes
from ncp_jax.experiment import chosen_rows, picture_scores
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.priors import ex_post
from ncp_jax.priors.ex_post.contract import Fit

FIELDS = tuple(field.name for field in dataclasses.fields(ComparisonSettings))


def check(experiment: Experiment) -> None:
    """Refuses, before anything is trained, what the comparison could not use.

    Raises:
      InputError: the VAE has several groups, or says no q(z | x) that a prior is made
        of; or the feature network cannot be read.
    """
    one_vector.check(experiment.blocks)
    names = experiment.config.compare.names or ex_post.NAMES
    if "vamp" in names and not hasattr(experiment.vae_module, "posterior"):
        raise InputError(
            "config.compare.names: 'vamp' is a mixture of q(z | x), which the model "
            f"{experiment.config.vae.model.name!r} of this kind does not have: name "
            "the others"
        )
    picture_scores.load_net(experiment)


def compare(experiment: Experiment) -> Comparison:
    """Fits the priors that the settings name and measures all alike.

    Raises:
      InputError: the VAE has several groups, or there is none.
    """
    settings = experiment.config.compare
    model = one_vector.of(experiment.load_vae())
    net = picture_scores.load_net(experiment)
    scores, about = None, {"split": settings.split, "seed": experiment.config.seed}
    if net is not None:
        reference = picture_scores.reference_of(experiment, net)
        key = rng.stream(experiment.key("compare"), "kid")
        scores = Scores(net, reference, rng.numpy_seed(key))
        about["note"] = (
            f"{net.label} and KID against {reference.moments.count:,} pictures of the "
            f"{experiment.config.evaluate.fid_reference} set, KID against "
            f"{len(reference.features):,} of them. A Frechet distance falls with n: "
            f"only equal n compare. Weights: sha256 {net.sha256[:16]}."
        )
    return protocol.run(
        model,
        _examples(experiment, scores),
        _fits(experiment),
        experiment.key("compare"),
        ComparisonSettings(**{name: settings[name] for name in FIELDS}),
        num_fits=settings.num_fits,
        folder=experiment.path,
        about=about,
    )


def _fits(experiment: Experiment) -> dict[str, Fit]:
    """What fits each prior; of names () all that there are."""
    settings = experiment.config.compare
    changes = settings.priors.to_dict()
    return {
        name: ex_post.shortened(
            ex_post.settings_of(name, changes.get(name)),
            settings.max_steps,
            settings.max_draws,
        )
        for name in settings.names or ex_post.NAMES
    }


def _examples(experiment: Experiment, scores: Scores | None) -> Examples:
    """The run's examples, those of equal kind in an order of the seed's."""
    split = experiment.config.compare.split
    train, held_out = (
        getattr(experiment.dataset, name)[chosen_rows.rows(experiment, name)]
        for name in ("train", split)
    )
    of_points = None
    if experiment.config.data.name == "toy25":
        of_points = partial(_on_modes, datasets.toy25_modes(), datasets.TOY25_STD)
    return Examples(
        train,
        experiment.dataset.valid,
        held_out,
        experiment.prepare,
        experiment.has_pictures,
        scores,
        of_points,
    )


def _on_modes(
    centres: np.ndarray, std: float, points: np.ndarray
) -> Mapping[str, Estimate]:
    share, visited = modes.on_modes(points, centres, std)
    return {"off_mode": share, "modes_visited": visited}
