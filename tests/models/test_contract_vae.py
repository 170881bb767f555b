"""What `models.base.LatentVariableModel` promises, every VAE keeps.

A new model joins by a line in `VAES`.  After the contract come `latents.walk` and
`prior`, on the hierarchical models of `oracles.py`, whose moments are known.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.models import base, shared
from ncp_jax.models.conv_hvae import ConvHVAE
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.ladder_vae import LadderVAE
from ncp_jax.models.mlp_vae import MLPVAE
from ncp_jax.models.rae.model import of_kind
from ncp_jax.priors import generation, latents, ncp_prior
from ncp_jax.priors.group_samplers import SIR, Base, Langevin
from ncp_jax.training.ncp import ncp_state
from tests.oracles import InterleavedVAE, ThreeGroupVAE, TwoBlockVAE
from tests.statistics import assert_mean

VAES = {
    "mlp_bernoulli": MLPVAE((2, 3, 1), 3, (5,)),
    "mlp_normal": MLPVAE((3,), 2, (5,), likelihood="normal"),
    "ladder": LadderVAE((3,), (2, 1, 3), (5,)),
    "ladder_free": LadderVAE(
        (3,), (1, 2), (5, 4), is_residual_posterior=False, likelihood="normal"
    ),
    "conv_hvae": ConvHVAE((6, 5, 1), 2, channels=3, hidden_dim=5),
    "rae": of_kind(
        "vae", data_shape=(4, 4, 1), latent_dim=2, channels=1, num_doublings=1
    ),
    "two_blocks": TwoBlockVAE(),
    "three_groups": ThreeGroupVAE(),
}
B = 5
split = jax.random.split


def freeze(module):
    init = jax.jit(lambda x: module.init(jax.random.key(1), x, jax.random.key(2)))
    return base.FrozenVAE(module, init(jnp.zeros((1, *module.data_shape))))


@partial(jax.jit, static_argnums=(0, 1))
def random_params(network, vae_module, key):
    """Discriminators that are not constant."""
    params = ncp_state.init_params(network, vae_module, key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(rng.stream(key, "leaves"), len(leaves))
    noise = (jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True))
    return tree.unflatten(noise)


def with_ratios(vae):
    network = MLPDiscriminator((4,))
    params = random_params(network, vae.module, jax.random.key(3))
    return ncp_prior.NCPPrior(vae, network, params)


@pytest.fixture(params=VAES, scope="module")
def ncp(request):
    return with_ratios(freeze(VAES[request.param]))


@pytest.fixture
def vae(ncp):
    return ncp.vae


encode = jax.jit(base.FrozenVAE.encode)


def example(vae, batch_size=B):
    """Zeros and ones, which suit every likelihood."""
    shape = (batch_size, *vae.module.data_shape)
    bits = np.random.default_rng(1).integers(2, size=shape)
    return jnp.asarray(bits, jnp.float32)


def by_hand(vae, z):
    """(block, k, prior, z_k) of every group, by a plain loop; and the last state."""
    carry, visited = vae.root(z[0].shape[1]), []
    for b, block in enumerate(vae.blocks):
        for k in range(block.num_groups):
            visited.append((b, k, vae.prior(b, k, carry), z[b][k]))
            carry = vae.absorb(b, k, carry, z[b][k])
    return visited, carry


def counting(function):
    """`jit(function)` and the list that grows with every compilation."""
    traces = []

    def traced(*args):
        traces.append(args)
        return function(*args)

    return jax.jit(traced), traces


def test_shapes_are_as_declared(vae, key):
    x = example(vae)

    def everything(vae, x):
        z, log_q = vae.encode(x, key)
        visited, carry = by_hand(vae, z)
        out = vae.decode(carry)
        decoded = out.mean, out.sample(key), out.log_prob(x)
        each = [
            (group.context, group.base.sample(key), group.base.log_prob(z_k))
            for _, _, group, z_k in visited
        ]
        return z, log_q, each, decoded

    z, log_q, each, decoded = jax.eval_shape(everything, vae, x)
    assert log_q.shape == (B, sum(block.num_groups for block in vae.blocks))
    per_group = []
    for block, latent in zip(vae.blocks, z, strict=True):
        assert latent.shape == (block.num_groups, B, *block.latent_shape)
        shapes = (B, *block.context_shape), (B, *block.latent_shape), (B,)
        per_group += [shapes] * block.num_groups
    assert [tuple(leaf.shape for leaf in group) for group in each] == per_group
    assert [leaf.shape for leaf in decoded] == [x.shape, x.shape, (B,)]


def test_log_q_is_the_density_of_the_draws(vae, key):
    """E_q[f(z) / q(z)] = 1 for a density f narrower than q, here normal around q."""
    n = 20_000
    x = jnp.broadcast_to(example(vae, 1), (n, *vae.module.data_shape))
    z, log_q = encode(vae, x, key)
    flat = np.concatenate([np.moveaxis(b, 1, 0).reshape(n, -1) for b in z], axis=1)
    mean, std = flat.mean(0), 0.7 * flat.std(0)
    white = (flat - mean) / std
    log_f = -0.5 * (white**2 + np.log(2 * np.pi)) - np.log(std)
    # A normal q: E_q[(f/q)^2] = 1 / (c sqrt(2 - c^2)) per dimension, c = 0.7.
    second_moment = (0.7 * (2 - 0.7**2) ** 0.5) ** -flat.shape[1]
    weights = np.exp(log_f.sum(1) - np.asarray(log_q).sum(1))
    assert_mean(weights, 1.0, std=1.1 * (second_moment - 1) ** 0.5)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * weights, 1.0, std=1.1 * (second_moment - 1) ** 0.5)


def test_encode_uses_its_key_and_nothing_else(vae, key):
    encode, traces = counting(base.FrozenVAE.encode)
    x = jnp.repeat(example(vae, 1), B, axis=0)
    first, again = encode(vae, x, key), encode(vae, x, key)
    chex.assert_trees_all_equal(first, again)
    other = encode(vae, x, rng.at_step(key, 1))
    for a, b in zip(first.latents, other.latents, strict=True):
        assert not np.isclose(a, b).any()
        assert np.unique(a).size == a.size  # equal rows, noise of their own
    assert len(traces) == 1


def test_gradients_reach_latents_but_not_variables(vae, key):
    x = example(vae)
    z = encode(vae, x, key).latents

    def log_joint(vae, z):
        log_p, carry = latents.log_prior(vae, z)
        return jnp.sum(log_p) + jnp.sum(vae.decode(carry).log_prob(x))

    by_vae, by_z = jax.jit(jax.grad(log_joint, argnums=(0, 1)))(vae, z)
    assert all(not leaf.any() for leaf in jax.tree.leaves(by_vae))
    for leaf in by_z:  # every group of every block
        assert np.asarray(leaf).reshape(len(leaf), -1).any(axis=1).all()

    def unfrozen(variables):  # which do matter, where nothing stops the gradient
        encoding = vae.module.apply(variables, x, key, method="encode")
        return jnp.sum(encoding.latents[0])

    assert any(
        leaf.any() for leaf in jax.tree.leaves(jax.grad(unfrozen)(vae.variables))
    )


def test_walk_and_terms_agree_with_a_plain_loop(ncp, vae, key):
    @jax.jit
    def both(ncp, z):
        visited, carry = by_hand(ncp.vae, z)
        log_p = [group.base.log_prob(z_k) for _, _, group, z_k in visited]
        log_r = [
            ncp.log_ratio(b, k, group.context)(z_k) for b, k, group, z_k in visited
        ]
        return (jnp.stack(log_p, 1), jnp.stack(log_r, 1), carry), ncp.terms(z)

    z = encode(vae, example(vae), key).latents
    by_loop, by_walk = both(ncp, z)
    chex.assert_trees_all_close(by_walk, by_loop, rtol=1e-4, atol=1e-5)
    log_p, _, carry = by_loop
    chex.assert_trees_all_close(
        jax.jit(latents.log_prior)(vae, z), (log_p, carry), rtol=1e-4
    )
    log_r = np.asarray(by_loop[1])
    assert np.unique(log_r).size == log_r.size  # every group has a ratio of its own


def test_every_sampler_draws_and_compiles_once(ncp, vae, key):
    draws = {
        "base": Base(0.7),
        "sir": SIR(num_proposals=6, chunk_size=6),
        "langevin": Langevin(step_size=0.01, num_steps=3),
    }

    def sample(ncp, key):
        out = {
            name: ncp_prior.ancestral(ncp, split(rng.stream(key, name), B), draw)
            for name, draw in draws.items()
        }
        carries = {name: by_hand(vae, d.latents)[1] for name, d in out.items()}
        return out, carries

    sample, traces = counting(sample)
    first, carries = sample(ncp, key)
    again, _ = sample(ncp, key)
    other, _ = sample(jax.tree.map(lambda v: 1.1 * v, ncp), rng.at_step(key, 1))
    assert len(traces) == 1
    chex.assert_trees_all_equal(first, again)
    chex.assert_tree_all_finite(first)
    for name, out in first.items():
        for block, z in zip(vae.blocks, out.latents, strict=True):
            assert z.shape == (block.num_groups, B, *block.latent_shape)
        for a, b in zip(out.latents, other[name].latents, strict=True):
            assert not np.isclose(a, b).any()
        chex.assert_trees_all_close(out.carry, carries[name], rtol=1e-5)


def test_contrastive_draws_share_what_comes_before(vae, key):
    @jax.jit
    def both(vae, x):
        draws = latents.contrastive_draws(vae, x, key)
        visited, _ = by_hand(vae, tuple(block.positive for block in draws))
        return draws, [group for _, _, group, _ in visited]

    draws, groups = both(vae, example(vae))
    contexts = [context for block in draws for context in block.context]
    chex.assert_trees_all_close(contexts, [g.context for g in groups], rtol=1e-5)
    negatives = [z for block in draws for z in block.negative]
    noise = np.concatenate(
        [
            np.ravel((z - g.base.mean) / g.base.std)
            for z, g in zip(negatives, groups, strict=True)
        ]
    )
    assert np.unique(noise.round(4)).size == noise.size  # each group has its own
    for block in draws:
        chex.assert_equal_shape([block.positive, block.negative])
        assert not np.isclose(block.positive, block.negative).any()


def test_the_negatives_of_an_example_are_of_its_own_prior(vae, key):
    """Each in its row: its noise has moments 0 and 1, whatever the context."""
    num_negatives = 500

    @jax.jit
    def both(vae, x):
        draws = latents.contrastive_draws(vae, x, key, num_negatives=num_negatives)
        visited, _ = by_hand(vae, tuple(block.positive for block in draws))
        return draws, [group for _, _, group, _ in visited]

    draws, groups = both(vae, example(vae))
    negatives = [z for block in draws for z in block.negative]
    for z, group in zip(negatives, groups, strict=True):
        batch, *shape = group.base.mean.shape
        rows = z.reshape(batch, num_negatives, *shape)
        noise = (rows - group.base.mean[:, None]) / group.base.std[:, None]
        assert_mean(noise.mean(1).ravel(), 0.0, std=num_negatives**-0.5)
        assert_mean((noise**2).mean(1).ravel(), 1.0, std=(2 / num_negatives) ** 0.5)


# --- Known joint moments -------------------------------------------------------------

N = 20_000
DRAWS = {"base": Base(), "sir": SIR(num_proposals=3, chunk_size=3)}


def untrained(module):
    """An NCP with r = 1."""
    ncp = with_ratios(freeze(module))
    return dataclasses.replace(ncp, params=jax.tree.map(jnp.zeros_like, ncp.params))


def draw_groups(ncp, draw, key):
    """Base draws of all groups: [K, N, 2]."""
    out = jax.jit(lambda ncp, key: ncp_prior.ancestral(ncp, split(key, N), draw))(
        ncp, key
    )
    return np.concatenate([np.asarray(z).reshape(len(z), N, 2) for z in out.latents])


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("module", [TwoBlockVAE(), ThreeGroupVAE()])
def test_untrained_draws_have_the_moments_of_the_base_prior(key, module, name):
    """z_k = gain_k z_{k-1} + std_k noise: the noises must come out white."""
    is_two = isinstance(module, TwoBlockVAE)
    gains, stds = ((0, 0.5), (1, 0.8)) if is_two else ((0, 0.5, -0.8), (1, 0.8, 0.6))
    z = draw_groups(untrained(module), DRAWS[name], key)  # [K, N, 2]
    before = np.concatenate([np.zeros_like(z[:1]), z[:-1]])
    gain, std = (np.reshape(v, (-1, 1, 1)) for v in (gains, stds))
    noise = ((z - gain * before) / std).swapaxes(0, 1).reshape(N, -1)  # [N, 2 K]
    for i in range(noise.shape[1]):
        assert_mean(noise[:, i], 0.0, std=1.0)
        assert_mean(noise[:, i] ** 2, 1.0, std=2**0.5)
        for j in range(i):
            assert_mean(noise[:, i] * noise[:, j], 0.0, std=1.0)
    wrong = (z - 0.9 * gain * before)[1] / std[1]  # a gain 10 % off would be seen
    with pytest.raises(AssertionError):
        assert_mean(wrong * before[1], 0.0, std=1.0)


def test_base_draw_ratios_are_those_along_base_draws(key):
    @jax.jit
    def both(ncp):
        out = ncp_prior.ancestral(ncp, split(key, B), Base())
        return ncp_prior.base_draw_ratios(ncp, jax.random.split(key, B)), ncp.terms(
            out.latents
        )[1].T

    ratios, expected = both(with_ratios(freeze(ThreeGroupVAE())))
    np.testing.assert_allclose(ratios, expected, rtol=1e-4, atol=1e-5)


def test_generate_joins_batches_and_drops_the_surplus(key):
    ncp = with_ratios(freeze(ThreeGroupVAE()))
    draw = Langevin(step_size=0.01, num_steps=2)
    out = generation.generate(ncp, key, num_images=7, batch_size=3, draw=draw)
    assert out.images.shape == (7, 3)
    assert [z.shape for z in out.latents] == [(3, 7, 2)]  # as of `encode`
    assert [info.gradient_norm.shape for info in out.infos] == [(3, 7, 2)]
    assert np.unique(out.latents[0]).size == 3 * 7 * 2  # no batch repeats another
    total = out.latents[0].sum(0)  # what this model's decoder reads
    kernel = np.asarray(ncp.vae.variables["params"]["decoder"]["kernel"])
    expected = total @ kernel  # and biases start at zero
    np.testing.assert_allclose(out.images, expected, rtol=1e-4, atol=1e-5)


# --- Some groups reweighted, the others not ------------------------------------------


def test_the_context_is_read_once_for_all_z(key, monkeypatch):
    """`log_ratio` embeds; what it returns is called for many z."""
    ncp, calls = with_ratios(freeze(ThreeGroupVAE())), []
    embed = MLPDiscriminator.embed
    monkeypatch.setattr(
        MLPDiscriminator, "embed", lambda *args: calls.append(args) or embed(*args)
    )
    context = jax.random.normal(key, (B, 2))
    log_r = ncp.log_ratio(0, 1, context)
    values = [log_r(z) for z in jax.random.normal(key, (3, B, 2))]
    assert len(calls) == 1
    assert np.unique(values).size == 3 * B


@pytest.mark.parametrize("module", [ThreeGroupVAE(), InterleavedVAE()])
@pytest.mark.parametrize(
    ("groups", "expected"),
    [(None, [1, 1, 1]), ((0, 2), [1, 0, 1]), ((1,), [0, 1, 0]), ((), [0, 0, 0])],
)
def test_groups_are_counted_over_all_blocks(module, groups, expected):
    vae = base.FrozenVAE(module, None)
    ncp = ncp_prior.NCPPrior(vae, MLPDiscriminator(), (), groups)
    found = [
        ncp.is_reweighted(b, k)
        for b, block in enumerate(vae.blocks)
        for k in range(block.num_groups)
    ]
    np.testing.assert_array_equal(found, expected)


def with_two_of_three(module):
    """The NCP with all three groups reweighted, and with the first and the last."""
    full = with_ratios(freeze(module))
    return full, dataclasses.replace(full, groups=(0, 2))


def test_groups_that_are_left_out_keep_a_ratio_of_one(key):
    @jax.jit
    def both(full, part):
        z = full.vae.encode(example(full.vae), key).latents
        ratios = (
            ncp_prior.base_draw_ratios(ncp, jax.random.split(key, B))
            for ncp in (full, part)
        )
        return full.terms(z), part.terms(z), tuple(ratios)

    (log_p, log_r, carry), part, (along, along_part) = both(
        *with_two_of_three(InterleavedVAE())
    )
    chex.assert_trees_all_close(part[0], log_p, rtol=1e-6)
    chex.assert_trees_all_close(part[2], carry, rtol=1e-6)
    kept = np.array([1.0, 0.0, 1.0], np.float32)  # all of log r, or none of it
    np.testing.assert_allclose(part[1], kept[None] * log_r, rtol=1e-6)
    np.testing.assert_allclose(along_part, kept[:, None] * along, rtol=1e-6)
    assert (log_r != 0).all() and (along != 0).all()


@pytest.mark.parametrize(
    "draw_group",
    [
        SIR(num_proposals=6, chunk_size=6),
        Langevin(step_size=0.1, num_steps=3),
    ],
)
def test_groups_that_are_left_out_are_drawn_from_the_base_prior(key, draw_group):
    """Exactly: z is base.sample of the group's key, and the sampler tells nothing."""
    keys = split(key, B)

    @jax.jit
    def draw(full, part):
        out, whole = (ncp_prior.ancestral(n, keys, draw_group) for n in (part, full))
        visited, _ = by_hand(part.vae, out.latents)
        group_keys = (rng.at_step(rng.at_step(keys, b), k) for b, k, _, _ in visited)
        plain = [
            shared.sample_each(of_group, group.base)
            for (_, _, group, _), of_group in zip(visited, group_keys, strict=True)
        ]
        return out, whole, jnp.stack(plain)

    out, whole, plain = draw(*with_two_of_three(ThreeGroupVAE()))
    (z,), (info,), (whole_info,) = out.latents, out.infos, whole.infos
    np.testing.assert_allclose(z[1], plain[1], rtol=1e-6)
    assert not np.isclose(z[0], plain[0]).all() and not np.isclose(z[2], plain[2]).all()
    np.testing.assert_allclose(z[0], whole.latents[0][0], rtol=1e-6)
    chex.assert_trees_all_equal_shapes(info, whole_info)
    for leaf, whole_leaf in zip(*map(jax.tree.leaves, (info, whole_info)), strict=True):
        np.testing.assert_allclose(leaf[0], whole_leaf[0], rtol=1e-5)
        assert leaf[0].all() and not leaf[1].any() and leaf[2].all()


