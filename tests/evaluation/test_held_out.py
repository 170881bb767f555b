"""`held_out.py`: everything of held-out examples, and how often it compiles."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.evaluation import diagnostics, held_out, likelihood
from tests import tiny
from tests.oracles import LinearGaussianVAE
from tests.tilted_gaussian import LOG_Z, NCP, TILT, VAE, as_it_is, draw_x

SMALL = {
    "batch_size": 40,
    "num_importance_samples": 8,
    "chunk_size": 4,
    "num_snis_proposals": 4,
    "num_log_z_draws": 4_000,
    "log_z_batch_size": 2_000,
    "num_passes": 2,
}
COMPILED = (likelihood._bounds, likelihood._draw_log_r, diagnostics._logits)


def test_it_compiles_once_for_each_setting(key):
    x = np.asarray(draw_x(100))
    for function in COMPILED:
        function.clear_cache()
    with tiny.compilations() as count:
        first = held_out.evaluate(NCP, x, key=key, **SMALL)
        again = held_out.evaluate(NCP, x, key=key, **SMALL)
    assert all(count[function.__name__] <= 1 for function in COMPILED)
    assert first == again
    with tiny.compilations() as count:
        held_out.evaluate(NCP, x, key=key, **SMALL | {"num_importance_samples": 4})
    assert [count[function.__name__] for function in COMPILED] == [1, 0, 0]


def test_the_gain_is_that_of_the_examples(key):
    x = np.asarray(draw_x(100))
    found = held_out.evaluate(NCP, x, key=key, **SMALL)
    gain = (VAE.log_marginal(x, TILT) - VAE.log_marginal(x)).mean()
    z = found["log_z"]
    assert found["gain_nats"].n == found["nce_loss"].n == 100
    assert found["gain_nats"].value == pytest.approx(gain, abs=0.01 + 6 * z.stderr)


def test_a_prior_that_reweights_nothing_gains_nothing(key):
    """It died at an empty list of arrays."""
    ncp = dataclasses.replace(NCP, params=(None,))
    found = held_out.evaluate(ncp, np.asarray(draw_x(20)), key=key, **SMALL)
    assert found["log_z"][:2] == pytest.approx((0.0, 0.0), abs=1e-8)
    assert found["ess_fraction"].value == pytest.approx(1.0)
    for name in ("gain_nats", "gain_snis_nats"):
        assert found[name].value == pytest.approx(0.0, abs=1e-5)
    assert "nce_loss" not in found


def test_what_is_missing_is_said(key, capsys):
    x = np.asarray(draw_x(20))
    few = SMALL | {"num_log_z_draws": 50, "max_log_z_stderr": 0.01}
    found = held_out.evaluate(NCP, x, key=key, **few)
    assert "nll_ncp" not in found and "log_z_draws_missing" in found
    assert "more draws are needed" in capsys.readouterr().out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PointVAE(LinearGaussianVAE):
    """Says that its z is a function of x."""

    is_deterministic: ClassVar = True


def test_a_point_has_no_likelihoods_and_it_is_said(key, capsys):
    ncp = dataclasses.replace(NCP, vae=PointVAE(VAE.weights))
    x = np.asarray(draw_x(40))
    sizes = {name: size for name, size in SMALL.items() if name != "batch_size"}
    found, arrays = held_out.measure(
        ncp, [(x, np.ones(40, bool))], as_it_is, key, max_log_z_stderr=1e-9, **sizes
    )
    of_q = {
        name for name in found if name.startswith(("nll", "elbo", "gain", "log_z_"))
    }
    assert not of_q
    assert found["log_z"].value == pytest.approx(LOG_Z, abs=0.2)
    assert found["nce_loss"].n == 40  # stage 2 needs no density
    assert all(np.isfinite(estimate.value) for estimate in found.values())
    assert "No likelihoods" in capsys.readouterr().out
    assert "is a point" in str(arrays["note_likelihood"])


def test_keys_of_the_old_kind_are_taken_and_others_refused():
    x = np.asarray(draw_x(20))
    old, new = (
        held_out.evaluate(NCP, x, key=key, **SMALL)
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    assert old == new
    with pytest.raises(InputError, match="key must be one PRNG key"):
        held_out.evaluate(NCP, x, key=3, **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_importance_samples": 0}, r"num_importance_samples .* in \[1, inf\)"),
        ({"num_snis_proposals": 0}, "num_snis_proposals must be an integer"),
        ({"num_log_z_draws": 1e5}, "num_log_z_draws must be an integer .* got 100000"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"num_passes": 0}, "num_passes must be an integer"),
        ({"max_log_z_stderr": np.nan}, r"max_log_z_stderr .* number in \[0, inf\)"),
    ],
)
def test_what_cannot_be_measured_is_said(key, settings, message):
    with pytest.raises(InputError, match=message):
        held_out.evaluate(NCP, np.asarray(draw_x(4)), key=key, **SMALL | settings)


def test_examples_that_are_not_finite_are_refused(key):
    x = np.asarray(draw_x(600)).copy()
    x[555, 0] = np.nan
    with pytest.raises(InputError, match=r"test\[555\] holds numbers .* not finite"):
        held_out.evaluate(NCP, x, key=key, **SMALL)
