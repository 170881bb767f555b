"""One protocol for every prior: fit, likelihoods from shared draws, samples, cost."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import draws, fits, likelihoods, one_vector, results
from ncp_jax.comparison.draws import Against, Pictures, Scores
from ncp_jax.comparison.fits import Fitted
from ncp_jax.comparison.one_vector import Compared, OneVector
from ncp_jax.comparison.results import Comparison, PriorResult
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.evaluation import likelihood
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import gaussian_kernel, memorisation
from ncp_jax.pages.parts import pictures as picture_files
from ncp_jax.priors.ex_post.contract import Encodings, Fit
from ncp_jax.training.loop import Prepare

Array = jax.Array


class Examples(NamedTuple):
    """Stored examples, in an order of no meaning, and what is made of them.

    The last of `train` are those that the floor decodes, so that the first, which KID's
    reference may be, are others.
    """

    train: np.ndarray
    valid: np.ndarray
    held_out: np.ndarray  # that everything is measured on
    prepare: Prepare
    has_pictures: bool
    scores: Scores | None = None
    of_points: Callable[[np.ndarray], Mapping[str, Estimate]] | None = None


def run(
    model: Compared,
    examples: Examples,
    how: Mapping[str, Fit],
    key: Array,
    settings: ComparisonSettings,
    *,
    num_fits: int = 1,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Comparison:
    """Fits every prior and measures all in the same way.

    Args:
      model: the frozen VAE.
      examples: to fit on and to measure on.
      how: what fits each prior, by name.
      key: PRNG key; consumed here.
      settings: how much is measured.
      num_fits: of each prior, from other keys and the same encodings.
      folder: of the run: fits go to priors/NAME-NUMBER/, pictures to
        priors/NAME.png; None keeps nothing.
      about: what else the results should say of how they came about.
    """
    encodings = one_vector.encodings(
        model,
        examples.train,
        examples.valid,
        examples.prepare,
        rng.stream(key, "encodings"),
        num_draws=settings.num_encodings,
        num_valid_draws=settings.num_valid_encodings,
        batch_size=settings.batch_size,
    )
    fitted = _fit_all(how, rng.stream(key, "fits"), encodings, num_fits, folder)
    found = likelihoods.measure(
        model,
        encodings.base,
        {name: [each.prior for each in of_name] for name, of_name in fitted.items()},
        examples.held_out[: settings.max_examples or None],
        examples.prepare,
        rng.stream(key, "likelihoods"),
        settings,
    )
    against = _against(model, examples, encodings, key, settings)
    rows: dict[str, PriorResult] = {}
    for name, of_name in fitted.items():
        of_fits = []
        for i, each in enumerate(of_name):
            draws_key = rng.at_step(rng.stream(key, "draws"), i)
            measured = _draws(model, each, against, draws_key, settings)
            if folder is not None and examples.has_pictures and i == 0:
                _save(folder / "priors" / f"{name}.png", measured.shown)
            of_fits.append({**found.of_fits[name][i], **measured.estimates})
        density, priors = of_name[0].prior.density, [each.prior for each in of_name]
        rows[name] = results.over_fits(density, of_fits, found.means[name], priors)
        print(f"compare: {_line(name, rows[name])}")
    floor = draws.measure(
        model,
        _floor(model, examples, encodings, key, settings),
        against,
        batch_size=settings.sample_batch_size,
    )
    described = {**dataclasses.asdict(settings), **(about or {}), "num_fits": num_fits}
    described["num_examples"] = found.nll_base.n if found.nll_base else 0
    if model.is_deterministic:
        described["likelihoods"] = likelihood.NONE
    return Comparison(rows, found.nll_base, floor.estimates, described)


def _fit_all(
    how: Mapping[str, Fit],
    key: Array,
    encodings: Encodings,
    num_fits: int,
    folder: Path | None,
) -> dict[str, list[Fitted]]:
    found: dict[str, list[Fitted]] = {}
    for name, fit in how.items():
        fits_of_base = _fits_of_base(fit, how, found)
        found[name] = []
        for i in range(num_fits):
            place = None if folder is None else folder / "priors" / f"{name}-{i}"
            fit_key = rng.at_step(rng.stream(key, name), i)
            base = fits_of_base[i] if fits_of_base else None
            each = fits.fit(name, fit, fit_key, encodings, place, base)
            found[name].append(each)
            print(f"compare: {name}, fit {i + 1} of {num_fits}: {each.seconds:,.1f} s")
    return found


def _fits_of_base(
    fit: Fit, how: Mapping[str, Fit], found: Mapping[str, list[Fitted]]
) -> list[Fitted]:
    """The fits, if there are, of the prior that this one would fit again."""
    base = getattr(fit, "base", None) if dataclasses.is_dataclass(fit) else None
    names = [name for name in found if base is not None and how[name] == base]
    return found[names[0]] if names else []


def _against(
    model: Compared,
    examples: Examples,
    encodings: Encodings,
    key: Array,
    settings: ComparisonSettings,
) -> Against:
    """What the draws of all priors are held against."""
    num = min(settings.num_mmd_samples, len(examples.held_out), len(examples.train))
    posterior = np.zeros((0, encodings.train.shape[-1]), np.float32)
    kernel_key, seed = rng.stream(key, "kernel"), 0
    if num >= 3:
        posterior = one_vector.draws(
            model,
            examples.held_out[:num],
            examples.prepare,
            rng.stream(key, "held-out encodings"),
            settings.batch_size,
        )
        posterior = np.asarray(model.learned(jnp.asarray(posterior)))
    of_base = draws.draw(encodings.base, rng.stream(key, "base"), max(num, 3), 1_000)
    seed = rng.numpy_seed(kernel_key)
    kernel = gaussian_kernel.fit(np.concatenate([posterior, of_base]), seed=seed)
    of_pictures = None
    if examples.has_pictures:
        queries = examples.held_out[: settings.num_neighbour_queries]
        train = picture_files.as_uint8(examples.train)
        nearest = memorisation.nearest_pictures(
            picture_files.as_uint8(queries), train, 1
        )
        of_pictures = Pictures(train, nearest.distances[:, 0], examples.scores)
    permutations = settings.num_permutations
    return Against(
        posterior, kernel, permutations, seed, of_pictures, examples.of_points
    )


def _draws(
    model: Compared,
    fitted: Fitted,
    against: Against,
    key: Array,
    settings: ComparisonSettings,
) -> draws.Measured:
    """Draws of one fit, measured; and what the fit and its draws cost."""
    prior, size = fitted.prior, settings.sample_batch_size
    whole = model.whole(prior)
    z = draws.draw(whole, rng.stream(key, "z"), settings.num_samples, size)
    found = draws.measure(model, z, against, batch_size=size)
    number = float(fits.num_parameters(prior))
    costs = {
        "fit_seconds": Estimate(fitted.seconds, None, 1, "s"),
        "num_parameters": Estimate(number, None, 1, "numbers"),
        **draws.cost(prior, rng.stream(key, "timed"), size),
    }
    return found._replace(estimates={**found.estimates, **costs})


def _floor(
    model: Compared,
    examples: Examples,
    encodings: Encodings,
    key: Array,
    settings: ComparisonSettings,
) -> np.ndarray:
    """One encoding each of training examples that KID's reference does not hold."""
    num = len(examples.train)
    if examples.scores is not None:
        num -= len(examples.scores.reference.features)
    num = max(min(settings.num_samples, num), 1)
    if isinstance(model, OneVector):
        return np.asarray(encodings.train[-num:, 0])
    return one_vector.draws(
        model,
        examples.train[-num:],
        examples.prepare,
        rng.stream(key, "floor"),
        settings.batch_size,
    )


def _save(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = picture_files.grid(picture_files.to_uint8(images), 8)
    picture_files.save_png(path, grid)


def _line(name: str, row: PriorResult) -> str:
    """One line of a terminal."""
    gain = row.metrics.get("gain")
    said = "no likelihood"
    if gain is not None:
        half = "" if gain.stderr is None else f" ± {1.96 * gain.stderr:.3f}"
        said = f"gain {gain.value:.3f}{half} nats"
    seconds = row.metrics["sampling_seconds"].value
    return f"{name} ({row.density}): {said}, {seconds:.3g} s per 1,000 draws"
