"""Priors side by side for a VAE of one's own: from a frozen model to one page."""

import dataclasses
import operator
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import hierarchy, protocol
from ncp_jax.comparison.examples import Examples, Scores
from ncp_jax.comparison.one_vector import Compared, OneVector
from ncp_jax.comparison.results import Comparison
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.comparison.settings import checked as checked_settings
from ncp_jax.errors import InputError, explained, local_path, number
from ncp_jax.evaluation.metrics import feature_scores
from ncp_jax.evaluation.metrics.feature_scores import KID_PICTURES
from ncp_jax.models.base import LatentVariableModel, is_deterministic
from ncp_jax.pages.parts import pictures
from ncp_jax.priors import ex_post
from ncp_jax.priors.conditional.groups import Groups
from ncp_jax.priors.ex_post.contract import PARTS, Fit
from ncp_jax.records import folder_lock, whole_file
from ncp_jax.training import loop
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import preparation
from ncp_jax.training.ncp.signal import SignalSettings

Array = jax.Array


def compare(
    vae: LatentVariableModel,
    train: np.ndarray | Array,
    valid: np.ndarray | Array,
    test: np.ndarray | Array,
    *,
    priors: Sequence[str] | Mapping[str, Fit | Mapping[str, Any]] = ex_post.NAMES,
    key: Array,
    prepare: Prepare | None = None,
    num_fits: int = 1,
    resampled_by: str = "",
    settings: ComparisonSettings | Mapping[str, Any] | None = None,
    feature_net: str = "",
    feature_weights: str | Path = "",
    folder: str | Path | None = None,
    directions: SignalSettings | None = None,
) -> Comparison:
    """Fits many priors to the encodings of a frozen VAE and measures all alike.

    Gains are differences on the same examples and the same draws of q(z | x), which
    makes them far tighter than the likelihoods.  A prior's `density` says what is
    known of it, and so what its gain means.

    Args:
      vae: a frozen model.  Of one latent group priors are fitted to all of z; of
        several to their signal coordinates, as `comparison.hierarchy` says.
      train: [N, *data_shape] examples whose encodings priors are fitted to.
      valid: [M, *data_shape] that choose the best weights of those that train.
      test: [L, *data_shape] that all is measured on.
      priors: names, of `ncp_jax.priors.ex_post.NAMES`, by default all of them (but
        "vamp" where the VAE has no `posterior(x)`, or examples are few); or by name
        what fits a prior: a mapping of changed settings, or a callable (key, encodings,
        folder) -> prior of your own, as `priors.ex_post.contract.Fit`.
      key: PRNG key; consumed here.
      prepare: (key, stored examples [B, ...]) -> x, pure; None as for `fit`.
      num_fits: of each prior, from other keys.
      resampled_by: the name of a prior, of `priors`, that is fitted first: all are then
        fitted to draws that follow p(z | x) under it, in the place of q(z | x), which
        is an EM step on the likelihood of `train` (`resampled`).  "" for q.
      settings: how much is measured, or a mapping of what is other than the defaults,
        e.g. {"num_samples": 1_000}.
      feature_net: "inception", "lenet5", "resnet20" or "resnet56": of the Frechet
        distance and KID of pictures; "" for neither.
      feature_weights: the file of its weights.
      folder: for results.json, report/priors.html and fits, which the same call goes
        on with; None keeps nothing.
      directions: of the groups' noise, where there are several; None for the defaults.

    Raises:
      InputError: the VAE, the examples or the settings are not as they should be, or
        another process holds `folder`.
    """
    key, settings = rng.typed(key), checked_settings(settings)
    num_fits = number("num_fits", num_fits, operator.index, "[1, inf)")
    is_one = sum(block.num_groups for block in vae.blocks) == 1
    if not is_one:
        priors = hierarchy.NAMES if priors == ex_post.NAMES else priors
    how = fits_of(priors, is_grouped=not is_one)
    place = None if folder is None else _folder(folder)
    # Fits are of one writer.
    with folder_lock.held(place, "folder"), loop.interruptible():
        found = preparation.splits(train=train, valid=valid, test=test)
        prepare = preparation.checked(vae, found["test"], prepare)
        is_default = is_one and priors == ex_post.NAMES
        if is_one and not _says_posterior(vae, prepare, found["test"]):
            _without_vamp(how, is_default, is_deterministic(vae))
        elif is_default:
            _without_large_vamp(how, len(found["train"]))
        order = np.random.default_rng(rng.numpy_seed(rng.stream(key, "order")))
        train, test = (order.permutation(found[name]) for name in ("train", "test"))
        about: dict[str, Any] = {"split": "test"}
        model: Compared = OneVector(vae)
        if not is_one:
            of_groups = hierarchy.of(
                *(vae, train, prepare, rng.stream(key, "directions")),
                directions or SignalSettings(),
                None if place is None else place / "priors",
            )
            model, about = of_groups, about | {"groups": hierarchy.about(of_groups)}
            how = hierarchy.fits_of(of_groups.groups, _changes(priors))
        is_pictures = has_pictures(train)
        scores = None
        if feature_net:
            if not is_pictures:
                raise InputError("feature_net is for pictures: the examples are none")
            scores = _scores(feature_net, feature_weights, train, key, place, settings)
        examples = Examples(train, found["valid"], test, prepare, is_pictures, scores)
        compared = protocol.run(
            model,
            examples,
            how,
            key,
            settings,
            num_fits=num_fits,
            resampled_by=resampled_by,
            folder=place,
            about=about,
        )
        if place is None:
            return compared
        from ncp_jax.pages import priors_page  # and matplotlib, which only a page needs

        content = {priors_page.KEY: compared.as_json()}
        whole_file.write_json(place / "results.json", content, indent=2)
        return dataclasses.replace(compared, page=priors_page.write(place))


