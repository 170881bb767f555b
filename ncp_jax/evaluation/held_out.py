"""All that is measured of an NCP prior on held-out examples alone."""

import operator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ncp_jax import parallel, rng
from ncp_jax.data import datasets
from ncp_jax.errors import number
from ncp_jax.evaluation import diagnostics, likelihood, signal
from ncp_jax.evaluation.diagnostics import Batches
from ncp_jax.evaluation.importance import Estimate
from ncp_jax.models.base import is_deterministic
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.ncp_prior import NCPPrior, checked
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import itself
from ncp_jax.training.loop import Prepare
from ncp_jax.training.ncp import preparation

Array = jax.Array


def evaluate(
    ncp: NCPPrior,
    test: np.ndarray | Array,
    *,
    key: Array,
    prepare: Prepare | None = None,
    batch_size: int = 100,
    num_importance_samples: int = 200,
    chunk_size: int = 20,
    num_snis_proposals: int = 256,
    num_snis_samples: int = 10,
    num_log_z_draws: int = 100_000,
    log_z_batch_size: int = 10_000,
    max_log_z_stderr: float = 0.1,
    num_binarizations: int = 1,
    num_passes: int = 4,
    mesh: Mesh | None = None,
) -> dict[str, Estimate]:
    """Measures an NCP prior against its base prior on examples that nobody has seen.

    Args:
      ncp: of `fit`.
      test: [N, *data_shape] examples.
      key: PRNG key; consumed here.
      prepare: (key, stored) -> x; the same as that of `fit`.
      batch_size: examples at a time; the draws depend on it.
      num_importance_samples: of q(z | x) per example; the bounds rise with it.
      chunk_size: of them at a time; bounds the memory.
      num_snis_proposals: M of the SIR sampler whose likelihood is `nll_snis`.
      num_snis_samples: that later groups' proposals are drawn for.
      num_log_z_draws: of the base prior, for log Z.
      log_z_batch_size: of them at a time; bounds the memory.
      max_log_z_stderr: nats; with a larger standard error of log Z there is no
        `nll_ncp` and no `gain_nats`, but `log_z_draws_missing`.  0 for no bound.
      num_binarizations: passes over all examples, each prepared with other noise.
      num_passes: draws of both classes per example, for the discriminators' loss.
      mesh: the devices that share the draws for log Z; None for all.

    Returns:
      Estimates, each with its standard error and n, by name: `nll_base`, `nll_ncp`,
      `gain_nats`, `nll_snis`, `gain_snis_nats`, `elbo_base`, `log_z`, `ess_fraction`
      in nats but for the last; and per group `nce_loss`, `jsd`, `nce_gain`,
      `nce_log_r_q`, `nce_log_z` (nats) and `calibration_error`, named `nce_loss/k`
      where there are several groups; with signal directions `num_directions` and
      `signal_total` of each group, too.  Of a model whose z is a function of x the
      first six are left out.

    Raises:
      InputError: the examples or the settings are not as they should be.
    """
    ncp = checked(ncp)
    sizes = {
        "num_passes": num_passes,
        "num_importance_samples": num_importance_samples,
        "num_snis_samples": num_snis_samples,
        "num_snis_proposals": num_snis_proposals,
        "num_log_z_draws": num_log_z_draws,
        "chunk_size": chunk_size,
        "log_z_batch_size": log_z_batch_size,
        "num_binarizations": num_binarizations,
    }
    of_measure: dict[str, Any] = {n: _count(n, size) for n, size in sizes.items()}
    batch_size = _count("batch_size", batch_size)
    test = preparation.examples("test", test)
    prepare = preparation.checked(itself(ncp.vae), test, prepare)
    with np.errstate(invalid="ignore"):  # NaN is traced to an example, see below
        estimates, _ = measure(
            ncp,
            list(datasets.padded_batches(test, min(batch_size, len(test)))),
            prepare,
            rng.typed(key),
            max_log_z_stderr=number(
                "max_log_z_stderr", max_log_z_stderr, float, "[0, inf)"
            ),
            mesh=mesh or parallel.mesh_of(),
            **of_measure,
        )
    if any(np.isnan(estimate.value) for estimate in estimates.values()):
        preparation.find_fault(itself(ncp.vae), prepare, test=test)
    return estimates


def _count(name: str, value: Any) -> int:
    return number(name, value, operator.index, "[1, inf)")


def measure(
    ncp: NCPPrior,
    batches: Batches,
    prepare: Prepare,
    key: Array,
    *,
    num_passes: int,
    max_log_z_stderr: float,
    section: str = "",
    **settings: Any,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """Likelihoods and the discriminators' losses: estimates, and arrays for plots.

    Prints what is missing where log Z is not known well enough.  Of a model whose z is
    a function of x there are no likelihoods, and it says so.

    Args:
      ncp: the prior and its frozen VAE.
      batches: of stored examples, padded; gone through twice.
      prepare: (key, stored) -> x.
      key: PRNG key; consumed here.
      num_passes: of `diagnostics.contrast_on_held_out`.
      max_log_z_stderr: as all others, of `likelihood.measure`.
      section: of a config, that what is printed names arguments by.
      **settings: see there.
    """
    of_likelihood = rng.stream(key, "likelihood")
    if is_deterministic(itself(ncp.vae)):
        names = ("num_log_z_draws", "log_z_batch_size", "mesh")
        of_prior = {name: settings[name] for name in names if name in settings}
        estimates, arrays = likelihood.measure_normaliser(
            ncp, of_likelihood, **of_prior
        )
        line = likelihood.NONE
    else:
        estimates, arrays = likelihood.measure(
            ncp,
            batches,
            prepare,
            of_likelihood,
            max_log_z_stderr=max_log_z_stderr,
            **settings,
        )
        line = likelihood.refusal(estimates, max_log_z_stderr, section)
    if line:
        print(line)
    losses, ratios = diagnostics.contrast_on_held_out(
        ncp, batches, prepare, rng.stream(key, "contrast"), num_passes=num_passes
    )
    if isinstance(ncp.vae, SignalVAE | DirectedVAE):
        of_groups, spectra = signal.of_groups(ncp.vae.directions)
        losses, ratios = losses | of_groups, ratios | spectra
    return estimates | losses, arrays | ratios
