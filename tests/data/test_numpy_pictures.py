"""`numpy_pictures.py`: pictures as people save them, and what is no such thing."""

import chex
import numpy as np
import pytest

from ncp_jax.data import datasets, numpy_pictures
from ncp_jax.errors import InputError

SHAPE = (4, 3, 1)
COLOUR = (4, 3, 3)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def pictures(num, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(num, *shape), dtype=np.uint8)


def load(path, shape=SHAPE):
    return datasets.load("arrays", shape, str(path))


def rows_of(array):
    return sorted(picture.tobytes() for picture in array)


def assert_holds(dataset, everything):
    """Every picture once."""
    assert rows_of(np.concatenate(dataset)) == rows_of(everything)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [(SHAPE, (4, 3)), (SHAPE, (12,)), (SHAPE, SHAPE), (COLOUR, COLOUR)],
)
def test_one_file_is_divided_always_alike(tmp_path, shape, axes):
    everything = pictures(40, shape)
    np.save(tmp_path / "a.npy", everything.reshape(40, *axes))
    np.savez(tmp_path / "b.npz", images=everything.reshape(40, *axes), labels=range(40))
    first, second = load(tmp_path / "a.npy", shape), load(tmp_path / "b.npz", shape)
    assert [len(part) for part in first] == [36, 2, 2]
    assert_holds(first, everything)
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(first.test, everything[38:])  # of classes in a row


def test_the_layout_of_cifar_10_1_leaves_labels_out(tmp_path, capsys):
    everything = pictures(20, COLOUR)
    np.save(tmp_path / "cifar10.1_v6_data.npy", everything)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(20, dtype=np.int32))
    assert_holds(load(tmp_path, COLOUR), everything)
    shown = capsys.readouterr().out
    assert "to be divided: cifar10.1_v6_data.npy" in shown
    assert "left out: cifar10.1_v6_labels.npy (int32 [20])" in shown


def test_two_versions_of_a_set_are_not_two_parts_of_it(tmp_path):
    everything = pictures(21, COLOUR)
    np.save(tmp_path / "cifar10.1_v4_data.npy", everything)
    np.save(tmp_path / "cifar10.1_v6_data.npy", everything[:20][::-1])
    with pytest.raises(InputError, match=r"v4_data\.npy and .*v6_data\.npy hold the s"):
        load(tmp_path, COLOUR)


def test_files_without_a_word_are_taken_together(tmp_path):
    parts = [pictures(n, seed=n) for n in (5, 30, 6)]
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "0.npy", parts[0])
    np.save(tmp_path / "deep" / "1.npy", parts[1])
    np.savez(tmp_path / "2.npz", x=parts[2][..., 0])
    assert_holds(load(tmp_path), np.concatenate(parts))


