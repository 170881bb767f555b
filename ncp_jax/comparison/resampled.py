"""Encodings that follow p(z | x) under a fitted prior: what a second fit learns from.

The prior of the highest likelihood is the mean over examples of its own posterior
p(z | x), not of q(z | x): that of q has the highest ELBO, and the two differ where q is
far from the posterior.  Draws of q that are resampled by p(x | z) p_1(z) / q(z | x)
follow the posterior under a prior p_1, and a prior fitted to them is an EM step from
p_1 on: it raises the likelihood of the training examples (Dempster et al., "Maximum
likelihood from incomplete data via the EM algorithm", 1977), as far as the fit and the
number of proposals allow.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ncp_jax import rng
from ncp_jax.comparison import fits
from ncp_jax.comparison.examples import Examples
from ncp_jax.comparison.one_vector import Compared
from ncp_jax.comparison.settings import ComparisonSettings
from ncp_jax.data import datasets
from ncp_jax.errors import InputError, did_you_mean
from ncp_jax.evaluation import diagnostics
from ncp_jax.priors.ex_post.contract import Encodings, Fit, LatentPrior
from ncp_jax.training.loop import Prepare

Array = jax.Array


def check(resampled_by: str, names: Collection[str], is_deterministic: bool) -> None:
    """Refuses a prior that encodings cannot be resampled by.

    Args:
      resampled_by: as of `protocol.run`.
      names: of the compared priors.
      is_deterministic: whether z is a function of x.

    Raises:
      InputError: it is not among them, or q(z | x) has no density.
    """
    if not resampled_by:
        return
    if resampled_by not in names:
        hint = did_you_mean(resampled_by, names)
        raise InputError(
            f"resampled_by must name one of the compared priors, {', '.join(names)}; "
            f"got {resampled_by!r}.{hint}"
        )
    if is_deterministic:
        raise InputError(
            f"resampled_by={resampled_by!r}: q(z | x) has no density, which the "
            "weights need"
        )


def encodings(
    of_q: Encodings,
    model: Compared,
    examples: Examples,
    name: str,
    fit: Fit,
    key: Array,
    settings: ComparisonSettings,
    folder: Path | None = None,
) -> Encodings:
    """Encodings resampled by a prior, which is fitted to those of the round before.

    Args:
      of_q: draws of q(z | x), which the first round is fitted to.
      model: the frozen VAE.
      examples: of which the encodings are.
      name: of the prior.
      fit: of it.
      key: PRNG key; consumed here.
      settings: how many rounds and proposals there are.
      folder: of the run, for priors/NAME-round-NUMBER/; None keeps nothing.

    Raises:
      InputError: the prior has no density.
    """
    found = of_q
    for i in range(settings.num_rounds):
        place = None if folder is None else folder / "priors" / f"{name}-round-{i}"
        of_round = rng.at_step(key, i)
        by = fits.fit(name, fit, rng.stream(of_round, "fit"), found, place)
        print(f"compare: {name}, to resample by: {by.seconds:,.1f} s")
        if by.prior.density == "none":
            raise InputError(
                f"resampled_by={name!r}: it has no density, which the weights need"
            )
        found = once(
            of_q,
            model,
            by.prior,
            examples.train,
            examples.valid,
            examples.prepare,
            rng.stream(of_round, "encodings"),
            settings,
        )
    return found


def once(
    of_q: Encodings,
    model: Compared,
    by: LatentPrior,
    train: np.ndarray,
    valid: np.ndarray,
    prepare: Prepare,
    key: Array,
    settings: ComparisonSettings,
) -> Encodings:
    """Returns as many encodings as `of_q` has, resampled by a prior.

    Args:
      of_q: draws of q(z | x) of the same examples.
      model: the frozen VAE.
      by: p_1, of `learned(z)`; of any density but "none".
      train: [N, *data_shape] as stored.
      valid: [M, *data_shape].
      prepare: (key, stored) -> x; its noise is fresh for every set of proposals.
      key: PRNG key; consumed here.
      settings: how many proposals there are, and how many of them are kept.
    """
    resample = partial(_of_split, model, by, prepare, settings)
    num, num_valid = of_q.train.shape[1], of_q.valid.shape[1]
    return of_q._replace(
        train=resample(train, rng.stream(key, "train"), num),
        valid=resample(valid, rng.stream(key, "valid"), num_valid),
    )


@jax.default_matmul_precision("float32")  # TF32 would move log-weights
def _of_split(
    model: Compared,
    by: LatentPrior,
    prepare: Prepare,
    settings: ComparisonSettings,
    stored: np.ndarray,
    key: Array,
    num: int,
) -> Array:
    """Resampled encodings of one split: [N, num, D]."""
    num_kept = min(settings.num_resampled, num)
    of_batch = partial(
        _of_batch, prepare, settings.num_proposals, num_kept, -(-num // num_kept)
    )
    batches = datasets.padded_batches(stored, min(settings.batch_size, len(stored)))
    z = diagnostics.over_examples(partial(of_batch, model, by), batches, key)
    return jnp.asarray(z[:, :num])


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _of_batch(
    prepare: Prepare,
    num_proposals: int,
    num_kept: int,
    num_sets: int,
    model: Compared,
    by: LatentPrior,
    stored: Array,
    key: Array,
) -> Array:
    """z of one batch [B, num_sets * num_kept, D]."""
    whole = model.whole(by)

    def of_set(i: Array) -> Array:
        of_set = rng.at_step(key, i)
        x = prepare(rng.stream(of_set, "prepare"), stored)
        draws_key, density_key, choice_key = (
            rng.stream(of_set, name) for name in ("posterior", "density", "choice")
        )

        def propose(s: Array) -> tuple[Array, Array]:
            z, log_q = model.encode(x, rng.at_step(draws_key, s))
            log_p = whole.log_prob(z, rng.at_step(density_key, s))
            log_w = model.decode(z).log_prob(x) + log_p - log_q
            return model.learned(z), jnp.where(jnp.isnan(log_w), -jnp.inf, log_w)

        z, log_w = jax.vmap(propose)(jnp.arange(num_proposals))  # [S, B, D], [S, B]
        shape = (num_kept, len(stored))
        chosen = jax.random.categorical(choice_key, log_w, axis=0, shape=shape)
        return jnp.take_along_axis(z, chosen[..., None], axis=0)

    z = jax.lax.map(of_set, jnp.arange(num_sets))  # [sets, kept, B, D]
    return z.reshape(-1, *z.shape[2:]).swapaxes(0, 1)
