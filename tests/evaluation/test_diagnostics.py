"""`diagnostics.py` on a linear-Gaussian VAE, whose p(x) and p_NCP(x) are exact.

With log r(z) = TILT . z the NCP is N(TILT, I) and log Z = |TILT|^2 / 2.
"""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from ncp_jax import samplers
from ncp_jax.data import datasets
from ncp_jax.evaluation import diagnostics
from ncp_jax.models.base import Block
from ncp_jax.priors import generation
from ncp_jax.priors.group_samplers import SIR
from ncp_jax.priors.ncp_prior import NCPPrior
from tests.oracles import ChainVAE, LinearGaussianVAE, QuadraticRatio
from tests.statistics import assert_mean
from tests.tilted_gaussian import LOG_Z, NCP, TILT, VAE, as_it_is, draw_x

NUM_X = 4_096


@pytest.fixture(scope="module")
def x():
    return draw_x(NUM_X)


def test_over_examples_drops_padding_and_counts_every_example_once(key):
    rows = np.arange(10, dtype=np.float32)[:, None]
    keys = []

    def function(x, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return {"x": x[:, 0], "twice": 2 * x}

    out = diagnostics.over_examples(function, datasets.padded_batches(rows, 4), key)
    np.testing.assert_array_equal(out["x"], rows[:, 0])
    np.testing.assert_array_equal(out["twice"], 2 * rows)
    assert len(set(keys)) == 3


def test_contrast_on_held_out_measures_a_known_divergence(key):
    """One x for all: q = N(m, s^2) in each dimension, against p = N(0, 1).

    With the true log-ratio as logit, JSD(q, p) is what numerical integration gives.
    """
    one = jnp.array([[0.4]])
    vae = LinearGaussianVAE(jnp.ones((1, 1)), std=1.0, q_shift=0.6)
    exact = vae.posterior(one)
    m, s = float(exact.mean[0, 0]) + 0.6, float(exact.std[0, 0])
    params = {
        "slope": jnp.full((1, 1), m / s**2),
        "curvature": jnp.full((1, 1), 0.5 - 0.5 / s**2),
        "bias": jnp.full(1, -math.log(s) - 0.5 * (m / s) ** 2),
    }
    ncp = NCPPrior(vae, QuadraticRatio(), (params,))
    n, passes = 5_000, 8
    estimates, arrays = diagnostics.contrast_on_held_out(
        ncp,
        datasets.padded_batches(np.full((n, 1), 0.4, np.float32), 2_048),
        as_it_is,
        key,
        num_passes=passes,
    )

    def integrand(z):
        q, p = (scipy.stats.norm.pdf(z, *v) for v in ((m, s), (0.0, 1.0)))
        mean = 0.5 * (p + q)
        return 0.5 * (q * np.log(q / mean) + p * np.log(p / mean))

    jsd, _ = scipy.integrate.quad(integrand, -6.0, 6.0)
    loss = 2 * math.log(2) - 2 * jsd
    found = estimates["jsd"]
    assert found.n == n
    assert found.value == pytest.approx(jsd, abs=5.5 * found.stderr)
    assert found.value != pytest.approx(0.9 * jsd, abs=5.5 * found.stderr)
    assert found.stderr < 0.01 * jsd * 2
    assert estimates["nce_loss"].value == pytest.approx(
        loss, abs=5.5 * estimates["nce_loss"].stderr
    )
    off = estimates["calibration_error"]
    assert abs(off.value) < 5.5 * off.stderr < 0.05  # the true ratio is calibrated
    assert arrays["log_r_q"].shape == arrays["log_r_p"].shape == (1, n)
    # Of the posterior's draws E[log r] = KL(q || p), of the prior's -KL(p || q).
    kl = 0.5 * (s**2 + m**2 - 1) - math.log(s)
    assert_mean(arrays["log_r_q"], kl, std=1.2)
    gain, log_z = estimates["nce_gain"], estimates["nce_log_z"]
    assert gain.value == pytest.approx(kl, abs=5.5 * gain.stderr)
    assert abs(log_z.value) < 5.5 * log_z.stderr < 0.1 * kl
    reverse = 0.5 * ((1 + m**2) / s**2 - 1) + math.log(s)
    assert_mean(arrays["log_r_p"], -reverse, std=3.0)


def test_only_groups_that_are_reweighted_are_reported_under_their_numbers(key):
    ncp = ChainVAE().ncp((0.5, -2.0))
    rows = np.linspace(-2, 2, 50, dtype=np.float32)[:, None]

    def held_out(groups):
        return diagnostics.contrast_on_held_out(
            dataclasses.replace(ncp, groups=groups),
            list(datasets.padded_batches(rows, 20)),
            as_it_is,
            key,
            num_passes=2,
        )

    (every, arrays), (part, part_arrays) = held_out(None), held_out((1,))
    none, none_arrays = held_out(())  # as `fit` returns where no group has signal
    assert not none and none_arrays["groups"].dtype.kind == "i"
    kinds = ["nce_loss", "jsd", "calibration_error"]
    kinds += ["nce_gain", "nce_log_r_q", "nce_log_z"]
    assert part.keys() == {f"{kind}/1" for kind in kinds}
    assert every.keys() == {f"{kind}/{k}" for kind in kinds for k in (0, 1)}
    assert part.items() <= every.items()
    assert part["nce_loss/1"] != every["nce_loss/0"]
    np.testing.assert_array_equal(part_arrays.pop("groups"), [1])
    np.testing.assert_array_equal(arrays.pop("groups"), [0, 1])
    assert part_arrays.keys() == arrays.keys()
    for name, rows in part_arrays.items():
        np.testing.assert_array_equal(rows, arrays[name][1:], err_msg=name)
    loss = every["nce_loss/1"]
    np.testing.assert_array_equal(arrays["nce_loss"][1], [loss.value, loss.stderr])
    assert arrays["reliability_num_draws"].sum(1).tolist() == [100, 100]


def test_rows_are_those_of_blocks_with_discriminators():
    blocks = Block(2, (1,), (0,)), Block(2, (1,), (0,))
    vae = types.SimpleNamespace(blocks=blocks)
    assert NCPPrior(vae, None, (None, ())).rows == {2: 0, 3: 1}
    assert NCPPrior(vae, None, ((), ()), (0, 3)).rows == {0: 0, 3: 3}
    assert NCPPrior(vae, None, (None, ()), (3,)).rows == {3: 1}
    assert NCPPrior(vae, None, (None, None)).rows == {}


def test_per_group_names_only_what_there_are_several_of():
    one = diagnostics.per_group("jsd", np.array([[1.0, 3.0]]), "nats")
    assert list(one) == ["jsd"]
    two = diagnostics.per_group("jsd", np.array([[1.0, 3.0], [5.0, 5.0]]), "nats")
    assert {name: e.value for name, e in two.items()} == {"jsd/0": 2.0, "jsd/1": 5.0}
    part = diagnostics.per_group(
        "jsd", np.array([[1.0, 3.0], [5.0, 5.0]]), "nats", {1: 1}
    )
    assert {name: e.value for name, e in part.items()} == {"jsd/1": 5.0}


def test_sampler_diagnostics():
    sir = samplers.SIRInfo(ess=np.array([[2.0, 4.0]]), log_z=np.array([[0.0, 1.0]]))
    found = diagnostics.sampler_diagnostics("sir", sir)
    assert {n: e.value for n, e in found.items()} == {"sir_ess": 3.0, "sir_log_z": 0.5}
    norms = np.array([[[9.0, 1.0], [9.0, 2.0]]])  # [K, N, num_steps]
    info = samplers.LangevinInfo(log_density=norms, gradient_norm=norms)
    found = diagnostics.sampler_diagnostics("langevin", info)
    assert found["langevin_gradient_norm"].value == 1.5  # at the last step
    rates = np.array([[0.5, 0.7], [0.2, 0.4]])  # [K, N]
    mala = samplers.MALAInfo(norms, acceptance=rates, step_size=rates)
    both = samplers.SIRThenMALAInfo(sir, mala)
    found = diagnostics.sampler_diagnostics("sirmala", both)
    assert found.keys() == {
        "sirmala_ess",
        "sirmala_log_z",
        "sirmala_acceptance/0",
        "sirmala_acceptance/1",
    }
    np.testing.assert_allclose(found["sirmala_acceptance/1"].value, 0.3)
    part = diagnostics.sampler_diagnostics("sirmala", mala, rows={1: 1})
    assert part == {"sirmala_acceptance/1": found["sirmala_acceptance/1"]}
    assert diagnostics.sampler_diagnostics("base", None) == {}


def test_log_z_of_few_effective_proposals_has_no_interval():
    """Every chain's is too low, so that their spread says nothing of the error."""
    sir = samplers.SIRInfo(
        ess=np.array([[8.0, 9.0], [100.0, 102.0]]), log_z=np.array([[0.0, 1.0]] * 2)
    )
    found = diagnostics.sampler_diagnostics("sir", sir)
    assert found["sir_log_z/0"].stderr is None
    assert found["sir_log_z/1"].stderr == pytest.approx(0.5)
    assert all(found[f"sir_ess/{k}"].stderr > 0 for k in (0, 1))


def test_a_calibration_error_of_few_examples_has_no_interval(x, key, capsys):
    """Of three it was 0 +- 0: nine of ten bins had no sign."""
    for num, is_enough in ((3, False), (19, False), (20, True)):
        batches = datasets.padded_batches(np.asarray(x[:num]), num)
        found, _ = diagnostics.contrast_on_held_out(
            NCP, batches, as_it_is, key, num_passes=1
        )
        assert (found["calibration_error"].stderr is not None) == is_enough
        said = (
            f"calibration_error: {num} examples are too few" in capsys.readouterr().out
        )
        assert said != is_enough


def test_sampler_diagnostics_takes_the_infos_of_generate(key):
    """Groups are counted over all blocks."""
    out = generation.generate(
        ChainVAE(is_split=True).ncp((0.5, -0.5)), key, 6, 4, SIR(5, chunk_size=5)
    )
    assert isinstance(out.infos, tuple) and len(out.infos) == 2
    found = diagnostics.sampler_diagnostics("sir", out.infos)
    for k, info in enumerate(out.infos):
        assert found[f"sir_ess/{k}"].value == pytest.approx(info.ess.mean(), rel=1e-6)
        assert found[f"sir_ess/{k}"].n == 6
    assert diagnostics.sampler_diagnostics("base", (None, None)) == {}


def test_reconstruct_decodes_a_posterior_draw(x, key):
    decoded, (z,) = diagnostics.reconstruct(VAE, x, key)
    np.testing.assert_allclose(decoded, z[0] @ VAE.weights.T, rtol=1e-5)
    q = VAE.posterior(x)
    white = (np.asarray(z[0]) - q.mean) / q.std
    assert_mean(white, 0.0, std=1.0)
    assert_mean(white**2, 1.0, std=2**0.5)


def test_plane_holds_densities_that_integrate_to_one():
    out = diagnostics.plane(NCP, np.array([[5.5, 0.0], [0.0, -2.0]]), LOG_Z)
    axis = out["plane_grid_x"]
    assert axis[-1] == pytest.approx(1.1 * 5.5)
    cell = (axis[1] - axis[0]) ** 2
    for name, mean in (("plane_log_p", [0.0, 0.0]), ("plane_log_ncp", TILT)):
        density = np.exp(out[name].astype(np.float64)) * cell
        assert density.sum() == pytest.approx(1.0, abs=1e-4)
        # Rows are y and columns x, as `imshow` and `contour` take them.
        assert density.sum(0) @ axis == pytest.approx(mean[0], abs=1e-3)
        assert density.sum(1) @ axis == pytest.approx(mean[1], abs=1e-3)
    off = diagnostics.plane(NCP, np.array([[5.5, 0.0]]), 0.9 * LOG_Z)
    assert np.exp(off["plane_log_ncp"]).sum() * cell > 1.02
