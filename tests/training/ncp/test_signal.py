"""`fit` on signal directions: a VAE of one's own, from its examples to its samples."""

import dataclasses
import functools
import math
import os
import signal as signals

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax import SignalSettings
from ncp_jax.models.base import Block, Encoding, FrozenVAE, GroupPrior
from ncp_jax.models.discriminator_choice import MixedDiscriminator
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.directed import DirectedVAE
from ncp_jax.priors.latents import log_prior
from ncp_jax.priors.signal_space import SignalVAE
from ncp_jax.priors.standardized import StandardizedVAE
from ncp_jax.training import run_log
from ncp_jax.training.ncp import encodings, signal, signal_settings
from tests.oracles import LinearGaussianVAE, ThreeGroupVAE
from tests.signal_toy import SignalVAE as SignalToy
from tests.signal_toy import examples, planes

VAE = SignalToy(jnp.asarray(planes(2, 8)), jnp.array([[0.9, 0.6], [0.8, 0.0]]))
MUTE = SignalToy(VAE.planes, jnp.zeros((2, 2)), std=1.0)
NOT_NORMAL = SignalToy(VAE.planes, VAE.gains, is_normal=False)
SETTINGS = SignalSettings(num_encodings=2, num_examples=500)
FEW = {
    "num_steps": 20,
    "steps_per_eval": 10,
    "batch_size": 32,
    "discriminator": ncp_jax.MLPDiscriminator((8,)),
    "progress": False,
}
MAPS = {"context": "none", "with_maps": True}


def fit(vae=VAE, **settings):
    given = {"train": examples(200), "key": jax.random.key(0), "directions": SETTINGS}
    return ncp_jax.fit(vae, **(given | FEW | settings))


@pytest.fixture(scope="module")
def fitted():
    return fit(num_steps=300, learning_rate=1e-2, steps_per_eval=100)


def assert_same(first, other):
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_discriminators_read_the_directions_of_each_group(fitted):
    assert isinstance(fitted.vae, SignalVAE)
    assert fitted.vae.directions.widths == (2, 1)
    assert fitted.vae.directions.num_examples == 180  # a tenth is held out
    assert fitted.params[1:] == (None,) and fitted.groups is None
    assert repr(fitted).startswith("NCPPrior(SignalVAE, K=2, MLPDiscriminator with")


def test_samples_are_the_vae_s_own_and_as_far_apart_as_its_encodings(fitted, key):
    out = ncp_jax.sample(fitted, key, 400, ncp_jax.SIR(50), batch_size=400)
    assert [z.shape for z in out.latents] == [(2, 400, 2, 4)]
    assert [info.ess.shape for info in out.infos] == [(2, 400)]
    _, carry = log_prior(VAE, out.latents)
    np.testing.assert_allclose(VAE.decode(carry).mean, out.images, atol=1e-4)


def test_numbers_name_directions_and_signal(fitted):
    numbers = ncp_jax.evaluate(
        fitted,
        examples(60, seed=5),
        key=jax.random.key(1),
        num_importance_samples=4,
        chunk_size=2,
        num_snis_proposals=4,
        num_snis_samples=2,
        num_log_z_draws=500,
        log_z_batch_size=500,
        num_passes=1,
        max_log_z_stderr=0.0,
    )
    assert [numbers[f"num_directions/{k}"].value for k in range(2)] == [2, 1]
    signal_total = numbers["signal_total/0"]  # E|diag(0.9, 0.6) x|^2, x ~ N(0, I)
    assert abs(signal_total.value - 1.17) < 5 * signal_total.stderr < 1.0
    assert signal_total.n == 180 and signal_total.stderr > 0
    assert {"gain_nats", "nce_gain/1", "log_z"} <= numbers.keys()


def test_a_page_of_it_shows_the_spectra(fitted, tmp_path):
    page = ncp_jax.report(
        fitted,
        tmp_path,
        train=examples(100),
        test=examples(40, seed=5),
        key=jax.random.key(2),
        settings={
            "sample.num_images": 8,
            "sample.num_proposals": 10,
            "sample.groups": (1,),
            "evaluate.num_importance_samples": 2,
            "evaluate.chunk_size": 2,
            "evaluate.num_snis_proposals": 2,
            "evaluate.num_snis_samples": 1,
            "evaluate.num_log_z_draws": 100,
            "evaluate.log_z_batch_size": 100,
            "evaluate.num_mmd_samples": 20,
            "evaluate.num_permutations": 20,
            "evaluate.num_passes": 1,
        },
    ).read_text()
    assert ">Signal directions<" in page and "NCP-VAE on SignalVAE" in page
    with np.load(tmp_path / "samples" / "sir.npz") as drawn:
        assert drawn["latents_0"].shape == (8, 2, 2, 4) and "latents_1" not in drawn


def test_a_standardized_view_may_be_fitted(key):
    ncp = fit(StandardizedVAE(VAE), directions=None, num_steps=10)
    out = ncp_jax.sample(ncp, key, 5, ncp_jax.SIR(5))
    _, carry = log_prior(VAE, out.latents)
    np.testing.assert_allclose(VAE.decode(carry).mean, out.images, atol=1e-4)


