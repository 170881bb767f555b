"""Courses of chains are worth what theory says, and a wrong chain does not win."""

import contextlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.benchmark.chains import compared, measures, ours
from ncp_jax.benchmark.chains.measures import effective_draws
from ncp_jax.experiment import stages
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.pages import benchmark_page
from tests import tiny
from tests.statistics import assert_mean

OTHERS = {"blackjax": ["mala"], "numpyro": ["hmc", "nuts"]}
INSTALLED = [name for name in OTHERS if importlib.util.find_spec(name) is not None]


def autoregressive(a, shape, seed=0):
    """Stationary AR(1) of correlation a, variance 1, along the last axis."""
    noise = np.random.default_rng(seed).normal(size=shape)
    course = noise.copy()
    for t in range(1, shape[-1]):
        course[..., t] = a * course[..., t - 1] + (1 - a**2) ** 0.5 * noise[..., t]
    return course


# --- effective draws


@pytest.mark.parametrize("a", [-0.5, 0.0, 0.5, 0.9])
def test_chains_are_worth_what_their_memory_leaves(a):
    """(1 - a) / (1 + a) of all draws together, which for a < 0 is more than all."""
    share = effective_draws(autoregressive(a, (100, 4, 2_000))) / (4 * 2_000)
    expected = (1 - a) / (1 + a)
    bar = {"std": 0.25 * expected, "bias": 0.03 * expected}
    assert_mean(share, expected, **bar)
    for wrong in (0.8, 1.2):
        with pytest.raises(AssertionError):
            assert_mean(wrong * share, expected, **bar)


def test_chains_that_disagree_are_worth_less():
    course = autoregressive(0.0, (4, 2_000))
    apart = course + 2.0 * np.arange(4)[:, None]
    assert effective_draws(apart) < 10 < 6_000 < effective_draws(course)


def test_chains_that_stand_still_are_worth_one_draw():
    assert effective_draws(np.ones((4, 50))) == 1.0
    few = effective_draws(np.arange(4.0)[:, None] * np.ones((4, 50)))
    assert 1.0 <= few <= 4.0


def test_it_is_the_number_that_numpyro_finds():
    diagnostics = pytest.importorskip("numpyro.diagnostics")
    for a in (-0.5, 0.0, 0.9):
        course = autoregressive(a, (4, 1_000))
        theirs = diagnostics.effective_sample_size(course)
        np.testing.assert_allclose(effective_draws(course), theirs, rtol=0.02)


# --- whether means are right


def tilted(z):
    """Log r = z_0 / 2 makes N(0, I) to N((1/2, 0, ..), I)."""
    return 0.5 * z[:, 0]


def test_the_reference_is_that_of_weighted_proposals(key):
    found = measures.reference(tilted, (3,), key)
    names = measures.function_names(len(found.mean))
    assert names == ["log r", "|z|^2", "z_0", "z_1", "z_2"]
    off = np.abs(found.mean - [0.25, 3.25, 0.5, 0.0, 0.0]) / found.stderr
    assert off.max() < 5.7  # false in one of 10 million
    assert 0.001 < found.stderr[2] < 0.005  # so that 10 % of 1/2 is 10 errors


def test_a_fast_chain_at_another_target_is_seen(key):
    expected = measures.reference(tilted, (2,), key)
    draws = jax.random.normal(jax.random.key(3), (500, 10, 2))  # [T, B, D]
    for shift, is_right in ((jnp.array([0.5, 0.0]), True), (jnp.zeros(2), False)):
        values = jax.vmap(lambda z: measures.functions(tilted, z))(
            draws + shift[None, None]
        )
        course = np.asarray(values).transpose(2, 1, 0)
        ess = effective_draws(course)
        off = measures.deviations(course, ess, expected).max()
        assert (off < benchmark_page.MAX_OFF) == is_right


# --- the part


