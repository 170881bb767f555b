"""The stage that sets priors side by side on the run's frozen VAE."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import hierarchy, one_vector, protocol, resampled
from ncp_jax.comparison.examples import Examples, Scores
from ncp_jax.comparison.one_vector import Compared, OneVector
from ncp_jax.comparison.results import Comparison
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.data import datasets
from ncp_jax.errors import InputError
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import modes
from ncp_jax.experiment import chosen_rows, picture_scores
from ncp_jax.experiment.setup.wiring import Experiment
from ncp_jax.priors import ex_post
from ncp_jax.priors.ex_post.contract import PARTS, Fit
from ncp_jax.priors.ex_post.rejection import LARS
from ncp_jax.training.ncp.signal import SignalSettings

FIELDS = tuple(field.name for field in dataclasses.fields(ComparisonSettings))


def check(experiment: Experiment) -> None:
    """Refuses, before anything is trained, what the comparison could not use.

    Raises:
      InputError: a prior needs what the VAE has not, or is to reweight one that stage 1
        has learned without a density; or the feature network cannot be read.
    """
    names = experiment.config.compare.names or ex_post.NAMES
    if _is_hierarchy(experiment):
        hierarchy.check_names(experiment.config.compare.names)
    elif any(map(ex_post.needs_posterior, names)) and not hasattr(
        experiment.vae_module, "posterior"
    ):
        raise InputError(
            "config.compare.names: 'vamp' is a mixture of q(z | x), which the model "
            f"{experiment.config.vae.model.name!r} of this kind does not have: name "
            "the others"
        )
    if not _is_hierarchy(experiment):  # whose rows are called when groups are known
        rows = [_row(experiment, name) for name in names]
        resampled_by = experiment.config.compare.resampled_by
        resampled.check(resampled_by, rows, experiment.is_deterministic)
    _check_base(experiment)
    picture_scores.load_net(experiment)


def compare(experiment: Experiment) -> Comparison:
    """Fits the priors that the settings name and measures all alike.

    Raises:
      InputError: there is no stage 1, or its groups have no signal.
    """
    settings = experiment.config.compare
    model, how, of_model = _of_groups(experiment)
    net = picture_scores.load_net(experiment)
    scores, about = None, {"split": settings.split, "seed": experiment.config.seed}
    about |= of_model
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
        how,
        experiment.key("compare"),
        ComparisonSettings(**{name: settings[name] for name in FIELDS}),
        num_fits=settings.num_fits,
        resampled_by=settings.resampled_by,
        folder=experiment.path,
        about=about,
    )


def _is_hierarchy(experiment: Experiment) -> bool:
    return sum(block.num_groups for block in experiment.blocks) > 1


def _of_groups(
    experiment: Experiment,
) -> tuple[Compared, dict[str, Fit], Mapping[str, Any]]:
    """The VAE as it is compared, what fits each prior, and what results say of both."""
    vae, settings = experiment.load_vae(), experiment.config.compare
    if not _is_hierarchy(experiment):
        model = one_vector.of(vae)
        return model, _fits(experiment), _of_learned_prior(experiment, model)
    asked = SignalSettings(**settings.directions.to_dict())
    of_groups = hierarchy.of(
        vae,
        experiment.dataset.train,
        experiment.prepare,
        rng.stream(experiment.key("compare"), "directions"),
        asked,
        experiment.path / "priors",
    )
    changes = settings.priors.to_dict()
    asked_for = {n: changes.get(n) or {} for n in settings.names or hierarchy.NAMES}
    how = {
        name: ex_post.shortened(fit, settings.max_steps, settings.max_draws)
        for name, fit in hierarchy.fits_of(of_groups.groups, asked_for, changes).items()
    }
    return of_groups, how, {"groups": hierarchy.about(of_groups)}


def _fits(experiment: Experiment) -> dict[str, Fit]:
    """What fits each prior; of names () all that there are."""
    settings = experiment.config.compare
    changes = settings.priors.to_dict()
    return {
        _row(experiment, name): ex_post.shortened(
            ex_post.settings_of(name, changes.get(name), changes),
            settings.max_steps,
            settings.max_draws,
        )
        for name in settings.names or ex_post.NAMES
    }


def _row(experiment: Experiment, name: str) -> str:
    """What a prior is called: the VAE's own is no Gaussian where stage 1 learned it."""
    learned = experiment.config.vae.prior
    is_own = name == "gaussian" and learned != "gaussian"
    return f"joint_{learned}" if is_own else name


def _check_base(experiment: Experiment) -> None:
    """Refuses to reweight a base prior that has a bound in the place of a density."""
    if experiment.config.vae.prior != "snis":
        return
    settings = experiment.config.compare
    for name in settings.names or ex_post.NAMES:
        how = ex_post.settings_of(name, settings.priors.to_dict().get(name))
        if _reweights_that_of_stage_1(how):
            raise InputError(
                f"prior {name!r} reweights that of stage 1, and config.vae.prior = "
                "'snis' has no density, only a bound: name others, as with "
                "--config.compare.names=\"('gaussian','gmm','flow')\""
            )


def _reweights_that_of_stage_1(how: Any) -> bool:
    """Whether a `Fit`, or a part of it, has no base of its own."""
    parts = [getattr(how, part) for part in PARTS if hasattr(how, part)]
    return any(part is None or _reweights_that_of_stage_1(part) for part in parts)


def _of_learned_prior(experiment: Experiment, model: OneVector) -> Mapping[str, Any]:
    """What the results say of a prior that stage 1 has learned."""
    if experiment.config.vae.prior == "gaussian":
        return {}
    base = model.base()
    about = {
        "stage_1_prior": experiment.config.vae.prior,
        "stage_1_density": base.density,
    }
    if isinstance(base, LARS):
        about["stage_1_log_z"] = float(base.log_z)
        about["stage_1_log_z_stderr"] = float(base.log_z_stderr)
    return about


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
