"""`datasets.py`: the data sets, and batches as pure functions of (key, step)."""

import os
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncp_jax.data import datasets, readers
from ncp_jax.errors import InputError
from tests.data.test_readers import write_idx
from tests.statistics import assert_mean

REAL = os.environ.get("NCP_JAX_DATA", "")
needs_files = pytest.mark.skipif(not REAL, reason="NCP_JAX_DATA names no data folder")
MNIST = (28, 28, 1)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    """Tests choose their own folder, whatever the shell says."""
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


# --- binarize


def test_binarize_draws_each_pixel_with_its_own_probability(key):
    levels = np.repeat(np.uint8([51, 204]), 100_000)  # probabilities 0.2, 0.8
    dark, bright = np.split(np.asarray(datasets.binarize(key, jnp.asarray(levels))), 2)
    assert set(np.unique(dark)) == {0.0, 1.0}
    assert_mean(dark, 0.2, std=0.4, bias=2**-17)
    assert_mean(bright, 0.8, std=0.4, bias=2**-17)
    for wrong in (0.18, 0.22):  # the bar sees an error of 10 %
        with pytest.raises(AssertionError):
            assert_mean(dark, wrong, std=0.4, bias=2**-17)


def test_binarize_draws_pixels_independently_even_out_of_one_word(key):
    images = jnp.full((100_000, 2), 128, jnp.uint8)
    left, right = np.asarray(datasets.binarize(key, images)).T
    p = 128 / 255
    assert_mean(left * right, p**2, std=0.5, bias=2**-16)
    with pytest.raises(AssertionError):  # twice the same noise
        assert_mean(left * left, p**2, std=0.5, bias=2**-16)


def test_binarize_rounds_probabilities_to_16_bits(monkeypatch):
    """Fed each 16-bit number once, it returns exactly as many ones as it should."""
    every = np.arange(2**16, dtype=np.uint16).view(np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda *unused: jnp.asarray(every))
    for level in (0, 1, 2, 64, 127, 128, 254, 255):
        images = jnp.full(2**16, level, jnp.uint8)
        ones = int(datasets.binarize(jax.random.key(0), images).sum())
        assert ones == round(2**16 * level / 255)


def test_binarize_leaves_black_and_white_alone_and_works_on_odd_sizes(key):
    images = jnp.array([0, 255, 255] * 7, jnp.uint8).reshape(3, 7)
    binary = jax.jit(datasets.binarize)(key, images)
    chex.assert_trees_all_equal(binary, (images == 255).astype(jnp.float32))


def test_binarize_refuses_what_is_no_picture(key):
    with pytest.raises(
        InputError, match=r"type float32: .* uint8 pictures, .*\(255 \*"
    ):
        datasets.binarize(key, jnp.ones((2, 2)))


# --- batch_indices


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_example_comes_once_per_epoch(key, batch_size):
    num_examples, num_epochs = 10, 21  # 7 does not divide 10
    num_steps = num_examples * num_epochs // batch_size
    indices = datasets.batch_indices(key, 0, num_steps, batch_size, num_examples)
    chex.assert_shape(indices, (num_steps, batch_size))
    assert indices.dtype == jnp.int32
    epochs = np.asarray(indices).reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(
        np.sort(epochs), np.tile(np.arange(num_examples), (num_epochs, 1))
    )
    assert len({tuple(epoch) for epoch in epochs}) == num_epochs  # shuffled afresh


