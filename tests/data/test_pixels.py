"""`pixels.py`, and that only training pictures are flipped."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncp_jax
from ncp_jax.data import datasets, pixels
from ncp_jax.experiment.setup import wiring
from ncp_jax.training import vae_update
from tests import tiny
from tests.statistics import assert_mean

ALL = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize(
    ("num_bits", "expected"),
    [(8, ALL / 255.0), (5, np.floor(ALL / 8.0) / 31.0), (1, ALL >= 128)],
)
def test_quantize_keeps_the_upper_bits(num_bits, expected):
    found = pixels.quantize(jnp.asarray(ALL), num_bits)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.unique(found).size == 2**num_bits
    assert (found.min(), found.max()) == (0.0, 1.0)


def test_quantize_takes_any_shape():
    images = ALL.reshape(2, 4, 8, 4)
    np.testing.assert_allclose(
        pixels.quantize(jnp.asarray(images), 5),
        pixels.quantize(jnp.asarray(ALL), 5).reshape(images.shape),
        rtol=1e-6,
    )


def ramps(n):
    """Pictures [n, 2, 3, 2], none its own mirror image, even in five bits."""
    numbers = np.arange(n).repeat(12) + 16 * np.arange(n * 12)
    return jnp.asarray(numbers.reshape(n, 2, 3, 2) % 256, jnp.uint8)


def flipped(before, after):
    """Which pictures [B] are mirrored; each is that or left as it was."""
    mirror = np.asarray(before)[:, :, ::-1]
    is_same = (np.asarray(after) == before).all((1, 2, 3))
    is_mirror = (np.asarray(after) == mirror).all((1, 2, 3))
    assert (is_same ^ is_mirror).all()
    return is_mirror


def test_half_of_the_pictures_are_mirrored_and_the_others_kept(key):
    images = ramps(4_000)
    out = pixels.flip_half(key, images)
    assert out.dtype == jnp.uint8
    is_flipped = flipped(images, out)
    assert_mean(is_flipped, 0.5, std=0.5)
    with pytest.raises(AssertionError):
        assert_mean(is_flipped, 0.55, std=0.5)


def test_which_are_mirrored_depends_on_the_key_alone(key):
    images = ramps(64)
    first = pixels.flip_half(key, images)
    np.testing.assert_array_equal(pixels.flip_half(key, images), first)
    other = flipped(images, pixels.flip_half(jax.random.fold_in(key, 1), images))
    assert (other != flipped(images, first)).any()
    again = flipped(255 - images, pixels.flip_half(key, 255 - images))
    np.testing.assert_array_equal(again, flipped(images, first))


# --- what a run does to its pictures


def prepared(is_training, **settings):
    """x of 200 different pictures, prepared by a run with these data settings."""
    config = tiny.config()
    config.data.update(binarization="none", **settings)
    run = wiring.Experiment(config, None, datasets.Dataset(*[np.asarray(ramps(3))] * 3))
    prepare = run.prepare_to_train if is_training else run.prepare
    return prepare(jax.random.key(7), ramps(200))


@pytest.mark.parametrize(("is_training", "asked"), [(1, 0), (0, 1), (1, 1)])
def test_pictures_are_flipped_only_in_training_and_only_if_asked(is_training, asked):
    x = prepared(is_training, num_bits=5, horizontal_flips=bool(asked))
    count = flipped(pixels.quantize(ramps(200), 5), x).sum()
    if is_training and asked:
        assert 50 < count < 150  # 7 standard deviations either way
    else:
        assert count == 0


@contextlib.contextmanager
def experiment(path):
    config = tiny.config()
    config.data.horizontal_flips = True
    run = tiny.experiment(path, config)
    with contextlib.closing(run.workdir):
        yield run


def test_updates_flip_and_validations_do_not(tmp_path, monkeypatch):
    flips = []

    def recorded(key, images):
        flips.append(images.shape)
        return images

    monkeypatch.setattr(pixels, "flip_half", recorded)
    with experiment(tmp_path) as run:
        vae_task, vae_state = run.vae_task()
        ncp_task = run.ncp_task(vae_update.freeze(run.vae_module, vae_state))
        for task, state in ((vae_task, vae_state), ncp_task):
            rows = task.inputs(0, 1)[0]
            jax.eval_shape(task.validate, state, task.data)
            assert flips == []
            jax.eval_shape(task.update, state, task.data, rows)
            assert flips == [(32, 8, 8, 1)]
            flips.clear()


def test_nothing_but_the_two_training_tasks_prepares_to_train():
    """What measures and samples takes `prepare`; encodings to train on are training."""
    package = Path(ncp_jax.__file__).parent
    found = {
        path.stem: path.read_text().count("prepare_to_train")
        for path in package.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == {
        "wiring": 3,
        "signal": 2,  # what it asks of a run, and the pool of encodings
    }
