"""What every sampler promises; a new one joins by a line in `SAMPLERS`.

The base prior is N(0, I) in two dimensions throughout.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ncp_jax import rng, samplers
from ncp_jax.models.discriminator import MLPDiscriminator
from tests.statistics import assert_mean

CHAINS = 8_192
PROPOSALS = 64


def sample(keys):
    return jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)


def log_p(z):
    return -0.5 * jnp.sum(z**2, axis=1)


def density(log_r):
    return lambda z: log_p(z) + log_r(z)


def sir(keys, log_r, num_proposals=PROPOSALS):
    return samplers.sir(keys, sample, log_r, num_proposals=num_proposals, chunk_size=16)


def adaptive_sir(keys, log_r):
    return samplers.adaptive_sir(
        keys, sample, log_r, tolerance=2e-3, max_proposals=1_024
    )


def iterated_sir(keys, log_r):
    return samplers.iterated_sir(
        rng.stream(keys, "chain"),
        sample(rng.stream(keys, "initial")),
        sample,
        log_r,
        num_proposals=8,
        chunk_size=8,
        num_steps=25,
    )


def dynamics(sampler, keys, log_r, **settings):
    initial = sample(rng.stream(keys, "initial"))
    return sampler(rng.stream(keys, "chain"), initial, density(log_r), **settings)


def sir_then_mala(keys, log_r):
    return samplers.sir_then_mala(
        keys,
        sample,
        log_r,
        density(log_r),
        num_proposals=16,
        chunk_size=16,
        step_size=0.8,
        num_steps=30,
    )


# What is left of bias, relative to the deviation: SIR's is that of M proposals,
# Langevin's that of its step (its variance is 1 / (1 - step / 4) of a normal's).
SAMPLERS = {
    "sir": (partial(sir, num_proposals=512), 0.02),
    "adaptive_sir": (adaptive_sir, 0.02),
    "iterated_sir": (iterated_sir, 1e-3),
    "langevin": (
        partial(dynamics, samplers.langevin, step_size=0.05, num_steps=400),
        0.02,
    ),
    "mala": (partial(dynamics, samplers.mala, step_size=0.8, num_steps=60), 1e-3),
    "adaptive mala": (
        partial(
            dynamics,
            samplers.mala,
            step_size=20.0,
            num_steps=150,
            num_adapt_steps=90,
        ),
        1e-3,
    ),
    "sir_then_mala": (sir_then_mala, 1e-3),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
EXACT = [name for name, (_, bias) in SAMPLERS.items() if bias < 0.01]


def run(name, key, log_r, num_chains=CHAINS):
    sampler, _ = SAMPLERS[name]
    keys = jax.random.split(key, num_chains)
    return jax.jit(lambda keys: sampler(keys, log_r))(keys)


TILT = np.array([0.8, -0.5], np.float32)


def tilt(z):
    """Completing the square: r p / Z = N(TILT, I), with log Z = |TILT|^2 / 2."""
    return z @ jnp.asarray(TILT)


@every_sampler
def test_a_tilted_normal(key, name):
    z, _ = run(name, key, tilt)
    bias = SAMPLERS[name][1]
    for i, mean in enumerate(TILT):
        assert_mean(z[:, i], mean, std=1.02, bias=bias)
        assert_mean((z[:, i] - mean) ** 2, 1.0, std=1.5, bias=bias)
        with pytest.raises(AssertionError):
            assert_mean(z[:, i], 0.8 * mean, std=1.02, bias=bias)
        with pytest.raises(AssertionError):
            assert_mean((1.1 * (z[:, i] - mean)) ** 2, 1.0, std=1.5, bias=bias)
    assert_mean((z[:, 0] - TILT[0]) * (z[:, 1] - TILT[1]), 0.0, std=1.05, bias=bias)


CENTRES, WEIGHTS, WIDTH = np.array([[-1.0, 0.0], [1.2, 0.6]]), [0.3, 0.7], 0.6


def to_mixture(z):
    """log of a mixture of two normals over the base prior."""
    parts = [
        jnp.log(weight)
        - 2 * jnp.log(WIDTH)
        - 0.5 * jnp.sum((z - jnp.asarray(centre, jnp.float32)[None]) ** 2, 1) / WIDTH**2
        for centre, weight in zip(CENTRES, WEIGHTS, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0) - log_p(z)


@every_sampler
def test_a_mixture_of_two_modes(key, name):
    z, _ = run(name, key, to_mixture)
    bias = SAMPLERS[name][1]
    right = np.dot(WEIGHTS, scipy.stats.norm.cdf(CENTRES[:, 0] / WIDTH))
    assert_mean(z[:, 0] > 0, right, std=0.5, bias=bias)
    with pytest.raises(AssertionError):
        assert_mean(z[:, 0] > 0, 0.9 * right, std=0.5, bias=bias)
    for power in (1, 2):
        moments = [scipy.stats.norm.moment(power, c, WIDTH) for c in CENTRES[:, 1]]
        assert_mean(z[:, 1] ** power, np.dot(WEIGHTS, moments), std=1.0, bias=bias)


@pytest.mark.parametrize("name", EXACT)
def test_the_target_is_invariant(key, name):
    """From exact draws of it, one step of a corrected sampler leaves exact draws.

    A long step and two proposals: what is not corrected would show.
    """
    start = sample(jax.random.split(key, CHAINS)) + TILT[None]
    keys = jax.random.split(rng.stream(key, "one step"), CHAINS)
    if name == "iterated_sir":
        sizes = {"num_proposals": 2, "chunk_size": 2, "num_steps": 1}
        z, info = samplers.iterated_sir(keys, start, sample, tilt, **sizes)
    else:
        sizes = {"step_size": 2.5, "num_steps": 1}
        z, info = samplers.mala(keys, start, density(tilt), **sizes)
    moved = np.asarray(z != start).any(1)
    assert 0.2 < moved.mean() < 0.8
    np.testing.assert_allclose(info.acceptance, moved)
    for i, mean in enumerate(TILT):
        assert_mean(z[:, i], mean, std=1.0)
        assert_mean((z[:, i] - mean) ** 2, 1.0, std=2**0.5)
    wrong = start + 1.25 * (TILT[None] - start) + 2.5**0.5 * sample(keys)  # unaccepted
    with pytest.raises(AssertionError):
        assert_mean((wrong[:, 0] - TILT[0]) ** 2, 1.0, std=2**0.5)


@every_sampler
def test_a_chain_depends_on_its_own_key_alone(key, name):
    sampler, _ = SAMPLERS[name]
    run = jax.jit(lambda keys: sampler(keys, tilt)[0])
    keys = jax.random.split(key, 6)
    draws = run(keys)
    assert np.unique(draws).size == draws.size
    np.testing.assert_allclose(run(keys[::-1])[::-1], draws, rtol=1e-5)
    np.testing.assert_allclose(run(keys[2:4]), draws[2:4], rtol=1e-5)
    others = keys.at[0].set(rng.stream(key, "another"))
    np.testing.assert_array_equal(run(others)[1:], draws[1:])
    assert (run(others)[0] != draws[0]).all()


@every_sampler
def test_it_compiles_once(key, name):
    sampler, _ = SAMPLERS[name]
    traces = []

    @jax.jit
    def run(keys):
        traces.append(keys)
        return sampler(keys, tilt)

    first, _ = run(jax.random.split(key, 3))
    again, _ = run(jax.random.split(key, 3))
    run(jax.random.split(rng.stream(key, "other"), 3))
    np.testing.assert_array_equal(first, again)
    assert len(traces) == 1


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "langevin"])
def test_not_a_number_is_never_drawn(key, name):
    """r is NaN on a third of the plane: what is left is p, cut off there."""

    def log_r(z):
        return jnp.where(z[:, 0] > 0.4, jnp.nan, 0.0 * z[:, 1])

    z, _ = run(name, key, log_r)
    # Chains of MALA that start there leave by one jump of deviation 0.9; the 2 % that
    # start beyond 2 would often need more than 60 tries.  Nobody enters.
    assert (np.asarray(z[:, 0]) <= 0.4).mean() > 0.98
    kept = z[:, 0][z[:, 0] <= 0.4]
    cut = scipy.stats.truncnorm(-np.inf, 0.4)
    bias = 0.05 if "mala" in name else 0.02  # it may not jump over, so it is slow
    assert_mean(kept, cut.mean(), std=cut.std(), bias=bias)


@every_sampler
def test_what_it_tells_is_of_every_chain(key, name):
    _, info = run(name, key, tilt, num_chains=7)
    for leaf in jax.tree.leaves(info):
        assert leaf.shape[-1] == 7
        assert np.isfinite(leaf).all()
    flat = {
        field: value
        for part in (info if name == "sir_then_mala" else (info,))
        for field, value in part._asdict().items()
    }
    if "acceptance" in flat:
        assert ((flat["acceptance"] > 0.2) & (flat["acceptance"] <= 1)).all()
    if "log_z" in flat:
        assert np.abs(flat["log_z"] - (TILT**2).sum() / 2).max() < 1.5
        assert (flat["ess"] >= 1).all()


def test_mala_follows_its_formula(key):
    """One step against float64 NumPy: the proposal, its acceptance, what stays."""
    n, step = 2_000, 1.7
    keys = jax.random.split(key, n)
    start = sample(jax.random.split(rng.stream(key, "start"), n))
    z, info = samplers.mala(keys, start, density(tilt), step_size=step, num_steps=1)
    step_keys = rng.at_step(keys, 0)
    noise = np.asarray(sample(rng.stream(step_keys, "noise")), np.float64)
    draw = np.asarray(jax.vmap(jax.random.uniform)(rng.stream(step_keys, "accept")))
    old = np.asarray(start, np.float64)

    def log_pi(z):
        return -0.5 * ((z - TILT) ** 2).sum(1)

    def log_q(new, old):
        drift = old + 0.5 * step * (TILT - old)
        return -0.5 * ((new - drift) ** 2).sum(1) / step

    new = old + 0.5 * step * (TILT - old) + step**0.5 * noise
    log_ratio = log_pi(new) - log_pi(old) + log_q(old, new) - log_q(new, old)
    is_accepted = np.log(draw) < log_ratio
    is_sure = np.abs(np.log(draw) - log_ratio) > 1e-4
    expected = np.where(is_accepted[:, None], new, old)
    np.testing.assert_allclose(z[is_sure], expected[is_sure], atol=1e-5)
    np.testing.assert_array_equal(info.acceptance[is_sure], is_accepted[is_sure])
    assert 0.2 < is_accepted.mean() < 0.9


@pytest.mark.parametrize("step_size", [1e-3, 30.0])
def test_adaptation_finds_a_step_of_good_acceptance(key, step_size):
    n = 256
    keys = jax.random.split(key, n)
    initial = sample(jax.random.split(rng.stream(key, "initial"), n))
    settings = {"step_size": step_size, "num_steps": 900, "num_adapt_steps": 600}
    _, info = jax.jit(
        lambda keys: samplers.mala(keys, initial, density(tilt), **settings)
    )(keys)
    assert 0.5 < np.mean(info.acceptance) < 0.65
    assert np.std(np.log(info.step_size)) > 0  # every chain by itself


def test_each_chain_and_step_may_have_a_step_size_of_its_own(key):
    keys, start = jax.random.split(key, 3), jnp.ones((3, 2))
    sizes = jnp.array([0.0, 0.1, 0.4])
    for sampler in (samplers.langevin, samplers.mala):
        together, _ = sampler(keys, start, density(tilt), step_size=sizes, num_steps=4)
        for i, size in enumerate(sizes.tolist()):
            alone, _ = sampler(
                keys[i : i + 1], start[:1], density(tilt), step_size=size, num_steps=4
            )
            np.testing.assert_allclose(together[i], alone[0], rtol=1e-5)
        np.testing.assert_array_equal(together[0], start[0])


def test_a_trajectory_comes_only_if_asked_for(key):
    keys, start = jax.random.split(key, 3), jnp.zeros((3, 2))
    settings = {"step_size": 0.1, "num_steps": 4}
    z, info = samplers.langevin(keys, start, density(tilt), **settings)
    assert info.trajectory is None
    _, info = samplers.langevin(
        keys, start, density(tilt), keep_trajectory=True, **settings
    )
    assert info.trajectory.shape == (4, 3, 2)
    np.testing.assert_array_equal(info.trajectory[-1], z)


def test_the_course_of_a_corrected_chain_ends_where_it_does(key):
    keys, settings = jax.random.split(key, 3), {"num_steps": 5}
    start = sample(keys)
    weighed = {"num_proposals": 4, "chunk_size": 2}
    runs = {
        "mala": partial(
            samplers.mala, keys, start, density(tilt), step_size=0.5, **settings
        ),
        "iterated": partial(
            samplers.iterated_sir, keys, start, sample, tilt, **weighed, **settings
        ),
    }
    for name, run in runs.items():
        z, info = run()
        assert info.trajectory is None
        same, info = run(keep_trajectory=True)
        assert info.trajectory.shape == (5, *start.shape), name
        np.testing.assert_array_equal(info.trajectory[-1], z)
        np.testing.assert_array_equal(same, z)
        before = np.concatenate([start[None], info.trajectory[:-1]])
        moved = np.any(info.trajectory != before, -1).mean(0)
        np.testing.assert_allclose(moved, info.acceptance)


def test_the_memory_of_sir_does_not_grow_with_its_proposals(key):
    """But for the log-weights, 4 M B bytes."""
    num_chains, chunk_size, network = 64, 100, MLPDiscriminator((100, 100))
    context = jnp.zeros((num_chains, 0))
    start = sample(jax.random.split(key, num_chains))
    variables = network.init(key, start, context)

    def compiled(draw):
        lowered = jax.jit(draw).lower(jax.random.split(key, num_chains))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def temporaries(num_proposals):
        sizes = {"num_proposals": num_proposals, "chunk_size": chunk_size}
        log_r = partial(network.apply, variables, context=context)
        return compiled(lambda keys: samplers.sir(keys, sample, log_r, **sizes))

    few, many = temporaries(500), temporaries(5_000)
    assert many <= 1.1 * few + 4 * 5_000 * num_chains

    def all_at_once(keys):
        z = jax.vmap(lambda key: jax.random.normal(key, (5_000, 2)))(keys)
        log_r = jax.vmap(
            lambda z: network.apply(variables, z, context), in_axes=1, out_axes=1
        )(z)
        chosen = jax.vmap(jax.random.categorical)(keys, log_r)
        return jax.vmap(lambda z, i: z[i])(z, chosen)

    assert many < compiled(all_at_once) / 10