def test_batches_do_not_depend_on_how_the_steps_are_cut(key):
    whole = datasets.batch_indices(key, 0, 24, 7, 10)
    for length in (1, 3, 8):
        parts = [
            datasets.batch_indices(key, first, length, 7, 10)
            for first in range(0, 24, length)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    other = datasets.batch_indices(jax.random.fold_in(key, 1), 0, 24, 7, 10)
    assert (other != whole).any()


def test_another_first_step_does_not_recompile(key):
    sizes = set()
    for first_step in (0, 1, 5, 1_000, 10**9):
        datasets.batch_indices(key, first_step, 4, 9, 37)
        sizes.add(datasets._shuffled._cache_size())
    assert len(sizes) == 1


def test_an_epoch_is_shuffled_once_for_all_of_its_calls(key):
    datasets._order.cache_clear()
    for first_step in range(40):
        datasets.batch_indices(key, first_step, 1, 5, 100)
    assert datasets._order.cache_info().misses == 2


def test_steps_beyond_int32_positions_are_still_epochs(key):
    first_step, batch_size, num_examples = 10**7, 1024, 2048  # position 1.0e10 > 2**31
    batches = datasets.batch_indices(key, first_step, 2, batch_size, num_examples)
    np.testing.assert_array_equal(np.sort(batches.ravel()), np.arange(num_examples))
    epoch_key = jax.random.fold_in(key, first_step * batch_size // num_examples)
    expected = jax.random.permutation(epoch_key, num_examples)
    np.testing.assert_array_equal(batches.ravel(), expected)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_must_fit_into_an_epoch(key, batch_size):
    with pytest.raises(InputError, match=f"batch_size = {batch_size} .* 10 training"):
        datasets.batch_indices(key, 0, 1, batch_size, 10)


# --- padded_batches


@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
def test_padded_batches_show_every_row_once(num_rows):
    rows = np.arange(2 * num_rows).reshape(num_rows, 2)
    batches = list(datasets.padded_batches(rows, 4))
    assert len(batches) == -(-num_rows // 4)
    for batch, mask in batches:
        assert (batch.shape, mask.shape, mask.dtype) == ((4, 2), (4,), bool)
    seen = np.concatenate([batch[mask] for batch, mask in batches])
    np.testing.assert_array_equal(seen, rows)
    everything = np.concatenate([batch for batch, _ in batches])
    np.testing.assert_array_equal(everything, np.resize(rows, everything.shape))


def test_nothing_to_batch_gives_no_batch():
    assert not list(datasets.padded_batches(np.zeros((0, 2)), 4))


# --- data sets without files


def test_digits_are_the_same_pictures_for_every_seed_and_version():
    digits = datasets.load("digits", (8, 8, 1))
    assert [len(split) for split in digits] == [1297, 250, 250]
    everything = np.concatenate(digits)
    assert (everything.dtype, everything.min(), everything.max()) == (np.uint8, 0, 255)
    # sklearn's own mean level is 4.8842 of 16.
    np.testing.assert_allclose(everything.mean(), 4.8842 * 255 / 16, rtol=1e-3)
    chex.assert_trees_all_equal(digits, datasets.load("digits", (8, 8, 1), seed=1))
    # Results on other test pictures could not be compared.
    assert zlib.crc32(digits.test.tobytes()) == 0x1AA5D821


def test_toy25_has_25_equal_narrow_modes():
    points = datasets.load("toy25", (2,), seed=3)
    assert [len(split) for split in points] == [50_000, 5_000, 10_000]
    modes = datasets.toy25_modes()
    assert {tuple(mode) for mode in modes.tolist()} == {
        (x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)
    }
    assert points.train.dtype == modes.dtype == np.float32
    nearest = np.argmin(np.square(points.train[:, None] - modes).sum(-1), axis=1)
    residual = (points.train - modes[nearest]) / datasets.TOY25_STD
    assert_mean(residual, 0.0, std=1.0)
    assert_mean(residual**2, 1.0, std=2**0.5)  # variance of a squared normal: 2
    with pytest.raises(AssertionError):
        assert_mean((1.1 * residual) ** 2, 1.0, std=2**0.5)
    for mode in range(25):
        assert_mean(nearest == mode, 1 / 25, std=(24 / 625) ** 0.5)


def test_toy25_follows_its_seed():
    first, again, other = (datasets.load("toy25", (2,), seed=s).test for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all(axis=1).mean() > 0.99


# --- data sets in files


@needs_files
@pytest.mark.parametrize(
    ("name", "mean"),  # published means of the 60,000 training pictures, of 255
    [("mnist", 0.1307), ("fashion_mnist", 0.2860)],
)
def test_real_mnist(name, mean):
    pictures = datasets.load(name, MNIST, REAL)
    assert [len(split) for split in pictures] == [50_000, 10_000, 10_000]
    training_file = np.concatenate([pictures.train, pictures.valid])
    np.testing.assert_allclose(training_file.mean() / 255, mean, atol=5e-5)
    path = readers.find_mnist(name, Path(REAL))[0]
    np.testing.assert_array_equal(training_file, readers.read_idx(path))


@needs_files
def test_real_binarized_mnist(monkeypatch, key):
    monkeypatch.setenv("NCP_JAX_DATA", REAL)
    pictures = datasets.load("binarized_mnist", MNIST)
    assert [len(split) for split in pictures] == [50_000, 10_000, 10_000]
    np.testing.assert_allclose(pictures.train.mean() / 255, 0.1307, atol=2e-3)
    batch = jnp.asarray(pictures.test[:100])
    np.testing.assert_array_equal(datasets.binarize(key, batch), batch == 255)


def test_the_last_sixth_of_a_training_file_validates(tmp_path):
    train = write_idx(tmp_path / "train-images-idx3-ubyte", 13)
    test = write_idx(tmp_path / "t10k-images-idx3-ubyte", 2)
    pictures = datasets.load("mnist", (4, 3, 1), str(tmp_path))
    chex.assert_trees_all_equal(tuple(pictures), (train[:11], train[11:], test))


def test_one_training_picture_cannot_be_split(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", 1)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", 2)
    with pytest.raises(InputError, match=r"train-images.* 1 training .* too few"):
        datasets.load("mnist", (4, 3, 1), str(tmp_path))


def test_missing_mnist_lists_every_place(tmp_path):
    with pytest.raises(InputError) as error:
        datasets.load("fashion_mnist", MNIST, str(tmp_path))
    for folder in ("fashion_mnist", ".", "FashionMNIST/raw"):
        assert f"{tmp_path / folder}/{{train,t10k}}-images" in str(error.value)
    assert f"has not prepared 'fashion_mnist' in {tmp_path};" in str(error.value)


@pytest.mark.parametrize("count", [0, 2])
def test_binarized_mnist_needs_exactly_one_file(tmp_path, count):
    (tmp_path / "binarized_mnist").mkdir()
    for i in range(count):
        (tmp_path / "binarized_mnist" / f"{i}.npz").touch()
    found = "nothing" if count == 0 else r"\['0.npz', '1.npz'\]"
    with pytest.raises(InputError, match=rf"\*\.npz is needed, found {found}"):
        datasets.load("binarized_mnist", MNIST, str(tmp_path))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_empty_split_is_named(tmp_path, split):
    sizes = {"train": 3, "valid": 2, "test": 2} | {split: 0}
    (tmp_path / "binarized_mnist").mkdir()
    packed = {key: np.zeros((n, 98), np.uint8) for key, n in sizes.items()}
    np.savez(tmp_path / "binarized_mnist" / "packed.npz", **packed)
    with pytest.raises(InputError, match=f"binarized_mnist: the split '{split}' is em"):
        datasets.load("binarized_mnist", MNIST, str(tmp_path))


# --- what `load` refuses


@pytest.mark.parametrize("name", datasets.NAMES[2:])
def test_files_need_a_folder(name, tmp_path):
    with pytest.raises(InputError, match=f"{name} .* NCP_JAX_DATA"):
        datasets.load(name, MNIST)
    with pytest.raises(InputError, match=f"folder {tmp_path}/absent does not exist"):
        datasets.load(name, MNIST, f"{tmp_path}/absent")


def test_another_size_is_refused_with_both_sizes():
    with pytest.raises(InputError, match=r"\(8, 8, 1\), but .* \(28, 28, 1\)"):
        datasets.load("digits", MNIST)


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(InputError, match=r"'minst'\. Did you mean 'mnist'\? There are"):
        datasets.load("minst", MNIST)
    with pytest.raises(InputError, match=r"'imagenet'\. There are digits.*tfds:NAME$"):
        datasets.load("imagenet", MNIST)
