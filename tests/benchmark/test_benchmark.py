"""The benchmark times what it says, counts what is there, and shows it."""

import contextlib
import dataclasses
import importlib.util
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncp_jax.benchmark import (
    alone,
    arithmetic,
    plain,
    roofline,
    sampling,
    scaling,
    slopes,
    stage_two,
    timing,
    training_loop,
)
from ncp_jax.evaluation.importance import chain_ess
from ncp_jax.experiment import benchmark_stage, stages
from ncp_jax.experiment.setup import wiring
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.convolution import convolve
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.distributions import Normal
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.models.stacks import Stack
from ncp_jax.pages import benchmark_page
from ncp_jax.priors import directions, ncp_prior
from ncp_jax.priors.group_samplers import (
    MALA,
    SIR,
    AdaptiveSIR,
    IteratedSIR,
    Langevin,
    SIRThenMALA,
)
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.ncp import ncp_state
from tests import tiny
from tests.oracles import ThreeGroupVAE
from tests.statistics import assert_mean

# --- the training loop


def test_the_stage_times_the_loop_and_trains_nothing(tmp_path):
    settings = tiny.config()
    settings.benchmark.update(num_steps=10, num_repeats=2, parts=("training",))
    stages.run(settings, tmp_path, "benchmark")
    results = json.loads((tmp_path / "benchmark.json").read_text())
    (timings,) = results["training"]["rows"]
    ratio = timings["loop_over_bare_scan"]
    assert ratio["n"] == 2 and 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    for loop, scan in zip(
        timings["loop_steps_per_second"],
        timings["bare_scan_steps_per_second"],
        strict=True,
    ):
        assert ratio["min"] <= scan / loop * (1 + 1e-9)
        assert scan / loop <= ratio["max"] * (1 + 1e-9)
    assert not (tmp_path / "vae").exists()
    assert results["environment"]["device"] and results["environment"]["date"]
    assert "loop / bare scan" in (tmp_path / "benchmark.html").read_text()


def test_the_timed_part_is_what_follows_the_first_validation(monkeypatch):
    clock = iter(range(1_000_000))
    monkeypatch.setattr(training_loop, "perf_counter", lambda: next(clock))
    timings = training_loop.training_loop(
        tiny.toy_task(),
        tiny.toy_state(),
        num_steps=40,
        num_repeats=1,
        steps_per_dispatch=5,
        steps_per_eval=10,
    )
    # A tick per look at the clock: 8 dispatches after the first validation and the end
    # of the last save; the bare scan looks twice.
    assert timings["loop_over_bare_scan"]["median"] == pytest.approx(9.0)
    assert math.isclose(timings["loop_steps_per_second"][0], 40 / 9)


@pytest.mark.parametrize("shape", [(8, 8, 3), (2,)])
def test_noise_stands_for_the_data(shape):
    config = tiny.config()
    config.data.shape = shape
    drawn = wiring.noise_for_data(config)
    assert drawn.train.shape[1:] == drawn.test.shape[1:] == shape
    assert drawn.train.dtype == (np.uint8 if len(shape) == 3 else np.float32)
    config.data.shape = (256, 256, 3)
    assert wiring.noise_for_data(config).train.nbytes <= wiring.MAX_NOISE_BYTES


# --- arithmetic


def count_by_hand(function, *shapes):
    return arithmetic.count_flops(function, *(jnp.ones(shape) for shape in shapes))


