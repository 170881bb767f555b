"""A VAE in signal coordinates is the same VAE; its SIR is that of the full space."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.evaluation import likelihood
from ncp_jax.models.base import Block, Encoding, FrozenVAE, GroupPrior
from ncp_jax.models.distributions import Normal
from ncp_jax.priors import directions, generation
from ncp_jax.priors.group_samplers import MALA, SIR, Base, IteratedSIR, Langevin
from ncp_jax.priors.latents import log_prior, walk
from ncp_jax.priors.ncp_prior import NCPPrior, ancestral, base_draw_ratios
from ncp_jax.priors.signal_space import PaddedNormal, SignalVAE
from tests.oracles import InterleavedVAE, ThreeGroupVAE, TwoBlockVAE
from tests.signal_toy import SignalVAE as SignalToy
from tests.signal_toy import planes
from tests.statistics import assert_mean

MODULES = [TwoBlockVAE(), ThreeGroupVAE(), InterleavedVAE()]


def signal_vae(module, key, num=1, widths=None, **settings):
    x = jnp.zeros((1, *module.data_shape))
    vae = FrozenVAE(module, jax.jit(module.init)(key, x, key))
    found = directions.random_directions(vae, key, num)
    if widths:
        found = dataclasses.replace(found, widths=widths)
    return SignalVAE(vae, found, **settings)


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_encodings_are_those_of_the_vae_and_weigh_the_same(key, module, is_joint):
    model = signal_vae(module, key, context_size=1, is_joint=is_joint)
    x = jax.random.normal(key, (5, *module.data_shape))

    @jax.jit
    def both(model, x):
        seen = model.encode(x, key)
        log_p, carry = log_prior(model, seen.latents)
        z = model.vae.encode(x, rng.stream(key, "posterior"))
        log_p_z, carry_z = log_prior(model.vae, z.latents)
        here = jnp.sum(log_p - seen.log_q, 1), model.decode(carry).mean
        there = jnp.sum(log_p_z - z.log_q, 1), model.vae.decode(carry_z).mean
        return here, there, log_p.shape == seen.log_q.shape

    here, there, is_same_shape = both(model, x)
    assert is_same_shape
    np.testing.assert_allclose(here[0], there[0], atol=2e-5)
    np.testing.assert_allclose(here[1], there[1], atol=2e-5)


@pytest.mark.parametrize("num", [2, 32])
def test_float32_is_enough_for_wide_groups(key, num):
    """u and w of 320 dimensions, far from the prior, make z again to its last digits.

    The columns of the basis are orthonormal up to rounding; were they 1e-3 off, as
    products in TF32 make them, this would show.
    """
    vae = SignalToy(jnp.asarray(planes(2, 320)), jnp.array([[6.0, 5.0], [4.0, 3.0]]))
    found = directions.random_directions(vae, key, num)
    x = 3.0 * jax.random.normal(key, (4, 2))

    @jax.jit
    def error(model):
        z = model.to_z(model.encode(x, key).latents)
        own = model.vae.encode(x, rng.stream(key, "posterior")).latents
        return jnp.abs(z[0] - own[0]).max() / jnp.abs(own[0]).max()

    assert error(SignalVAE(vae, found)) < 2e-6
    off = dataclasses.replace(found, basis=tuple(1.001 * b for b in found.basis))
    assert error(SignalVAE(vae, off)) > 2e-5
    (basis,) = found.basis
    gram = jnp.einsum("kdi,kdj->kij", basis, basis)
    np.testing.assert_allclose(gram, np.stack([np.eye(num)] * 2), atol=1e-6)


def test_ratios_may_read_no_context(key):
    model = signal_vae(ThreeGroupVAE(), key, context_size=0)
    assert model.blocks[0].context_shape == (0,)
    (u, *_), _ = model.encode(jax.random.normal(key, (4, 3)), key)
    (seen,), _ = walk(model.coordinates, (u,), lambda b, k, prior, u_k: prior.context)
    assert seen.shape == (3, 4, 0)


@pytest.mark.parametrize("module", MODULES)
def test_base_draws_are_those_of_the_prior(key, module):
    """Standardised, they are standard normal: first and second moments."""
    model = signal_vae(module, key, context_size=1)
    ncp = NCPPrior(model, nn.Dense(1), (None,) * len(model.blocks))
    keys = jax.random.split(key, 20_000)

    @jax.jit
    def draw(ncp):
        carry = ancestral(ncp, keys, Base()).carry
        u = carry.u  # [N, K, m]
        return u, ncp.vae.decode(carry).mean, _ancestral_mean(ncp.vae.vae, key)

    u, images, of_vae = draw(ncp)
    flat = np.asarray(u).reshape(len(u), -1)
    for moment, spread in ((flat, 1.0), (flat**2 - 1, 2**0.5)):
        for column in moment.T:
            assert_mean(column, 0.0, spread)
    for column in (flat[:, :1] * flat[:, 1:]).T:
        assert_mean(column, 0.0, 1.0)
    mean, std = (np.asarray(f(of_vae, 0), np.float64) for f in (jnp.mean, jnp.std))
    for i in range(images.shape[1]):
        scaled = (np.asarray(images)[:, i] - mean[i]) / std[i]
        assert np.abs(scaled.mean()) < 0.07 and np.abs(scaled.var() - 1) < 0.1


def _ancestral_mean(vae, key):
    ncp = NCPPrior(vae, nn.Dense(1), (None,) * len(vae.blocks))
    keys = jax.random.split(rng.stream(key, "other"), 20_000)
    return vae.decode(ancestral(ncp, keys, Base()).carry).mean


# --- the same law as in the full space

DIM, TILT = 40, (1.2, -0.8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WideVAE:
    """Two groups of 40 dimensions, z_2 | z_1 ~ N(0.3 z_1, 0.5^2 I); x is both."""

    directions: jax.Array  # [40, 2]

    @property
    def blocks(self):
        return (Block(2, (DIM,), (DIM,)),)

    def encode(self, x, key):
        z = jax.random.normal(key, (2, len(x), DIM))
        return Encoding((z,), jnp.zeros((len(x), 2)))

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2, DIM))

    def prior(self, block, k, carry):
        is_first = jnp.asarray(k) == 0
        mean = jnp.where(is_first, 0.0, 0.3 * carry[:, 0])
        std = jnp.where(is_first, 1.0, jnp.full_like(mean, 0.5))
        return GroupPrior(Normal(mean, std), carry[:, 0])

    def absorb(self, block, k, carry, z_k):
        return carry.at[:, k].set(z_k)

    def decode(self, carry):
        return Normal(carry, jnp.ones_like(carry))


class TiltInFull(nn.Module):
    """log r(z_k, z_1) = tilt . U^T e, where e needs the mean of the prior."""

    basis: tuple  # of tuples: hashable
    is_full: bool

    def embed(self, context):
        return context

    def log_ratio(self, z, feature):
        if not self.is_full:
            return z @ jnp.array(TILT)
        basis = jnp.array(self.basis)
        is_first = jnp.sum(feature**2, 1) == 0  # the context of the first group
        mean = 0.3 * feature
        std = jnp.where(is_first, 1.0, 0.5)
        return ((z - mean) / std[:, None]) @ basis @ jnp.array(TILT)


@pytest.fixture(scope="module")
def wide():
    noise = np.random.default_rng(0).normal(size=(DIM, 2))
    basis = jnp.asarray(np.linalg.qr(noise)[0], jnp.float32)
    vae = WideVAE(basis)
    found = directions.random_directions(vae, jax.random.key(0), 2)
    both = jnp.stack([basis, basis])
    model = SignalVAE(vae, dataclasses.replace(found, basis=(both,)), context_size=2)
    network = TiltInFull(tuple(map(tuple, basis.tolist())), False)
    full = NCPPrior(vae, network.clone(is_full=True), ({},))
    return basis, full, NCPPrior(model, network, ({}, None))


def projected(ncp, draw, key, basis, num):
    """e of both groups, of chains [num]: along the two directions, and across."""
    keys = jax.random.split(key, num)

    @functools.partial(jax.jit, static_argnums=1)
    def run(ncp, draw):
        out = ancestral(ncp, keys, draw)
        return ncp.vae.decode(out.carry).mean  # [num, 2, DIM], z itself

    z = np.asarray(run(ncp, draw), np.float64)
    e = np.stack([z[:, 0], (z[:, 1] - 0.3 * z[:, 0]) / 0.5], 1)
    return e @ np.asarray(basis, np.float64), e


SAMPLERS = [
    SIR(1_000, 100),
    IteratedSIR(60, 10, 30),
    Langevin(2e-2, 300),
    Langevin(2e-2, 300, in_noise=True),
    MALA(0.3, 150, 50),
]


@pytest.mark.parametrize("draw", SAMPLERS, ids=lambda draw: type(draw).__name__)
def test_samplers_draw_the_tilted_law(wide, key, draw):
    """u ~ N(tilt, I); the rest of e stays standard normal, independent of u."""
    basis, _, ncp = wide
    num = 10_000
    u, e = projected(ncp, draw, key, basis, num)
    # An O(1/M) bias of SIR and an O(step size) bias of Langevin stay below this.
    bias = 0.03 if isinstance(draw, SIR | Langevin) else 0.02
    for group in range(2):
        for i, tilt in enumerate(TILT):
            error = u[:, group, i].std() / num**0.5
            assert abs(u[:, group, i].mean() - tilt) < bias + 5 * error
            assert abs(u[:, group, i].var() - 1) < 2 * bias + 5 * (2 / num) ** 0.5
        across = e[:, group] - u[:, group] @ np.asarray(basis, np.float64).T
        total = np.sum(across**2, 1)  # chi^2 of 38 degrees
        assert_mean(total, DIM - 2.0, (2 * (DIM - 2)) ** 0.5)
        centred = u[:, group, 0] - TILT[0]
        assert_mean(across[:, 0] * centred, 0.0, 1.1)
    assert 0.1 * abs(TILT[0]) > bias + 5 / num**0.5  # an error of 10 % would be seen


def test_a_temperature_is_that_of_all_of_z(wide, key):
    """Of u, of the rest, and of groups whose ratio is left out."""
    _, full, ncp = wide
    few = dataclasses.replace(full, groups=(0,))
    for each in (ncp, full, few):
        _, e = projected(each, Base(0.5), key, wide[0], 1_000)
        np.testing.assert_allclose(e.std((0, 2)), 0.5, rtol=0.03)  # by group


def test_sir_has_the_law_of_the_full_space(wide, key):
    basis, full, ncp = wide
    num, draw = 4_000, SIR(50, 25)  # few proposals: their bias must be the same, too
    ours, _ = projected(ncp, draw, rng.stream(key, "a"), basis, num)
    theirs, _ = projected(full, draw, rng.stream(key, "b"), basis, num)
    assert abs(theirs.mean(0) - np.array(TILT)[None]).max() > 0.02  # there is a bias
    for power in (1, 2):
        a, b = ours**power, theirs**power
        error = np.sqrt(a.var(0) / num + b.var(0) / num)
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5.3 * error)  # 1e-6 for eight


def test_chunks_do_not_change_a_bit(wide, key):
    _, _, ncp = wide
    keys = jax.random.split(key, 8)
    draws = [
        jax.jit(lambda ncp, size=size: ancestral(ncp, keys, SIR(60, size)).latents)(ncp)
        for size in (60, 20, 7)
    ]
    for other in draws[1:]:
        jax.tree.map(np.testing.assert_array_equal, draws[0], other)


def test_log_z_is_known(wide, key):
    _, _, ncp = wide
    sums, _ = likelihood.log_z(ncp, key, 100_000, 10_000)
    exact = sum(t**2 for t in TILT)  # half of it for each of the two groups
    estimate = sums.log_mean
    assert abs(estimate.value - exact) < 5 * estimate.stderr < 0.1 * exact


def test_generation_reports_the_reweighted_groups_alone(wide, key):
    _, _, ncp = wide
    out = generation.generate(ncp, key, 6, 3, SIR(20, 10))
    (info,) = out.infos
    assert info.ess.shape == (2, 6)
    ratios = jax.jit(base_draw_ratios)(ncp, jax.random.split(key, 5))
    assert ratios.shape == (2, 5)


# --- parts


def test_padding_is_zero_and_counts_for_nothing(key):
    base = PaddedNormal(jnp.array([[1.0, 1.0, 0.0]] * 4))
    z = base.sample(key)
    assert np.all(z[:, 2] == 0) and np.all(z[:, :2] != 0)
    standard = Normal(jnp.zeros((4, 2)), jnp.ones((4, 2)))
    np.testing.assert_allclose(base.log_prob(z), standard.log_prob(z[:, :2]), rtol=1e-6)
    half = base.tempered(0.5)
    np.testing.assert_allclose(
        half.log_prob(0.5 * z), base.log_prob(z) + 2 * np.log(2), rtol=1e-5
    )
    assert np.isfinite(jax.grad(lambda z: base.log_prob(z).sum())(z)).all()


def test_groups_without_signal_are_named(key):
    model = signal_vae(ThreeGroupVAE(), key, widths=(1, 0, 1))
    assert model.chosen(None) == (0, 2) and model.chosen((1, 2)) == (2,)
    assert signal_vae(ThreeGroupVAE(), key).chosen(None) is None
    for is_joint in (False, True):
        nothing = signal_vae(ThreeGroupVAE(), key, widths=(0, 0, 0), is_joint=is_joint)
        assert nothing.chosen(None) == ()
    joint = signal_vae(ThreeGroupVAE(), key, widths=(1, 0, 1), is_joint=True)
    assert joint.chosen(None) is None
    np.testing.assert_array_equal(model.coordinates.is_used[:, 0], [1, 0, 1])


def test_the_context_is_what_earlier_groups_drew(key):
    model = signal_vae(ThreeGroupVAE(), key, num=2, context_size=1)
    x = jax.random.normal(key, (4, 3))
    (u, *_), _ = model.encode(x, key)
    (seen,), _ = walk(
        model.coordinates, (u,), lambda b, k, prior, u_k: prior.context
    )  # [K, B, K]
    for k in range(3):
        earlier = np.where(np.arange(3)[None] < k, u[:, :, 0].T, 0)
        np.testing.assert_allclose(seen[k], earlier, atol=1e-6)
