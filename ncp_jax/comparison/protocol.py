"""One protocol for every prior: fit, likelihoods from shared draws, samples, cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ncp_jax import rng
from ncp_jax.comparison import against as held_against
from ncp_jax.comparison import (
    draws,
    fits,
    likelihoods,
    measures,
    one_vector,
    resampled,
    results,
)
from ncp_jax.comparison.against import Against
from ncp_jax.comparison.examples import Examples, Scores
from ncp_jax.comparison.fits import Fitted
from ncp_jax.comparison.kept import NOTHING, Kept
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.comparison.results import Comparison, PriorResult
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.evaluation import likelihood
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.pages.parts import pictures as picture_files
from ncp_jax.priors.ex_post.contract import PARTS, Encodings, Fit, LatentPrior
from ncp_jax.records import whole_file
from ncp_jax.training.checkpoint_records import described, short_hash
from ncp_jax.training.checkpoints import fingerprint, identity_of

Array = jax.Array

NUM_SHOWN = 64  # draws of each prior, on the page
NUM_RECONSTRUCTED = 16  # held-out examples that a decoder is known by


def run(
    model: Compared,
    examples: Examples,
    how: Mapping[str, Fit],
    key: Array,
    settings: ComparisonSettings,
    *,
    num_fits: int = 1,
    resampled_by: str = "",
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
      resampled_by: the name of a prior that is fitted first; all priors are then fitted
        to encodings that are resampled by it.  "" for those of q(z | x) themselves.
      folder: of the run: fits go to priors/NAME-NUMBER/, what was measured of them to
        priors/measured/, pictures to priors/NAME.png; None keeps nothing.
      about: what else the results should say of how they came about.

    Raises:
      InputError: of `resampled_by`.
    """
    resampled.check(resampled_by, how, model.is_deterministic)
    of_q = one_vector.encodings(
        model,
        examples.train,
        examples.valid,
        examples.prepare,
        rng.stream(key, "encodings"),
        num_draws=settings.num_encodings,
        num_valid_draws=settings.num_valid_encodings,
        batch_size=settings.batch_size,
    )
    encodings = of_q
    if resampled_by:
        encodings = resampled.encodings(
            of_q,
            model,
            examples,
            *(resampled_by, how[resampled_by]),
            rng.stream(key, "resampled"),
            settings,
            folder,
        )
    fitted = _fit_all(how, rng.stream(key, "fits"), encodings, num_fits, folder)
    kept = _kept(model, examples, encodings, fitted, key, settings, folder)
    found = likelihoods.measure(
        model,
        encodings.base,
        {name: [each.prior for each in of_name] for name, of_name in fitted.items()},
        examples.held_out[: settings.max_examples or None],
        examples.prepare,
        rng.stream(key, "likelihoods"),
        settings,
        kept,
    )
    against = held_against.of(model, examples, of_q, key, settings)
    gains_of_encodings = partial(
        _gains_of_encodings, encodings, settings, rng.stream(key, "valid gain"), kept
    )
    kept = kept.on(_of_scores(examples.scores))
    draws_key = rng.stream(key, "draws")
    measured_draws = partial(_draws, model, against, settings, folder, kept)
    rows: dict[str, PriorResult] = {}
    for name, of_name in fitted.items():
        of_fits = []
        for i, each in enumerate(of_name):
            measured = measured_draws(name, i, each, rng.at_step(draws_key, i))
            of_fit = found.of_fits[name][i]
            gains = gains_of_encodings((name, i), each.prior, of_fit.get("log_z"))
            of_fits.append({**of_fit, **measured, **gains})
        density, priors = of_name[0].prior.density, [each.prior for each in of_name]
        rows[name] = results.over_fits(density, of_fits, found.means[name], priors)
        print(f"compare: {_line(name, rows[name])}")
    floor = measures.measure(
        model,
        held_against.floor(model, examples, of_q, key, settings),
        against.without_nearest(),
        batch_size=settings.sample_batch_size,
    )
    told = {
        **dataclasses.asdict(settings),
        **(about or {}),
        "num_fits": num_fits,
        "resampled_by": resampled_by,
        "num_examples": found.nll_base.n if found.nll_base else 0,
        "num_train": len(examples.train),
        "num_valid": len(examples.valid),
        "fitted_by": {n: described(fit, is_whole=False) for n, fit in how.items()},
    }
    if model.is_deterministic:
        told["likelihoods"] = likelihood.NONE
    return Comparison(rows, found.nll_base, floor, told, model)


def _fit_all(
    how: Mapping[str, Fit],
    key: Array,
    encodings: Encodings,
    num_fits: int,
    folder: Path | None,
) -> dict[str, list[Fitted]]:
    found: dict[str, list[Fitted]] = {}
    for name, parts in _parts_first(how).items():
        found[name] = []
        for i in range(num_fits):
            place = None if folder is None else folder / "priors" / f"{name}-{i}"
            fit_key = rng.at_step(rng.stream(key, name), i)
            of_parts = {part: found[other][i] for part, other in parts.items()}
            each = fits.fit(name, how[name], fit_key, encodings, place, of_parts)
            found[name].append(each)
            print(f"compare: {name}, fit {i + 1} of {num_fits}: {each.seconds:,.1f} s")
    return {name: found[name] for name in how}