def test_products_convolutions_and_loops_are_counted():
    assert count_by_hand(jnp.matmul, (4, 5), (5, 6)) == 2 * 4 * 5 * 6
    batched = jax.vmap(jnp.matmul, (0, None))
    assert count_by_hand(batched, (3, 4, 5), (5, 6)) == 3 * 2 * 4 * 5 * 6
    of_one = 2 * (3 * 3 * 3) * (2 * 4 * 4 * 7)
    assert count_by_hand(convolve, (2, 4, 4, 3), (3, 3, 3, 7)) == of_one
    halved = partial(convolve, stride=2)
    assert count_by_hand(halved, (2, 4, 4, 3), (3, 3, 3, 7)) == of_one / 4
    gradients = jax.grad(lambda x, k: jnp.sum(convolve(x, k)), argnums=(0, 1))
    assert count_by_hand(gradients, (2, 4, 4, 3), (3, 3, 3, 7)) == 3 * of_one

    def loop(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert count_by_hand(loop, (4, 5), (5, 5)) == 7 * 2 * 4 * 5 * 5

    def branches(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)

    assert count_by_hand(jax.jit(branches), (4, 5), (5, 5)) == 2 * 2 * 4 * 5 * 5
    assert count_by_hand(jnp.tanh, (4, 5)) == 0


def test_a_chain_is_worth_what_its_memory_leaves():
    """AR(1) of correlation a: (1 - a) / (1 + a) of its length."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(400, 4_000))
    for a in (0.0, 0.5, 0.9):
        course = np.empty_like(noise)
        course[:, 0] = noise[:, 0]
        for t in range(1, 4_000):
            course[:, t] = a * course[:, t - 1] + (1 - a**2) ** 0.5 * noise[:, t]
        share = chain_ess(course) / 4_000
        expected = (1 - a) / (1 + a)
        assert_mean(share, expected, std=0.25 * expected, bias=0.03 * expected)
        with pytest.raises(AssertionError):
            assert_mean(1.15 * share, expected, 0.25 * expected, 0.03 * expected)
    np.testing.assert_array_equal(chain_ess(np.ones((2, 50))), 1.0)


def test_a_chain_is_worth_no_more_draws_than_it_has_visited():
    course = np.zeros((3, 2_000))
    course[0, -1] = 1.0  # moved once, at its last step
    course[1, [500, 1_500]] = 1.0  # out and back, twice
    course[2, :] = np.arange(2_000) % 2 - 0.5  # moves at every step
    np.testing.assert_array_equal(chain_ess(course)[:2], [2.0, 5.0])
    assert chain_ess(course)[2] == 2_000


# --- samplers


@pytest.fixture(scope="module")
def ncp():
    module, network = ThreeGroupVAE(), MLPDiscriminator((8,))
    x, key = jnp.zeros((1, *module.data_shape)), jax.random.key(1)
    vae = FrozenVAE(module, jax.jit(module.init)(key, x, key))
    params = ncp_state.init_params(network, vae, key)
    return ncp_prior.NCPPrior(
        vae, network, jax.tree.map(lambda leaf: leaf + 0.3, params)
    )


@pytest.fixture(scope="module")
def in_signal(ncp):
    """The same VAE on a direction of each group but the second, which has none."""
    found = directions.random_directions(ncp.vae, jax.random.key(2), 1)
    found = dataclasses.replace(found, widths=(1, 0, 1))
    vae = SignalVAE(ncp.vae, found, context_size=1)
    params = ncp_state.init_params(
        ncp.discriminator, vae.coordinates, jax.random.key(3)
    )
    params = jax.tree.map(lambda leaf: leaf + 0.7, params)
    rest = (None,) * (len(vae.blocks) - 1)
    return ncp_prior.NCPPrior(
        vae, ncp.discriminator, (*params, *rest), vae.chosen(None)
    )


def test_on_signal_directions_the_reweighted_groups_alone_count(in_signal, key):
    assert in_signal.reweighted_blocks == (0,)
    assert in_signal.reweighted_groups == in_signal.reweighted_in(0) == (0, 2)
    assert in_signal.reweighted_in(1) == ()
    settings = sampling.Settings(
        num_images=(2,),
        num_proposals=(4, 8),
        num_steps=(4, 8),
        num_repeats=1,
        memory_bytes=10**6,
    )
    rows = list(sampling.rows(in_signal, key, settings, roofline.Machine(1e12, 1e10)))
    few, many = rows[:2]
    of_one_proposal = (many["flops"] - few["flops"]) / (2 * (8 - 4))
    assert of_one_proposal == 2 * 2 * (1 * 8 + 8 * 1)  # u of 1, 8 wide, 2 groups
    assert all(row["groups"] == [0, 2] for row in rows)
    for row in (few, many, *(r for r in rows if r["sampler"] in ("asir", "isir"))):
        assert len(row["ess"]) == 2 and min(row["ess"]) >= 1  # no zeros of others
    (adaptive,) = (row for row in rows if row["sampler"] == "asir")
    assert adaptive["num_proposals"] == [64, 64]  # the first are enough here
    of_adaptive = few["flops"] + (64 - 4) * 2 * of_one_proposal
    assert adaptive["weighed"] == 64 and adaptive["flops"] == of_adaptive
    assert few["plain"]["ratio"] > 0 and few["plain"]["num_bytes"] > 0
    advice = sampling.recommendations(rows)
    assert [row["group"] for row in advice] == [0, 2]
    half = sampling.bfloat16_effect(in_signal, key, rows, 3.0, max_proposals=20)
    assert [row["group"] for row in half] == [0, 2]
    assert all(row["deviation_of_log_r"] > 0 for row in half)
    json.dumps(rows)


def test_chains_in_signal_space_compute_ratios_and_no_decoder(in_signal, key):
    """A step costs what it costs where there is no VAE at all."""
    keys = jax.random.split(key, 2)
    coordinates = dataclasses.replace(
        in_signal, vae=in_signal.vae.coordinates, params=in_signal.params[:1]
    )

    def of_steps(ncp, make):
        def draw(ncp, draw):
            return ncp_prior.ancestral(ncp, keys, draw).latents

        few, many = (
            arithmetic.count_flops(partial(draw, draw=make(n)), ncp) for n in (10, 20)
        )
        return many - few

    for make in (partial(Langevin, 0.1), partial(MALA, 0.1, num_adapt_steps=2)):
        found = of_steps(in_signal, lambda n, make=make: make(num_steps=n))
        alone = of_steps(coordinates, lambda n, make=make: make(num_steps=n))
        assert found == alone > 0


def test_a_run_on_directions_is_timed_in_them(tmp_path):
    settings = tiny.config()
    settings.ncp.directions.update(cap=2, context_size=1)
    experiment = tiny.experiment(tmp_path, settings)
    with contextlib.closing(experiment.workdir):
        ncp, weights = benchmark_stage._prior(experiment)
    assert weights == "random" and isinstance(ncp.vae, SignalVAE)
    assert ncp.vae.directions.widths == (2,)
    assert [params is None for params in ncp.params] == [False, True]
    assert benchmark_stage._first_stack(ncp) == Stack((0,), 1, (2,), (0,))
    log_r = ncp.log_ratio(0, 0, jnp.zeros((4, 0)))(jnp.arange(8.0).reshape(4, 2))
    assert np.std(log_r) > 0  # shaken: a discriminator starts as r = 1
    other = tiny.experiment(tmp_path / "whole", tiny.config())
    with contextlib.closing(other.workdir):
        whole, _ = benchmark_stage._prior(other)
    assert benchmark_stage._first_stack(whole) == Stack((0,), 1, (3,), (0,))


def test_every_sampler_has_a_row_and_long_calls_are_left_out(ncp, key, monkeypatch):
    settings = sampling.Settings(
        num_images=(2,),
        num_proposals=(4, 8, 10**9),
        num_steps=(2,),
        num_repeats=2,
        max_seconds=5.0,
        memory_bytes=10**6,
    )
    rows = list(sampling.rows(ncp, key, settings, roofline.Machine(1e12, 1e10)))
    names = [row["sampler"] for row in rows]
    assert names == ["sir"] * 3 + ["langevin", "asir", "isir", "mala", "sirmala"]
    for row in (rows[2], rows[4]):  # one that ends by itself may go to its end
        assert "skipped" in row and "seconds" not in row
    for row in rows[:2] + rows[3:4] + rows[5:]:
        assert 0 < row["min_seconds"] <= row["seconds"] <= row["max_seconds"]
        assert row["first_seconds"] > row["seconds"]
        assert row["draws_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["share_of_ceiling"] == pytest.approx(row["flops_per_second"] / 1e12)
        roof = min(1e12, row["intensity"] * 1e10)
        assert row["share_of_roofline"] == pytest.approx(row["flops_per_second"] / roof)
    of_one_proposal = (rows[1]["flops"] - rows[0]["flops"]) / (2 * (8 - 4))
    assert of_one_proposal == 3 * 2 * (2 * 8 + 8 * 1)  # z of 2, 8 wide, 3 groups
    assert all(rows[i]["plain"]["ratio"] > 0 for i in (0, 1, 3))
    assert all(len(rows[i]["ess"]) == 3 for i in (0, 1, 5, 7))
    json.dumps(rows)
    text = "\n".join(map(benchmark_page.line, rows))
    assert "SIR, then MALA" in text and "not run" in text


@pytest.mark.parametrize("where", ["ncp", "in_signal"])
def test_the_plain_versions_draw_from_the_same_prior(where, request, key):
    """The means of pictures, ours and theirs, at M = 20 proposals."""
    ncp = request.getfixturevalue(where)
    n = 4_000
    theirs = plain.Plain(ncp).sir(key, n, 20)
    keys = jax.random.split(jax.random.key(5), n)
    ours = jax.jit(
        lambda keys: (
            ncp.vae.decode(ncp_prior.ancestral(ncp, keys, SIR(20, 20)).carry).mean
        )
    )(keys)
    base = plain.Plain(ncp).sir(key, n, 1)
    std = float(np.std(base)) * 2**0.5
    for i in range(3):
        assert_mean(theirs[:, i] - ours[:, i], 0.0, std=std)
    shift = np.abs(np.mean(theirs - base, 0)).max()
    assert shift > 6 * std / n**0.5  # SIR is not the base prior, and it would be seen


def test_groups_of_poor_weights_are_left_to_mala():
    rows = [
        {"sampler": "sir", "size": 50, "num_images": 1, "ess": [40.0, 3.0]},
        {"sampler": "sir", "size": 500, "num_images": 1, "ess": [400.0, 3.0]},
        {"sampler": "mala", "ess": [5.0, 5.0], "acceptance": [0.6, 0.5]},
    ]
    first, second = sampling.recommendations(rows)
    assert first["sampler"] == "SIR, M = 13"  # 10 effective of 500 / 400 each
    assert second["sampler"] == "SIR, then MALA" and second["mala_acceptance"] == 0.5
    assert sampling.recommendations(rows[2:]) == []


def test_the_effect_of_bfloat16_is_measured(ncp, key):
    sir = {"sampler": "sir", "size": 5, "num_images": 2, "seconds": 0.1}  # 10 ms each
    rows = sampling.bfloat16_effect(ncp, key, [sir], max_seconds=3.0, num_images=3)
    assert [row["group"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert 0 < row["mean_difference"] < row["max_difference"]
        assert row["max_difference"] < 0.05 * row["deviation_of_log_r"] + 0.05
        assert row["ess_bfloat16"] == pytest.approx(row["ess_float32"], rel=0.05)
        assert row["num_proposals"] == 50  # of 3 chains, in 2 precisions: 3 seconds


NETWORKS = {
    "mlp": (MLPDiscriminator((16, 16)), (6,)),
    "residual": (ResidualDiscriminator(8, "AB"), (4, 4, 3)),
    "residual, odd, no norm": (ResidualDiscriminator(8, "BA", "none"), (5, 3, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_computes_the_same_ratio(key, name):
    pytest.importorskip("torch")
    from ncp_jax.benchmark import in_torch

    network, shape = NETWORKS[name]
    variables = alone.random_variables(network, shape, key)
    z = np.asarray(jax.random.normal(key, (7, *shape)))
    ours = alone.log_ratio(network, variables, z)
    theirs = in_torch.build(network, variables["params"])(in_torch.from_ours(z))
    np.testing.assert_allclose(theirs.cpu().numpy(), ours, rtol=1e-3, atol=1e-4)
    assert np.std(ours) > 1e-3
    for draws in (
        in_torch.sir(lambda z: z.flatten(1).sum(1), (500, 2), 300),
        in_torch.langevin(lambda z: z.flatten(1).sum(1), (500, 2), 300, 0.05),
    ):
        assert_mean(draws.cpu().numpy(), 1.0, std=1.05, bias=0.05)  # N(1, I)


def test_one_group_alone_is_compared_with_other_versions(key):
    network, shape = NETWORKS["mlp"]
    rows = list(
        alone.rows(
            network,
            shape,
            key,
            num_chains=2,
            num_proposals=(5,),
            num_steps=(3,),
            chunk_size=lambda m: m,
            step_size=0.1,
            num_repeats=1,
            max_seconds=1.0,
        )
    )
    assert [row["sampler"] for row in rows] == ["sir", "langevin"]
    assert rows[0]["at_once"] > 0
    low, median, high = rows[0]["quartiles"]["at_once"]
    assert low <= median <= high
    assert f"{median:.3g} x ({low:.3g} to {high:.3g})" in benchmark_page.markdown(
        {"rows": rows}
    )
    assert rows[1]["loop_of_eager_steps"] > rows[1]["seconds"]
    has_torch = importlib.util.find_spec("torch") is not None
    assert all(("torch_eager" in row) == has_torch for row in rows)


def test_stage_two_is_timed_for_every_number_of_groups(key):
    update = stage_two.Update(
        MLPDiscriminator((8,)),
        optax.adam(1e-3),
        Stack((0,), 3, (4,), (2,)),
        key,
        batch_size=4,
        num_repeats=2,
        max_seconds=1.0,
    )
    rows = list(stage_two.rows(update, (1, 3)))
    assert [(row["num_groups"], row["num_devices"]) for row in rows] == [(1, 1), (3, 1)]
    for row in rows:
        assert row["steps_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["seconds"] == row[row["formulation"]]["seconds"]


def test_timings_are_of_whole_calls():
    seconds = timing.time_calls(lambda: jnp.ones(3) + 1, num_repeats=3, max_seconds=9.0)
    assert len(seconds) == 3 and min(seconds) > 0
    assert len(timing.time_calls(lambda: 0, num_repeats=5, max_seconds=0.0)) == 1
    assert timing.matmul_ceiling("float32", size=64, num_repeats=1) > 0
    assert timing.copy_bandwidth(num_bytes=4_096, num_repeats=2) > 0


# --- how costs grow


def on_a_curve(sizes, seconds, curve="chains"):
    return [
        {"curve": curve, "sampler": "sir", "size": n, "seconds": t}
        for n, t in zip(sizes, seconds, strict=True)
    ]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_slope_of_a_power_is_its_exponent(power):
    sizes = [1, 3, 10, 40, 1_000]
    rows = on_a_curve(sizes, [7e-4 * n**power for n in sizes])
    skipped = {"curve": "chains", "sampler": "sir", "size": 10**4, "skipped": "long"}
    rows = list(slopes.with_slopes([*rows, skipped]))
    assert "slope" not in rows[0] and "slope" not in rows[-1]
    for row in rows[1:-1]:
        assert row["slope"] == pytest.approx(power, abs=1e-12)
    (curve,) = slopes.curves(rows)
    assert curve["slope"] == pytest.approx(power, abs=1e-12)
    assert curve["sizes"] == sizes


def test_the_slope_of_a_curve_is_that_of_its_upper_half():
    sizes = [1, 2, 4, 8, 16]
    flat_then_linear = on_a_curve(sizes, [4, 4, 4, 8, 16])
    (curve,) = slopes.curves(flat_then_linear)
    assert curve["slope"] == pytest.approx(1.0)  # of the last three
    others = on_a_curve([1], [2.0], "devices") + on_a_curve([1, 2], [3.0, 6.0], "dims")
    single, pair = slopes.curves(others)
    assert single["slope"] is None and pair["slope"] == pytest.approx(1.0)
    found = [row.get("slope") for row in slopes.with_slopes(others)]
    assert found[:2] == [None, None] and found[2] == pytest.approx(1.0)


def test_bytes_are_those_of_the_loop_as_often_as_it_runs():
    x = jnp.ones((32, 32))
    assert roofline.bytes_accessed(jnp.matmul, x, x) == 3 * x.nbytes
    assert roofline.passes(SIR(100, 40)) == [(40, 2), (20, 1)]
    assert roofline.passes(SIR(30, 40)) == [(30, 1)]
    assert roofline.passes(MALA(0.1, 9, 2)) == [(0, 10)]
    assert roofline.passes(AdaptiveSIR(min_proposals=16), 40.0) == [(16, 2.5)]
    for draw in (SIR(12, 5), IteratedSIR(5, 3, 2), SIRThenMALA(5, 2, 0.1, 3, 0)):
        weighed = sum((n or 2) * times for n, times in roofline.passes(draw))
        assert weighed == sampling.evaluations(draw)  # a gradient counts twice
    placed = roofline.placed(100.0, 50.0, 2.0, roofline.Machine(1e3, 10.0))
    assert placed["intensity"] == 2.0 and placed["share_of_bandwidth"] == 2.5
    assert placed["share_of_roofline"] == 2.5  # 50 FLOP/s; 20 are allowed


@pytest.mark.parametrize("draw", [SIR(60, 20), Langevin(0.1, 3)])
def test_a_pass_moves_what_xla_counts_in_the_whole_sampler(key, draw):
    """Which is the body of its loop once; a tenth more or less would be seen."""
    network, shape, num_chains = MLPDiscriminator((100, 100)), (50,), 10
    variables = alone.random_variables(network, shape, key)
    z = jnp.zeros((num_chains, *shape))

    def run(variables, keys):
        log_r = partial(alone.log_ratio, network, variables)
        target = ncp_prior.Target(Normal(z, z + 1), log_r, jnp.array(0))
        return draw(keys, target)  # what nobody reads is not computed

    whole = roofline.bytes_accessed(run, variables, jax.random.split(key, num_chains))
    one = roofline.pass_bytes(
        *(network, variables["params"], shape, (0,), num_chains),
        roofline.passes(draw)[0].num_proposals,
    )
    assert one == pytest.approx(whole, rel=0.06)


def test_every_curve_is_timed_and_drawn(key):
    settings = scaling.Settings(
        num_proposals=(2, 4),
        num_steps=(2,),
        num_chains=(2,),
        latent_dims=(3,),
        num_groups=(2,),
        num_devices=(1,),
        chains=2,
        step_size=0.1,
        num_repeats=1,
        max_seconds=1.0,
    )
    machine = roofline.Machine(1e12, 1e10)
    network, shape = NETWORKS["mlp"]
    rows = list(
        slopes.with_slopes(
            scaling.rows(network, shape, key, settings, machine, lambda _, m: m)
        )
    )
    assert [row["curve"] for row in rows] == [
        *("proposals", "proposals", "chains", "dimension", "groups", "devices"),
        *("steps", "chains", "dimension", "groups", "devices"),
    ]
    few, many, two_chains, other_dim, two_groups, one_device, steps, *_ = rows
    of_z = 2 * (6 * 16 + 16 * 16 + 16)  # of the network, for one z
    assert few["flops"] == 2 * 2 * of_z and many["flops"] == 2 * few["flops"]
    assert two_groups["flops"] == 2 * few["flops"]
    for same in (two_chains, one_device):  # one call, on three curves
        assert same["seconds"] == few["seconds"]
    assert other_dim["flops"] == 2 * 2 * (of_z - 2 * 3 * 16)
    assert steps["flops"] == 2 * (2 * 2) * of_z  # a gradient counts twice
    assert two_groups["bytes_moved"] == 2 * few["bytes_moved"]
    weights = 4 * (6 * 16 + 16 * 16 + 16 + 16 + 16 + 1)
    assert all(row["bytes_moved"] > weights for row in (few, many, steps))
    assert "slope" in many and "slope" not in few
    found = {"latent_shape": [6], "rows": rows, "curves": slopes.curves(rows)}
    found |= {"ceiling_flops_per_second": 1e12, "bandwidth_bytes_per_second": 1e10}
    found = json.loads(json.dumps(found))
    results = {"environment": {"date": "today"}, "data": "noise", "scaling": found}
    html = benchmark_page.html(results)
    assert html.count("<img") == 2  # one curve of two sizes, one roof
    assert f"slope {found['curves'][0]['slope']:.2f}" in html and "Roofline" in html
    assert "of the roofline" in benchmark_page.line(found["rows"][0])