# --- A base prior that is not normal -------------------------------------------------


class Mixture(NamedTuple):
    """Of normals, for every row its own; leaves lead with [B, components]."""

    means: jax.Array  # [B, C, D]
    std: jax.Array  # [B, 1, 1]

    def sample(self, key):
        which, noise = jax.random.split(key)
        size = self.means.shape
        picked = jax.random.randint(which, size[:1], 0, size[1])  # [B]
        mean = jax.vmap(lambda means, i: means[i])(self.means, picked)
        return mean + self.std[:, 0] * jax.random.normal(noise, mean.shape)

    def log_prob(self, value):
        each = (value[:, None] - self.means) / self.std  # [B, C, D]
        log_p = -0.5 * (each**2 + jnp.log(2 * jnp.pi)) - jnp.log(self.std)
        mixed = jax.nn.logsumexp(jnp.sum(log_p, -1), axis=1)
        return mixed - jnp.log(self.means.shape[1])


def mixture(n, centre, std):
    means = jnp.broadcast_to(jnp.array([-centre, centre])[None, :, None], (n, 2, 1))
    return Mixture(means, jnp.full((n, 1, 1), std))


def draw_mixture(draw, key, base):
    """With log r(z) = z."""
    keys = split(key, len(base.means))

    @jax.jit
    def run(keys, base):
        return draw(keys, ncp_prior.Target(base, lambda z: z[:, 0], jnp.array(0)))

    return run(keys, base)