NAMES = {
    "keras": ("x_{}", ("train", None, "test")),
    "medmnist": ("{}_images", ("train", "val", "test")),
    "plain": ("{}", ("training", "validation", "testing")),
    "no test": ("x_{}", ("train", "valid", None)),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("is_one_file", [True, False])
def test_words_in_names_say_which_part(tmp_path, kind, is_one_file):
    form, words = NAMES[kind]
    sizes = dict(zip(words, (12, 6, 5), strict=True))
    sizes.pop(None, None)
    parts = {form.format(word): pictures(n, seed=n) for word, n in sizes.items()}
    if is_one_file:
        labels = {f"y_{word}": np.zeros((n, 1), int) for word, n in sizes.items()}
        np.savez(tmp_path / "set.npz", **parts, **labels)
    else:
        for name, array in parts.items():
            np.save(tmp_path / f"{name}.npy", array)
    found = load(tmp_path / "set.npz" if is_one_file else tmp_path)
    assert_holds(found, np.concatenate(list(parts.values())))
    expected = {"keras": (10, 2, 5), "no test": (12, 3, 3)}.get(kind, (12, 6, 5))
    assert tuple(map(len, found)) == expected
    if kind == "plain":
        chex.assert_trees_all_equal(tuple(found), tuple(parts.values()))


def test_what_lies_in_files_of_its_own_is_mapped(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        np.save(tmp_path / f"{split}.npy", pictures(5, seed=seed))
    assert all(
        isinstance(part.base, np.memmap) or isinstance(part, np.memmap)
        for part in load(tmp_path)
    )


def test_mnist_of_keras_is_mnist(tmp_path):
    train, test = pictures(12), pictures(3, seed=1)
    arrays = {"x_train": train[..., 0], "y_train": np.zeros(12, np.uint8)}
    np.savez(tmp_path / "mnist.npz", **arrays, x_test=test[..., 0])
    found = datasets.load("mnist", SHAPE, str(tmp_path))
    chex.assert_trees_all_equal(tuple(found), (train[:10], train[10:], test))
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(InputError, match=r"no key 'x_test' among \['x_train', 'y_tr"):
        datasets.load("mnist", SHAPE, str(tmp_path))


U8 = np.uint8
WRONG = {
    "unit": (
        np.linspace(0, 1, 24).reshape(2, 4, 3),
        "float64, expected uint8 .*255 \\* x",
    ),
    "signed": (np.linspace(-1, 1, 24).reshape(2, 4, 3), r"127\.5 \* \(x \+ 1\)"),
    "floats": (
        np.linspace(0, 255, 24).reshape(2, 4, 3),
        r"round\(x\)\.astype.* to 255",
    ),
    "wide": (np.full((2, 4, 3), 70_000), "bring x to 0 .. 255, .*from 70000 to 70000"),
    "bool": (np.ones((2, 4, 3), bool), r"bool, .* x \* np\.uint8\(255\)"),
    "text": (np.full((2, 4, 3), "a"), "<U1, .*no numbers"),
    "nan": (np.full((2, 4, 3), np.nan), "bring x to 0 .. 255"),
    "bits": (np.ones((2, 4, 3), U8), "no values but 0 and 1 .* nearly black"),
    "channels": (np.full((2, 1, 4, 3), 9, U8), r"\[2, 1, 4, 3\], .* x\.transpose"),
    "size": (
        np.full((2, 5, 3), 9, U8),
        r"\[2, 5, 3\], expected \[N, 4, 3, 1\]; resize",
    ),
    "labels": (np.arange(7), r"no array of pictures.*found a\.npy \(int64 \[7\]\)"),
    "objects": (np.array([{}], object), "Python objects, which are never unpickled"),
    "one": (np.full((1, 4, 3), 9, U8), "1 pictures are too few for training"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_such_array_is_named_with_what_makes_it_one(tmp_path, kind):
    array, message = WRONG[kind]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=f"^{tmp_path}.*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as file:
        save = np.save if suffix == "npy" else np.savez
        save(file, pictures(5))
    path.write_bytes(path.read_bytes()[:150] if content is None else content)
    with pytest.raises(InputError, match=f"^{path}: corrupt or no array"):
        load(tmp_path)


def test_places_without_arrays_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no array of pictures.*found nothing"):
        load(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"a\.txt is neither a folder nor a \.npy or"):
        load(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"a\.txt is a file, and data\.dir the folder"):
        datasets.load("mnist", SHAPE, str(tmp_path / "a.txt"))
    np.save(tmp_path / "test.npy", pictures(5))
    with pytest.raises(InputError, match="has a test part but no pictures in train"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"arrays: pictures are resized to .*\(2,\)"):
        load(tmp_path, (2,))


def test_the_decoded_cache_of_other_pictures_is_not_read(tmp_path):
    everything = pictures(20)
    np.save(tmp_path / "a.npy", everything)
    (tmp_path / "ncp_jax_cache").mkdir()
    (tmp_path / ".hidden").mkdir()
    for folder in ("ncp_jax_cache", ".hidden"):
        np.save(tmp_path / folder / "b.npy", pictures(9, seed=1))
    assert_holds(load(tmp_path), everything)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("x_train", "train"),
        ("Val/a.npy", "valid"),
        ("set.npz:test_images", "test"),
        ("train-00000-of-00001.parquet", "train"),
        ("cifar10.1_v6_data.npy", ""),
        ("latest.npy", ""),
        ("strain.npy", ""),
        ("digits_train_val_test.npz:x_test", "test"),
        ("train_and_test/x_test.npy", "test"),
        ("train-test-split/validation/0000.parquet", "valid"),
        ("train/train_and_test.npy", "train"),
    ],
)
def test_a_part_is_a_word_of_its_own(name, split):
    assert numpy_pictures.split_in(name) == split


def test_the_same_pictures_for_training_and_test_are_refused(tmp_path):
    everything = pictures(21, COLOUR)
    np.save(tmp_path / "x_train.npy", everything)
    np.save(tmp_path / "x_test.npy", everything[:15])
    with pytest.raises(InputError, match="hold the same pictures"):
        load(tmp_path, COLOUR)
