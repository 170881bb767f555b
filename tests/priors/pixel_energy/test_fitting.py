"""How the energy learns: its gradient by hand, what ends a training, resuming."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.models.discriminator import MLPDiscriminator
from ncp_jax.priors.group_samplers import SIR
from ncp_jax.priors.pixel_energy import contrast, fitting, joint
from ncp_jax.priors.pixel_energy.energy import EnergyNet, hidden_kernels
from ncp_jax.priors.pixel_energy.held_out import energy_distance
from ncp_jax.priors.pixel_energy.settings import Settings
from ncp_jax.training.run_log import SilentLog
from tests import oracles

KEY = jax.random.key(5)
SETTINGS = Settings(
    hidden_dims=(8,),
    step_size=0.05,
    num_langevin_steps=2,
    num_sampling_steps=3,
    batch_size=8,
    num_steps=4,
    steps_per_eval=2,
    steps_per_dispatch=2,
    num_valid=12,
    learning_rate=0.01,
)
VAE = oracles.LinearGaussianVAE(jnp.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
PLAIN = joint.of_vae(VAE, MLPDiscriminator())
TRAIN, VALID = np.split(
    np.random.default_rng(0).normal(0.7, 1.0, (70, 3)).astype(np.float32), [50]
)


def as_stored(key, stored):
    del key
    return stored


def fit(settings=SETTINGS, pool=None, name="vaebm"):
    return fitting.Fit(name, settings, pool, as_stored, as_stored)


class Line:
    """E(x) = w . x, whose gradient by w is x."""

    def apply(self, variables, x):
        return x @ variables["params"]


def test_the_gradient_is_the_contrast_of_the_two_means():
    prior = joint.PixelEnergyPrior(VAE, None, (None,), network=Line())
    x, negatives = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 4.0]] * 2)

    def loss(params, penalty):
        given = dataclasses.replace(prior, energy_params=params)
        return contrast.contrastive_loss(given, x, negatives, penalty)[0]

    w = jnp.array([0.5, -1.0])
    # E = -1.5 and 1.5 of data, -4 of both draws.
    assert float(loss(w, 0.0)) == pytest.approx(0.0 - -4.0)
    assert float(loss(w, 0.1)) == pytest.approx(4.0 + 0.1 * (2.25 + 16.0))
    np.testing.assert_allclose(jax.grad(loss)(w, 0.0), [2.0, -3.0])
    # Of the squares: 2 E x, so (-3 [1, 2] + 3 [3, 0]) / 2 and -8 [0, 4].
    expected = np.array([2.0, -3.0]) + 0.1 * np.array([3.0, -3.0 - 32.0])
    np.testing.assert_allclose(jax.grad(loss)(w, 0.1), expected, rtol=1e-6)


def test_the_energy_starts_at_zero_and_its_kernels_are_found():
    net, x = EnergyNet((3, 4), (5,)), jnp.ones((2, 7, 6, 1))
    energy, variables = jax.jit(net.init_with_output)(KEY, x)
    params = variables["params"]
    np.testing.assert_array_equal(energy, 0)
    shapes = sorted(kernel.shape for kernel in hidden_kernels(params).values())
    assert shapes == [(1, 1, 16, 5), (4, 4, 1, 3), (4, 4, 3, 4)]


def test_the_energy_distance_of_large_pictures_is_not_rounded_away(key):
    a, b = 0.5 + 0.01 * np.asarray(jax.random.normal(key, (2, 20, 3_072)))

    def exact(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)

    within = [exact(each, each).sum() / (20 * 19) for each in (a, b)]
    expected = 2 * exact(a, b).mean() - sum(within)
    assert float(energy_distance(a, b)) == pytest.approx(expected, abs=1e-4)


def test_the_energy_distance_by_hand():
    a, b = jnp.array([[0.0], [2.0]]), jnp.array([[1.0], [5.0], [3.0]])
    # E|a - b| = (1 + 5 + 3 + 1 + 3 + 1) / 6, within 2 and (4 + 2 + 2) / 3.
    assert float(energy_distance(a, b)) == pytest.approx(14 / 3 - 2 - 8 / 3, abs=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A fit whose chains go on from earlier ones and start at a pool of NCP draws."""
    folder = tmp_path_factory.mktemp("energy")
    replayed = dataclasses.replace(SETTINGS, replay_share=0.5, num_chains=16)
    how = fit(replayed, fitting.Pool(SIR(4, 4), 20), "sirvaebm")
    ncp = oracles.tilted(VAE, (0.8, 0.0))
    return how, ncp, folder, how(ncp, TRAIN, VALID, KEY, folder)