def test_sir_takes_a_mixture_as_base_prior(key):
    """p = half N(-2, s^2), half N(2, s^2); r = e^z makes the odds of 2 to -2 e^4 : 1.

    E_p[r] = cosh(2) e^(s^2 / 2); E w^2 / (E w)^2 = cosh(4) e^(s^2) / cosh(2)^2 < 2.5.
    """
    n, s, m = 8_192, 0.5, 128
    z, info = draw_mixture(SIR(m, chunk_size=32), key, mixture(n, 2.0, s))
    share = np.exp(2) / (2 * np.cosh(2))  # 0.982
    assert_mean(z > 0, share, std=0.15, bias=2.5 / m)
    with pytest.raises(AssertionError):
        assert_mean(z > 0, 0.9 * share, std=0.15, bias=2.5 / m)
    relative = np.exp(info.log_z) / (np.cosh(2) * np.exp(s**2 / 2))
    assert_mean(relative, 1.0, std=(1.5 / m) ** 0.5)
    with pytest.raises(AssertionError):
        assert_mean(1.1 * relative, 1.0, std=(1.5 / m) ** 0.5)


def test_langevin_takes_a_mixture_as_base_prior(key):
    """Within a mode, which it does not leave, it finds N(+-4 + s^2, s^2 v).

    v = 1 / (1 - h / (4 s^2)), and the memory of 60 steps is below 0.2 %.
    """
    s, h = 0.7, 0.1
    draw = Langevin(step_size=h, num_steps=60)
    z, _ = draw_mixture(draw, key, mixture(8_192, 4.0, s))
    assert_mean(z > 0, 0.5, std=0.5)
    shift, std = z - 4.0 * np.sign(z), s * (1 - h / (4 * s**2)) ** -0.5
    assert_mean(shift, s**2, std, bias=0.002)
    with pytest.raises(AssertionError):
        assert_mean(shift, 0.9 * s**2, std, bias=0.002)