@pytest.mark.parametrize("is_joint", [False, True])
def test_a_stopped_fit_goes_on_to_the_same_bits(is_joint, tmp_path, monkeypatch):
    """From the directions that it has kept, which are not found again."""
    settings = SignalSettings(is_joint=is_joint, context_size=0, num_encodings=2)
    given = {"directions": settings, "workdir": tmp_path / "a"}
    progress = run_log.RunLog.progress

    def stop(log, step, *losses):
        progress(log, step, *losses)
        if step == 10:
            os.kill(os.getpid(), signals.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(run_log.RunLog, "progress", stop)
        with pytest.raises(KeyboardInterrupt, match="saved at step 10 of 20"):
            fit(**given)
    with monkeypatch.context() as patched:
        patched.delattr(signal, "fit_directions")
        resumed = fit(**given)
    assert_same(resumed, fit(directions=settings))
    with monkeypatch.context() as patched:  # complete: nothing is encoded
        patched.delattr(encodings, "pool")
        assert_same(fit(**given), resumed)
    assert len(resumed.vae.coordinates.blocks[0].latent_shape) == 1
    assert resumed.vae.coordinates.blocks[0].num_groups == (1 if is_joint else 2)


def test_what_is_kept_is_checked_and_another_vae_has_its_own(tmp_path):
    fit(workdir=tmp_path)
    (path,) = (tmp_path / "ncp").glob("directions-*.npz")
    with pytest.raises(ncp_jax.InputError, match="with another directions "):
        fit(workdir=tmp_path, directions=SignalSettings(cap=1, num_encodings=2))
    with pytest.raises(ncp_jax.InputError, match="with another directions "):
        fit(workdir=tmp_path, directions=None)
    with pytest.raises(ncp_jax.InputError, match="with another vae "):
        moved = SignalToy(VAE.planes[::-1], VAE.gains)
        fit(moved, workdir=tmp_path)
    assert len([*(tmp_path / "ncp").glob("directions-*.npz")]) == 3
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ncp_jax.InputError, match=rf"{path.name}.*delete it and fit"):
        fit(workdir=tmp_path)


def test_directions_of_another_stage_1_have_no_use_for_its_checkpoints(
    tmp_path, monkeypatch
):
    """The settings and the VAE the same, the directions not: refused."""
    fit(workdir=tmp_path)
    (path,) = (tmp_path / "ncp").glob("directions-*.npz")
    turned = SignalToy(VAE.planes[::-1], VAE.gains)
    other = fit(turned).vae.directions
    other.save(path)
    with pytest.raises(ncp_jax.InputError, match="with another directions "):
        fit(workdir=tmp_path)


def test_without_signal_the_prior_is_the_base_prior(capsys, key):
    """q = p: the spectrum of 200 examples lies below a floor of 0.5."""
    ncp = fit(MUTE, directions=SignalSettings(floor=0.5, num_encodings=1))
    assert "no direction of any group has signal" in capsys.readouterr().out
    assert ncp.groups == ()
    by_sir = ncp_jax.sample(ncp, key, 5, ncp_jax.SIR(5))
    by_base = ncp_jax.sample(ncp, key, 5, ncp_jax.Base())
    np.testing.assert_allclose(by_sir.images, by_base.images, atol=1e-5)
    numbers = ncp_jax.evaluate(
        ncp,
        examples(20),
        key=key,
        num_importance_samples=2,
        chunk_size=2,
        num_snis_proposals=2,
        num_snis_samples=1,
        num_log_z_draws=200,
        log_z_batch_size=200,
        num_passes=1,
    )
    assert numbers["gain_nats"].value == numbers["log_z"].value == 0.0
    assert numbers["num_directions/0"].value == 0


@functools.cache
def three_groups(kind=ThreeGroupVAE):
    module, key = kind(), jax.random.key(0)
    return FrozenVAE(module, jax.jit(module.init)(key, jnp.zeros((1, 3)), key))


# --- ratios that read more than coordinates


class MapGroupsVAE(ThreeGroupVAE):
    """The same in groups and features that are maps [1, 2, 1]."""

    blocks = (Block(3, (1, 2, 1), (1, 2, 1)),)

    def encode(self, x, key):
        (z,), log_q = super().encode(x, key)
        return Encoding((z[:, :, None, :, None],), log_q)

    def prior(self, block, k, carry):
        (mean, std), context = super().prior(block, k, carry)
        mean, std, context = (a[:, None, :, None] for a in (mean, std, context))
        return GroupPrior(Normal(mean, std), context)

    def absorb(self, block, k, carry, z_k):
        return super().absorb(block, k, carry, z_k[:, 0, :, 0])


MORE = SignalSettings(
    cap=2, context="features", context_size=2, num_examples=100, floor=0.0
)
WITH_MAPS = dataclasses.replace(MORE, with_maps=True, map_channels=2, map_blocks="A")
POINTS = np.random.default_rng(3).normal(size=(200, 3)).astype(np.float32)