def test_a_stopped_fit_goes_on_to_the_same_bits(finished):
    how, ncp, folder, prior = finished
    assert np.abs(prior.energy(jnp.ones((1, 3)))).max() > 0  # it has learnt
    found = how.restored(ncp, TRAIN, VALID, KEY, folder)
    jax.tree.map(np.testing.assert_array_equal, found, prior)
    fewer = dataclasses.replace(
        how, settings=dataclasses.replace(how.settings, num_steps=2)
    )
    for again in (  # more steps than are asked for are enough of them
        fewer(ncp, TRAIN, VALID, KEY, folder),
        fewer.restored(ncp, TRAIN, VALID, KEY, folder),
    ):
        jax.tree.map(np.testing.assert_array_equal, again, prior)
    shutil.rmtree(folder / "4")
    with pytest.raises(InputError, match=r"'sirvaebm' has not reached its 4 steps"):
        how.restored(ncp, TRAIN, VALID, KEY, folder)
    first_steps = []

    def log(step):
        first_steps.append(step)
        return SilentLog()

    again = how(ncp, TRAIN, VALID, KEY, folder, log)
    assert first_steps == [2]
    jax.tree.map(np.testing.assert_array_equal, again, prior)
    how(ncp, TRAIN, VALID, KEY, folder, log)
    assert first_steps == [2]  # there was nothing left to do


def test_another_fit_is_refused(finished):
    how, ncp, folder, _ = finished
    other = dataclasses.replace(how.settings, step_size=0.1)
    with pytest.raises(InputError, match="another settings"):
        fit(other, how.pool, "sirvaebm")(ncp, TRAIN, VALID, KEY, folder)
    with pytest.raises(InputError, match="another pictures"):
        how(ncp, TRAIN + 1, VALID, KEY, folder)
    with pytest.raises(InputError, match="another held_out"):
        how(ncp, TRAIN, VALID + 1, KEY, folder)
    doubled = dataclasses.replace(how, prepare=lambda key, stored: 2 * stored)
    with pytest.raises(InputError, match="another prepare"):
        doubled.restored(ncp, TRAIN, VALID, KEY, folder)
    with pytest.raises(InputError, match="another groups"):
        how.restored(dataclasses.replace(ncp, groups=()), TRAIN, VALID, KEY, folder)


def test_a_folder_that_says_less_is_still_read(monkeypatch, tmp_path):
    whole = fitting.Fit._metadata

    def earlier(self, *args):
        said = whole(self, *args)
        return {name: said[name] for name in said if name not in fitting.NOT_SAID}

    with monkeypatch.context() as before:
        before.setattr(fitting.Fit, "_metadata", earlier)
        prior = fit()(PLAIN, TRAIN, VALID, KEY, tmp_path)
    found = fit().restored(PLAIN, TRAIN, VALID, KEY, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, prior)


def test_an_explosion_ends_the_training_and_spoils_nothing(tmp_path):
    wild = dataclasses.replace(SETTINGS, num_steps=40, max_energy=1e-6)
    seen = []

    class Log(SilentLog):
        def write(self, step, split, metrics):
            seen.append((step, split, metrics))

    prior = fit(wild)(PLAIN, TRAIN, VALID, KEY, tmp_path, lambda step: Log())
    steps = [step for step, split, _ in seen if split == "valid"]
    assert steps == [2]  # of 40: the second update was too much, and then it ended
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(prior.energy_params))
    trained = [metrics for _, split, metrics in seen if split == "train"]
    assert trained[0]["has_exploded"] > 0
    fit(wild).restored(PLAIN, TRAIN, VALID, KEY, tmp_path)  # counts as complete
    nowhere = fit(wild)(PLAIN, TRAIN, VALID, KEY)  # the best weights without a folder
    jax.tree.map(np.testing.assert_array_equal, nowhere, prior)


def test_too_few_held_out_pictures():
    with pytest.raises(InputError, match="1 held-out pictures judge nothing"):
        fit()(PLAIN, TRAIN, VALID[:1], KEY)