# --- MLPVAE alone --------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "clip"), [("bernoulli", 1e-4), ("normal", 0)])
def test_mlp_vae_starts_from_the_mean_picture(likelihood, clip):
    """With its layers at zero it decodes the data mean, clipped where binary."""
    mean = jnp.array([[[0.0], [0.5], [1.0]], [[0.2], [0.3], [0.9]]])
    vae = freeze(MLPVAE((2, 3, 1), 3, (5,), likelihood=likelihood))

    def at_mean(params):
        variables = {"params": params, "statistics": {"data_mean": mean}}
        decoded = vae.module.apply(variables, jnp.ones((1, 3)), method="decode").mean
        return decoded, vae.module.apply(variables, mean[None], method="posterior")

    params = vae.variables["params"]
    decoded, _ = jax.jit(at_mean)(jax.tree.map(jnp.zeros_like, params))
    expected = np.clip(mean, clip, 1 - clip)
    np.testing.assert_allclose(decoded[0], expected, rtol=1e-3, atol=1e-7)
    _, q = jax.jit(at_mean)(params)  # the encoder sees zeros; its biases start there
    np.testing.assert_array_equal(q.mean, 0.0)
    np.testing.assert_allclose(q.std, np.log(2.0), rtol=1e-6)


def test_mlp_vae_elbo_terms_agree_with_the_plug_in_interface(key):
    vae = freeze(VAES["mlp_normal"])
    x = 3.0 * jax.random.normal(key, (4, 3))

    @jax.jit
    def both(variables):
        apply = partial(vae.module.apply, variables, x)
        z = vae.encode(x, key).latents  # the same key, so the same z
        _, carry = latents.log_prior(vae, z)
        log_x = vae.decode(carry).log_prob(x)
        return apply(key, method="elbo_terms"), log_x, apply(method="posterior")

    terms, log_x, q = both(vae.variables)
    np.testing.assert_allclose(terms.log_likelihood, log_x, rtol=1e-5)
    mean, std = np.asarray(q.mean, np.float64), np.asarray(q.std, np.float64)
    kl = (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(1, keepdims=True)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-5)