@contextlib.contextmanager
def as_outside_of_tests():
    """Where others are installed: they promote ranks and dtypes."""
    if not INSTALLED:
        yield
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def rows():
    with as_outside_of_tests():
        return list(
            compared.rows(
                MLPDiscriminator((8,)),
                (3,),
                jax.random.key(7),
                num_chains=6,
                num_steps=400,
                num_calls=2,
                step_size=0.1,
                max_seconds=60.0,
            )
        )


def test_every_sampler_has_a_row_and_is_at_the_target(rows):
    ours = [row["sampler"] for row in rows if row["by"] == "ours"]
    assert ours == ["mala", "isir", "sirmala", "asir"]
    others = [row["sampler"] for row in rows if row["by"] != "ours"]
    assert others == [name for package in INSTALLED for name in OTHERS[package]]
    for row in rows:
        assert row["means_off"] < 8.0, row  # of so few draws the errors are rough
        anew = row["sampler"] in ("sirmala", "asir")
        assert row["num_steps"] == 2 * (20 if anew else 400)
        assert 1.0 < row["ess"] < 3 * 6 * row["num_steps"]
        assert row["stderr"] >= 0.0 and row["num_calls"] == 2
        assert row["effective_per_second"] == pytest.approx(row["ess"] / row["seconds"])
        assert (row["warmup_seconds"] > 0) != anew
        if row["sampler"] == "mala":  # both are led to the same rate
            assert abs(row["acceptance"] - 0.574) < 0.1
    assert rows[0]["of_our_mala"] == {"value": 1.0, "stderr": None}
    ratio, speeds = rows[1]["of_our_mala"], [r["effective_per_second"] for r in rows]
    assert ratio["value"] == pytest.approx(speeds[1] / speeds[0])
    assert ratio["stderr"] >= rows[1]["stderr"] / speeds[0]
    assert [row["evaluations"] for row in rows[:3]] == [1.0, 9.0, 121.0]
    json.dumps(rows)


def test_the_page_says_which_speed_does_not_count(rows):
    found = {"latent_shape": [3], "num_chains": 6, "rows": rows}
    text = benchmark_page.markdown(found)
    assert "| MALA | ours |" in text and "not the target" not in text
    wrong = found | {"rows": [{**rows[0], "means_off": 5.1}]}
    environment = {"date": "2026-01-01"}
    page = benchmark_page.html(
        {"environment": environment, "data": "x", "chains": wrong}
    )
    assert "5.1: not the target" in page and "6 chains" in page


def test_the_stage_passes_its_settings_on(tmp_path, monkeypatch, rows):
    given = {}

    def recorded(network, latent_shape, key, **settings):
        given.update(settings, latent_shape=latent_shape)
        return iter(rows)

    monkeypatch.setattr(compared, "rows", recorded)
    settings = tiny.config()
    settings.benchmark.parts = ("chains",)
    stages.run(settings, tmp_path, "benchmark")
    assert given == {
        "latent_shape": (3,),
        "num_chains": 2,
        "num_steps": settings.benchmark.num_chain_steps,
        "num_calls": settings.benchmark.num_chain_calls,
        "step_size": settings.sample.mala_step_size,
        "max_seconds": settings.benchmark.max_seconds,
    }
    assert json.loads((tmp_path / "benchmark.json").read_text())["chains"]["rows"]
    assert "per second" in (tmp_path / "benchmark.html").read_text()


def test_a_sampler_that_took_too_long_is_called_no_more():
    """But twice, so that there is an error."""
    calls = []

    def sample(key, state):
        calls.append(1)  # when it is traced
        z = jax.random.normal(key, (50, 2, 1))
        return state, ours.Course(z, None, jnp.ones(()))

    chain = ours.Chain("isir", "ours", lambda key, z: z, None, sample)
    running = compared._Running(chain, tilted, jax.random.key(0), jnp.zeros((2, 1)))
    compared.take_turns([running], num_calls=9, max_seconds=0.0)
    assert len(running.seconds) == 2 and len(calls) == 1
    first, second = running.courses
    assert np.all(first != second)  # every call has its own keys