def _parts_first(how: Mapping[str, Fit]) -> dict[str, dict[str, str]]:
    """By name, the priors of `how` that this one would fit again, by its field.

    Those come before it.
    """
    found: dict[str, dict[str, str]] = {}

    def add(name: str) -> None:
        parts: dict[str, str] = {}
        for field in PARTS if dataclasses.is_dataclass(how[name]) else ():
            part = getattr(how[name], field, None)
            same = (n for n, fit in how.items() if callable(part) and _same(fit, part))
            if other := next(same, ""):
                parts[field] = other
                if other not in found:
                    add(other)
        found.setdefault(name, parts)

    for name in how:
        add(name)
    return found


def _same(fit: Fit, other: Fit) -> bool:
    """Whether two are one, or settings of one kind with the same values."""
    is_settings = dataclasses.is_dataclass(fit) and type(fit) is type(other)
    return fit is other or (is_settings and described(fit) == described(other))


def _kept(
    model: Compared,
    examples: Examples,
    encodings: Encodings,
    fitted: Mapping[str, Sequence[Fitted]],
    key: Array,
    settings: ComparisonSettings,
    folder: Path | None,
) -> Kept:
    """What was measured in this folder of the same VAE, examples and key."""
    if folder is None:
        return NOTHING
    basis = [
        identity_of([model, encodings._asdict(), examples.train, examples.held_out]),
        fingerprint(_reconstructed(model, examples)),
        jax.random.key_data(key).tolist(),
        dataclasses.asdict(settings),
    ]
    contents = {
        (name, i): short_hash([each.identity, identity_of(each.prior)])
        for name, of_name in fitted.items()
        for i, each in enumerate(of_name)
    }
    return Kept(folder / "priors" / "measured", basis, {("", 0): "base", **contents})


def _reconstructed(model: Compared, examples: Examples) -> Array:
    """log p(x | z) of a few examples: what of the decoder its arrays do not say."""

    def log_likelihood(model: Compared, stored: Array) -> Array:
        key = jax.random.key(0)
        x = examples.prepare(key, stored)
        return model.decode(model.encode(x, key)[0]).log_prob(x)

    few = jnp.asarray(examples.held_out[:NUM_RECONSTRUCTED])
    return jax.jit(log_likelihood)(model, few)


def _of_scores(scores: Scores | None) -> list[Any]:
    """What the scores of pictures depend on besides."""
    if scores is None:
        return []
    reference = dataclasses.asdict(scores.reference)
    return [scores.net.sha256, scores.seed, fingerprint(reference)]


def _draws(
    model: Compared,
    against: Against,
    settings: ComparisonSettings,
    folder: Path | None,
    kept: Kept,
    name: str,
    i: int,
    fitted: Fitted,
    key: Array,
) -> dict[str, Estimate]:
    """Draws of fit number i, measured; and what the fit and its draws cost."""
    prior, size = fitted.prior, settings.sample_batch_size
    whole, of_draws = model.whole(prior), rng.stream(key, "z")

    def measure() -> dict[str, Estimate]:
        z = draws.draw(whole, of_draws, settings.num_samples, size)
        found = measures.measure(model, z, against, batch_size=size)
        return {**found, **draws.cost(prior, rng.stream(key, "timed"), size)}

    def show() -> bytes:
        z = draws.draw(whole, of_draws, NUM_SHOWN, NUM_SHOWN)
        images = picture_files.to_uint8(measures.decoded(model, z))
        return picture_files.as_png(picture_files.grid(images, columns=8))

    number = float(fits.num_parameters(prior))
    found = kept.one("draws", (name, i), measure)
    if folder is not None and against.pictures is not None and i == 0:
        picture = kept.file("shown", (name, i), ".png", show)
        whole_file.write(folder / "priors" / f"{name}.png", picture)
    return {
        **{metric: Estimate(*of) for metric, of in found.items()},
        "fit_seconds": Estimate(fitted.seconds, None, 1, "s"),
        "num_parameters": Estimate(number, None, 1, "numbers"),
    }


def _gains_of_encodings(
    encodings: Encodings,
    settings: ComparisonSettings,
    key: Array,
    kept: Kept,
    name: tuple[str, int],
    prior: LatentPrior,
    log_z: Estimate | None,
) -> dict[str, Estimate]:
    """`gain_valid`, to choose settings by, and `gain_train` of about as many.

    A prior without density has neither.
    """
    of_fit = rng.at_step(key, name[1])
    size = settings.batch_size * settings.chunk_size
    num, num_draws = encodings.valid.shape[:2]
    step = max(1, len(encodings.train) // num)  # examples may lie in some order
    train = encodings.train[::step][:num, :num_draws]
    gains: dict[str, Estimate] = {}
    for split, z in {"train": train, "valid": encodings.valid}.items():
        measure = partial(
            likelihoods.gain_of_encodings,
            *(prior, encodings.base, z, log_z, of_fit, size),
        )
        found = kept.on(log_z).one(f"{split}-gain", name, measure)
        if found is not None:
            gains[f"gain_{split}"] = Estimate(*found)
    return gains


def _line(name: str, row: PriorResult) -> str:
    """One line of a terminal."""
    names = {"gain_valid": "gain of encodings", "gain": "gain"}
    found = {said: row.metrics[n] for n, said in names.items() if n in row.metrics}
    gains = [f"{said} {_interval(gain)} nats" for said, gain in found.items()]
    said = ", ".join(gains) or "no likelihood"
    seconds = row.metrics["sampling_seconds"].value
    return f"{name} ({row.density}): {said}, {seconds:.3g} s per 1,000 draws"


def _interval(estimate: Estimate) -> str:
    half = "" if estimate.stderr is None else f" ± {1.96 * estimate.stderr:.3f}"
    return f"{estimate.value:.3f}{half}"