@pytest.mark.slow
def test_ratios_may_read_features_and_maps(key):
    """Directions stay as they were found, whatever is learned and decays."""
    ncp = fit(
        three_groups(MapGroupsVAE),
        train=POINTS,
        directions=WITH_MAPS,
        weight_decay=0.5,
        ema_decay=0.0,
        num_steps=10,
    )
    assert isinstance(ncp.vae, DirectedVAE) and type(ncp.vae.vae) is FrozenVAE
    found, (params,) = ncp.vae.directions, ncp.params
    assert found.feature_basis[0].shape == (3, 2, 2) and any(found.widths)
    basis = params["onto_directions"]["basis"]
    np.testing.assert_array_equal(basis[..., : found.num_directions], found.basis[0])
    learned = params["onto_features"]["basis"], params["onto_features"]["shift"]
    assert_same(learned, (found.feature_basis[0], found.feature_shift[0]))
    assert {"of_maps", "of_coordinates"} < params.keys()
    out = ncp_jax.sample(ncp, key, 6, ncp_jax.SIRThenMALA(10, 10, 0.1, 4, 2))
    _, carry = log_prior(ncp.vae.vae, out.latents)
    np.testing.assert_allclose(ncp.vae.vae.decode(carry).mean, out.images, atol=1e-4)


def test_auto_is_for_hierarchies_and_maps_with_a_normal_prior():
    network = FEW["discriminator"]
    assert signal.chosen("auto", VAE, None) == SignalSettings()
    assert signal.chosen("auto", three_groups(), None) == SignalSettings()
    assert signal.chosen("auto", VAE, network) is None  # it reads what it reads
    assert signal.chosen("auto", NOT_NORMAL, None) is None
    assert signal.chosen("auto", LinearGaussianVAE(jnp.eye(3)), None) is None
    assert signal.chosen(None, VAE, None) is None
    assert signal.chosen(SETTINGS, VAE, network) is SETTINGS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cap": 0}, r"cap must be an integer in \[1, inf\), got 0"),
        ({"cap": 2.5}, "cap must be an integer .* got 2.5"),
        ({"num_encodings": 0}, r"num_encodings must be an integer in \[1, inf\)"),
        ({"num_encodings": 1.5}, "num_encodings must be an integer .* got 1.5"),
        ({"num_examples": 1}, r"num_examples must be an integer in \[2, inf\)"),
        ({"context_size": -1}, r"context_size must be an integer in \[0, inf\)"),
        *(({"share": s}, r"share .* in \(0, 1\], got") for s in (-1, 0, 1.5, math.nan)),
        ({"floor": -1}, r"floor must be a number in \[0, inf\), got -1"),
        ({**MAPS, "map_channels": 3}, "map_channels must be even and positive, got 3"),
        ({**MAPS, "map_blocks": "XYZ"}, "map_blocks must be a word .* got 'XYZ'"),
        ({"context": "all"}, "context must be one of .*'features'.*got 'all'"),
        ({"context": "features", "context_size": 0}, "needs a context_size of 1"),
        ({"context": "features", "is_joint": True}, "is_joint is one ratio"),
        ({"with_maps": True}, "give context='features' or 'none'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ncp_jax.InputError, match=message):
        SignalSettings(**settings)


def test_settings_are_numbers_of_python_s_own():
    given = SignalSettings(cap=np.int64(4), share=np.float32(0.5), floor=0)
    assert str(given) == str(SignalSettings(cap=4, share=0.5, floor=0.0))
    assert SignalSettings(share=1).share == 1.0


def test_settings_that_came_later_leave_older_trainings_their_names():
    assert str(SignalSettings(cap=4)) == (
        "SignalSettings(cap=4, share=0.95, floor=0.015, context_size=16, "
        "is_joint=False, num_examples=10000, num_encodings=5)"
    )
    assert str(MORE).endswith("num_encodings=5, context='features')")
    assert MORE.named().keys() - SignalSettings().named().keys() == {"context"}


def test_what_cannot_be_is_refused_with_the_way_out():
    with pytest.raises(ncp_jax.InputError, match=r"'auto', None or a SignalSettings"):
        fit(directions="on")
    with pytest.raises(ncp_jax.InputError, match=r"Bernoulli.*directions=None of fit"):
        fit(NOT_NORMAL)
    with pytest.raises(ncp_jax.InputError, match="this VAE offers none: give context="):
        fit(directions=MORE)
    maps = SignalSettings(**MAPS, num_examples=50)
    with pytest.raises(ncp_jax.InputError, match=r"one of shape \(2, 4\)"):
        fit(directions=maps)
    network = ncp_jax.MLPDiscriminator((8,))
    other = MixedDiscriminator(network, network)
    with pytest.raises(ncp_jax.InputError, match="MLPDiscriminator, not of a Mixed"):
        signal_settings.network(MORE, VAE, other)

    class Unhashable:
        __hash__ = None

        def __call__(self, key, stored):
            return stored

    with pytest.raises(ncp_jax.InputError, match=r"an? Unhashable, has no hash"):
        fit(prepare=Unhashable())