def fits_of(
    priors: Sequence[str] | Mapping[str, Fit | Mapping[str, Any]],
    is_grouped: bool = False,
) -> dict[str, Fit]:
    """Returns what fits each prior.

    Args:
      priors: as of `compare`.
      is_grouped: whether they are for a VAE of several groups, of one coordinate here.

    Raises:
      InputError: an unknown prior or setting, a name for no file, or none at all.
    """
    if not priors or isinstance(priors, str):
        raise InputError(
            f"priors must hold names, some of {', '.join(ex_post.NAMES)}; got "
            f"{priors!r}" + (f": write ({priors!r},)" if priors else "")
        )
    changes = _changes(priors)
    for name in changes:
        if not isinstance(name, str) or not name or {"/", "\0"} & set(name):
            raise InputError(
                "priors: a name is text without '/', since files are called by it; "
                f"got {name!r}"
            )
    if is_grouped:  # how many groups there are is found later
        return hierarchy.fits_of(Groups((1,)), changes)
    return {
        name: ex_post.settings_of(name, how, changes) for name, how in changes.items()
    }


def _changes(
    priors: Sequence[str] | Mapping[str, Fit | Mapping[str, Any]],
) -> dict[str, Fit | Mapping[str, Any]]:
    """By name what is changed of each; of names alone nothing."""
    return (
        dict(priors) if isinstance(priors, Mapping) else {name: {} for name in priors}
    )


def _says_posterior(
    vae: LatentVariableModel, prepare: Prepare, stored: np.ndarray
) -> bool:
    x = prepare(jax.random.key(0), jnp.asarray(stored[:1]))
    return jax.eval_shape(OneVector(vae).posterior, x) is not None


def _without_vamp(how: dict[str, Fit], is_default: bool, is_point: bool) -> None:
    """Leaves out, or refuses, the mixture of q(z | x) that the VAE does not say."""
    why = "the VAE has no posterior(x)"
    mend = "give your VAE a method posterior(x) -> Normal, or "
    if is_point:
        why, mend = "its encodings are points, without a density", ""
    vamp = type(ex_post.settings_of("vamp"))
    asking = [n for n, fit in how.items() if _is_made_with(fit, vamp)]
    if asking and not is_default:
        raise InputError(
            f"{asking[0]} is a mixture of q(z | x), or made with one: {mend}leave "
            f"{asking[0]!r} out of priors"
        )
    for name in asking:
        del how[name]
        print(f"compare: {name} is left out, since {why}")


def _without_large_vamp(how: dict[str, Any], num_examples: int) -> None:
    """Leaves out the mixture of more posteriors than there are examples."""
    if (least := how["vamp"].num_components) > num_examples:
        del how["vamp"]
        print(f"compare: vamp is left out, since it wants {least} training examples")


def _is_made_with(fit: Fit, kind: type) -> bool:
    """Whether a fit, or one of its parts, is of this kind."""
    parts = [part for name in PARTS if (part := getattr(fit, name, None)) is not None]
    return isinstance(fit, kind) or any(_is_made_with(part, kind) for part in parts)


def has_pictures(examples: np.ndarray) -> bool:
    """Whether examples are pictures: uint8, or floats in [0, 1], of 1 or 3 channels."""
    if examples.ndim != 4 or examples.shape[-1] not in (1, 3):
        return False
    return examples.dtype == np.uint8 or bool(
        examples.min() >= 0 and examples.max() <= 1
    )


def _scores(
    name: str,
    weights: str | Path,
    train: np.ndarray,
    key: Array,
    folder: Path | None,
    settings: ComparisonSettings,
) -> Scores:
    """The feature network, and its features of the training pictures."""
    net, size = feature_scores.load(name, weights), settings.sample_batch_size
    least = feature_scores.num_features(net, train.shape[1:]) + 1
    if min(len(train), settings.num_samples) < least:
        raise InputError(
            f"{net.label} needs {least} training pictures and num_samples or more; got "
            f"{len(train)} and {settings.num_samples}"
        )

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(train), size):
            yield pictures.as_uint8(train[first : first + size])

    with tempfile.TemporaryDirectory() as temporary:
        reference = feature_scores.reference(
            net,
            batches,
            Path(temporary) if folder is None else folder / "reference",
            batch_size=size,
            num_for_kid=min(KID_PICTURES, len(train) // 2),
        )
    return Scores(net, reference, rng.numpy_seed(rng.stream(key, "kid")))


def _folder(folder: str | Path) -> Path:
    """The folder, which no other kind of run may have written to."""
    path = Path(local_path("folder", str(folder)))
    if (path / "config.json").exists():
        raise InputError(f"{path} holds a run of another kind: give another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {explained(error)}") from error
    return path
