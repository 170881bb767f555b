"""`generation.py`: pictures that depend on their number, in the memory there is."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.base import FrozenVAE, GroupPrior
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.distributions import Normal
from ncp_jax.priors import generation, ncp_prior
from ncp_jax.priors.group_samplers import SIR, Base, Langevin
from ncp_jax.training.ncp import ncp_state
from tests import tiny
from tests.oracles import LinearGaussianVAE, ThreeGroupVAE, tilted


@pytest.fixture(scope="module")
def ncp():
    module, network = ThreeGroupVAE(), MLPDiscriminator((16,))
    x, key = jnp.zeros((1, *module.data_shape)), jax.random.key(1)
    vae = FrozenVAE(module, jax.jit(module.init)(key, x, key))
    params = ncp_state.init_params(network, vae, key)
    leaves = jax.tree.leaves(params)
    generator = np.random.default_rng(0)
    noise = [generator.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return ncp_prior.NCPPrior(
        vae, network, jax.tree.unflatten(jax.tree.structure(params), noise)
    )


def first(n, out):
    """The first n pictures and where they came from."""
    latents, infos = jax.tree.map(lambda leaf: leaf[:, :n], (out.latents, out.infos))
    return generation.Generated(out.images[:n], latents, infos)


@pytest.mark.parametrize(
    "draw", [Base(), SIR(30, chunk_size=10), Langevin(0.01, num_steps=3)]
)
def test_a_picture_depends_on_its_number_alone(ncp, key, draw):
    whole = generation.generate(ncp, key, num_images=7, batch_size=7, draw=draw)
    for num_images, batch_size in ((7, 3), (5, 2), (7, 100)):
        part = generation.generate(ncp, key, num_images, batch_size, draw)
        expected = first(num_images, whole)
        chex.assert_trees_all_close(part, expected, rtol=1e-5)


def test_batches_are_those_of_all_and_compile_once(ncp, key):
    with tiny.compilations() as count:
        parts = list(generation.batches(ncp, key, 8, 3, Base()))
        assert [len(part.images) for part in parts] == [3, 3, 2]
        generation.generate(ncp, jax.random.key(9), 6, 3, Base())
    assert count["draw_batch"] <= 1  # none, where another test had this one
    whole = generation.generate(ncp, key, 8, 3, Base())
    np.testing.assert_array_equal(
        np.concatenate([part.images for part in parts]), whole.images
    )


# --- memory


def test_a_chunk_that_is_too_large_is_halved_and_the_draws_stay(
    ncp, key, monkeypatch, capsys
):
    sound, tried = generation.draw_batch, []

    def small_device(mesh, draw, prior, keys):
        tried.append(draw.chunk_size)
        if draw.chunk_size > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return sound(mesh, draw, prior, keys)

    expected = generation.generate(ncp, key, 6, 3, SIR(30, chunk_size=30))
    monkeypatch.setattr(generation, "draw_batch", small_device)
    out = generation.generate(ncp, key, 6, 3, SIR(30, chunk_size=30))
    assert tried == [30, 15, 7, 7]  # and the next batch starts where that ended
    assert "chunks of 15 proposals" in capsys.readouterr().out
    chex.assert_trees_all_close(out, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (SIR(30, chunk_size=1), "RESOURCE_EXHAUSTED: Out of memory"),
        (Base(), "RESOURCE_EXHAUSTED: Out of memory"),
        (SIR(30, chunk_size=30), "INTERNAL: something else"),
    ],
)
def test_what_smaller_chunks_cannot_cure_is_raised(
    ncp, key, draw, message, monkeypatch
):
    def broken(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(generation, "draw_batch", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message[:8]):
        generation.generate(ncp, key, 6, 3, draw)


def test_a_chunk_fits_into_the_memory_it_is_given(ncp):
    """As XLA counts it: a larger budget takes more, and what it takes is within it."""
    wide = MLPDiscriminator((512, 512))
    ncp = dataclasses.replace(
        ncp,
        discriminator=wide,
        params=ncp_state.init_params(wide, ncp.vae, jax.random.key(0)),
    )
    num_chains, sizes = 16, []
    for mib in (1, 4, 16):
        size = generation.fitting_chunk(ncp, num_chains, 10_000, mib * 2**20)
        sizes.append(size)

        def weigh(ncp, z):
            context = jnp.zeros((num_chains, 2))
            return jax.vmap(ncp.log_ratio(0, 0, context))(z)

        z = jax.ShapeDtypeStruct((size, num_chains, 2), jnp.float32)
        analysis = jax.jit(weigh).lower(ncp, z).compile().memory_analysis()
        assert 0.2 * mib <= analysis.temp_size_in_bytes / 2**20 <= 1.25 * mib
    assert sizes[0] < sizes[1] < sizes[2]
    assert generation.fitting_chunk(ncp, num_chains, 12, 2**30) == 12
    assert generation.fitting_chunk(ncp, num_chains, 5_000, 1) == 1


def test_where_nothing_is_weighed_all_proposals_fit(ncp):
    still = dataclasses.replace(ncp, params=(None,) * len(ncp.vae.blocks))
    assert generation.fitting_chunk(still, 4, 5_000, 1) == 5_000


def test_chunks_divide_the_proposals_where_that_costs_little(ncp):
    sizes = [
        generation.fitting_chunk(ncp, 64, number, 2**20) for number in (5_000, 4_999)
    ]
    assert 5_000 % sizes[0] == 0
    assert sizes[1] > 1  # 4,999 is prime


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfBatchOne(LinearGaussianVAE):
    """Its base prior is [1, L] whatever the batch."""

    def prior(self, block, k, carry):
        standard = Normal(jnp.zeros((1, 2)), jnp.ones((1, 2)))
        return GroupPrior(standard, jnp.zeros((carry.shape[0], 0)))


def test_a_vae_that_cannot_be_drawn_from_is_named(key):
    """By `check`, and once only for each kind of model."""
    weights = jnp.array([[1.0, 0.0], [0.0, 0.8], [0.2, 0.0]])
    right, wrong = (
        tilted(kind(weights), np.zeros(2, np.float32))
        for kind in (LinearGaussianVAE, OfBatchOne)
    )
    generation._check_kind.cache_clear()
    for _ in range(2):
        generation.sample(right, key, 2, Base())
    assert generation._check_kind.cache_info().misses == 1
    with pytest.raises(InputError, match=r"OfBatchOne cannot be used.*\n.*of batch 1"):
        generation.sample(wrong, key, 2, Base())
    with pytest.raises(InputError, match=r"prior of block 0: \.mean .* is \[1, 2\]"):
        generation.generate(wrong, key, 2, 2, Base())


@pytest.mark.parametrize("sizes", [(0.1,), (0.1,) * 4])
def test_step_sizes_are_one_for_each_group(ncp, key, sizes):
    with pytest.raises(InputError, match=f"{len(sizes)} step sizes for 3 groups"):
        generation.sample(ncp, key, 2, Langevin(sizes, 3))


@pytest.mark.parametrize(
    "number", [{"num": 0}, {"num": 8.0}, {"num": 2, "batch_size": 0}]
)
def test_no_picture_is_no_sample(ncp, key, number):
    with pytest.raises(InputError, match="must be an integer in"):
        generation.sample(ncp, key, **number, sampler=Base())


def test_what_to_do_about_draws_that_are_not_finite_fits_the_sampler(ncp, key):
    lost = dataclasses.replace(
        ncp, params=jax.tree.map(lambda leaf: jnp.nan * leaf, ncp.params)
    )
    with pytest.raises(InputError, match="NaN or infinity in the weights"):
        generation.sample(lost, key, 2, SIR(4, 4))
    with pytest.raises(InputError, match="lower its step size"):
        generation.sample(lost, key, 2, Langevin(0.1, 2))


@pytest.mark.parametrize("groups", [(7,), (0, 3), (-1,)])
def test_groups_that_the_model_lacks_are_refused(ncp, groups):
    with pytest.raises(InputError, match="has the groups 0 to 2; name some of them"):
        dataclasses.replace(ncp, groups=groups)
    chosen = dataclasses.replace(ncp, groups=(2,))
    assert jax.tree.map(lambda leaf: leaf, chosen).groups == (2,)
