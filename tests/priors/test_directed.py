"""Ratios on directions that read the decoder's feature, or the whole of e_k, too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax import rng
from ncp_jax.data.datasets import padded_batches
from ncp_jax.models.base import FrozenVAE
from ncp_jax.models.check import check, check_discriminator
from ncp_jax.models.direction_discriminator import DirectionDiscriminator
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.models.residual_discriminator import ResidualDiscriminator
from ncp_jax.priors import directions
from ncp_jax.priors.directed import DirectedVAE, constants_of
from ncp_jax.priors.directions import Directions
from ncp_jax.priors.feature_directions import FeatureVAE, fit_features, no_features
from ncp_jax.priors.latents import contrastive_draws
from ncp_jax.priors.ncp_prior import NCPPrior, base_draw_ratios
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.training.ncp import ncp_state, ncp_update, signal
from tests.oracles import ThreeGroupVAE, TwoBlockVAE
from tests.signal_toy import SignalVAE as SignalToy
from tests.signal_toy import planes

SIZE = 2


def as_it_is(key, stored):
    del key
    return stored


def frozen(module, key):
    return FrozenVAE(module, jax.jit(module.init)(key, jnp.zeros((1, 3)), key))


def directed(vae, key, num=1, num_directions=1):
    found = directions.random_directions(vae, key, num)
    basis, shift = no_features(vae, SIZE)
    noise = jax.tree.map(
        lambda leaf: leaf + jax.random.normal(key, leaf.shape), (basis, shift)
    )
    found = dataclasses.replace(found, feature_basis=noise[0], feature_shift=noise[1])
    return DirectedVAE(vae, found, num_directions)


def shaken(params):
    """So that r is not 1."""
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(leaf.size + leaf), params)


# --- the directions of features


def test_features_are_projected_as_by_hand(key):
    """c = (h - mean) V / sqrt(eigenvalue), by NumPy from the same draws."""
    vae = frozen(ThreeGroupVAE(), key)
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    found = fit_features(vae, padded_batches(x, 64), as_it_is, key, size=SIZE)
    examples_key = rng.stream(rng.stream(key, "examples"), "posterior")

    @jax.jit
    @jax.vmap
    def features(i, one):
        draw_key = rng.at_step(rng.at_step(examples_key, i), 0)
        return FeatureVAE(vae).encode(one[None], draw_key).latents[0][:, 0]  # [3, 2]

    h = np.asarray(features(jnp.arange(200), x), np.float64)
    (basis,), (shift,) = found
    assert not np.any(basis[0]) and not np.any(shift[0])  # z_{-1} = 0: a constant
    for k in (1, 2):
        centred = h[:, k] - h[:, k].mean(0)
        values, vectors = np.linalg.eigh(centred.T @ centred / 199)
        by_hand = (centred @ vectors / np.sqrt(values))[:, ::-1]
        c = h[:, k] @ np.asarray(basis[k], np.float64) - np.asarray(shift[k])
        np.testing.assert_allclose(np.abs(c), np.abs(by_hand), atol=2e-4)
        np.testing.assert_allclose(np.cov(c.T), np.eye(2), atol=1e-3)


def test_blocks_without_a_feature_have_no_direction_of_one(key):
    vae = frozen(TwoBlockVAE(), key)
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    found = fit_features(vae, padded_batches(x, 50), as_it_is, key, size=3)
    assert [leaf.shape for leaf in found.basis] == [(1, 0, 3), (1, 2, 3)]
    assert [leaf.shape for leaf in found.shift] == [(1, 3), (1, 3)]
    assert np.any(found.basis[1][..., :2]) and not np.any(found.basis[1][..., 2])


def test_they_are_kept_and_hashed_with_the_others(key, tmp_path):
    model = directed(frozen(TwoBlockVAE(), key), key)
    found = model.directions
    found.save(tmp_path / "found.npz")
    again = Directions.load(tmp_path / "found.npz")
    jax.tree.map(np.testing.assert_array_equal, found, again)
    moved = tuple(leaf + 1.0 for leaf in found.feature_shift)
    assert again.digest() == found.digest()
    assert dataclasses.replace(found, feature_shift=moved).digest() != found.digest()


# --- the network


NETWORK = DirectionDiscriminator(3, SIZE, (8,), "tanh", channels=2, blocks="A")


def draws(key, batch_size=5):
    shapes = ((batch_size, 4, 2, 2), (batch_size, 4, 2, 3))
    keys = jax.random.split(key)
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("with_maps", [False, True])
def test_the_ratio_is_f_of_the_projections_plus_g_of_the_map(key, with_maps):
    network = NETWORK.clone(with_maps=with_maps)
    e, feature = draws(key)
    init, apply = jax.jit(network.init), jax.jit(network.apply)
    params = init(key, e, feature)["params"]
    np.testing.assert_array_equal(apply({"params": params}, e, feature), np.zeros(5))
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * noise.normal(size=leaf.shape).astype(np.float32),
        params,
    )
    log_r = apply({"params": params}, e, feature)
    onto_e, onto_h = params["onto_directions"], params["onto_features"]
    u = np.asarray(e).reshape(5, -1) @ onto_e["basis"] - onto_e["shift"][None]
    c = np.asarray(feature).reshape(5, -1) @ onto_h["basis"] - onto_h["shift"][None]
    f = MLPDiscriminator((8,)).apply({"params": params["of_coordinates"]}, u, c)
    g = jnp.zeros(5)
    if with_maps:
        of_maps = ResidualDiscriminator(2, "A")
        g = jax.jit(of_maps.apply)({"params": params["of_maps"]}, e, feature)
        last = jax.tree.map(jnp.zeros_like, params["of_maps"]["last"])
        without = params | {"of_maps": params["of_maps"] | {"last": last}}
        alone = apply({"params": without}, e, feature)
        np.testing.assert_allclose(alone, f, atol=1e-5)  # g = 0
        assert np.abs(g).max() > 1e-2
    np.testing.assert_allclose(log_r, f + g, atol=1e-5)


def test_without_a_context_nothing_is_read_of_it(key):
    network, (e, _) = NETWORK.clone(with_maps=True), draws(key)
    params = jax.eval_shape(network.init, key, e, jnp.zeros((5, 0)))["params"]
    assert params.keys() == {"onto_directions", "of_coordinates", "of_maps"}


# --- the model


def test_it_keeps_the_protocol_and_gives_directions_to_its_discriminators(key):
    model = directed(frozen(TwoBlockVAE(), key), key, num_directions=3)
    check(model, jnp.zeros((2, 3)))
    network = DirectionDiscriminator(3, SIZE, (8,))
    check_discriminator(model, network)
    params = ncp_state.init_params(network, model, key)
    assert [set(of_block) for of_block in params] == [{"of_coordinates"}] * 2
    ncp = signal.prior(model, network, params)
    first, second = ncp.params
    assert set(first) == {"of_coordinates", "onto_directions"}
    assert set(second) == {"of_coordinates", "onto_directions", "onto_features"}
    basis = second["onto_directions"]["basis"]
    np.testing.assert_array_equal(basis[..., :1], model.directions.basis[1])
    assert basis.shape == (1, 2, 3) and not np.any(basis[..., 1:])
    assert ncp.groups is None
    found = dataclasses.replace(model.directions, widths=(0, 1))
    one = dataclasses.replace(model, directions=found)
    assert signal.prior(one, network, params).groups == (1,)
    assert signal.groups_that_read(one) == (1,)
    assert constants_of(frozen(TwoBlockVAE(), key)) == ({}, {})


def test_a_ratio_of_coordinates_alone_is_the_one_of_signal_space(key):
    """The same log r of the same draws, whether as u or as the whole of e."""
    vae = SignalToy(jnp.asarray(planes(2, 8)), jnp.array([[0.9, 0.6], [0.8, 0.0]]))
    found = directions.random_directions(vae, key, 2)
    short, whole = SignalVAE(vae, found, 0), DirectedVAE(vae, found, 2, False)
    mlp, network = MLPDiscriminator((8,)), DirectionDiscriminator(2, 0, (8,), "tanh")
    (params,) = shaken(ncp_state.init_params(mlp, short.coordinates, key))
    on_u = signal.prior(short, mlp, (params,))
    on_e = signal.prior(whole, network, ({"of_coordinates": params},))
    x = jax.random.normal(key, (6, 2))

    @jax.jit
    def both(on_u: NCPPrior, on_e: NCPPrior):
        u = on_u.vae.encode(x, key).latents
        e = on_e.vae.encode(x, rng.stream(key, "posterior")).latents
        held_out = ncp_update.contrast(
            network, on_e.params, contrastive_draws(whole, x, key)
        )
        keys = jax.random.split(key, 4_000)
        log_z = [base_draw_ratios(ncp, keys) for ncp in (on_u, on_e)]
        return on_u.terms(u)[1][:, :2], on_e.terms(e)[1], held_out, log_z

    of_u, of_e, (logit_q, logit_p), log_r = both(on_u, on_e)
    assert np.abs(of_u).min() > 1e-3
    np.testing.assert_allclose(of_e, of_u, rtol=1e-5, atol=1e-6)
    assert logit_q.shape == logit_p.shape == (2, 6) and np.all(logit_q != logit_p)
    r = np.exp(np.asarray(log_r, np.float64))  # [2, K, N] of draws from p: E[r] = Z
    error = np.sqrt(np.sum(r.var(2), 0) / r.shape[2])
    assert np.all(np.abs(r[0].mean(1) - r[1].mean(1)) < 5.2 * error)
    assert np.all(r.std(2) > 0.01)
