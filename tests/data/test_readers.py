"""`readers.py` on small files of the true formats, sound and broken."""

import gzip
import importlib.util
import io
import struct
import sys

import chex
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from ncp_jax.data import datasets, readers
from ncp_jax.errors import InputError

SHAPE = (4, 3, 1)


def write_idx(path, num_pictures):
    """Writes 4x3 pictures in idx format, gzipped if `path` says so; returns them."""
    rng = np.random.default_rng(num_pictures)
    pictures = rng.integers(256, size=(num_pictures, *SHAPE), dtype=np.uint8)
    content = struct.pack(">4B3I", 0, 0, 8, 3, num_pictures, 4, 3) + pictures.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return pictures


# --- idx


@pytest.mark.parametrize("folder", ["mnist", ".", "MNIST/raw"])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_found_under_every_name(tmp_path, folder, separator, suffix):
    name = f"images{separator}idx3-ubyte{suffix}"
    train = write_idx(tmp_path / folder / f"train-{name}", 5)
    test = write_idx(tmp_path / folder / f"t10k-{name}", 2)
    files = readers.find_mnist("mnist", tmp_path)
    chex.assert_trees_all_equal(
        [readers.read_idx(file) for file in files], [train, test]
    )


def test_half_a_mnist_is_not_found(tmp_path):
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte", 5)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", 2)
    assert readers.find_mnist("mnist", tmp_path) is None


HEADER = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 3)
BROKEN_IDX = {
    "shorter than a header": (b"\0\0\x08", "3 bytes are too few for an idx header"),
    "truncated": (HEADER + bytes(23), r"\[2, 4, 3\] = 24 bytes but 23 .* truncated"),
    "trailing": (HEADER + bytes(25), "24 bytes but 25 follow; .* trailing"),
    "wrong magic": (b"PNG!" + HEADER, "starts with 0x504e4721.*0x00000803"),
    "floats": (struct.pack(">4B3I", 0, 0, 13, 3, 1, 1, 1) + bytes(4), "0x0d with 3"),
    "labels": (struct.pack(">4BI", 0, 0, 8, 1, 9) + bytes(9), "1 axes;.*labels"),
    "no picture": (struct.pack(">4B3I", 0, 0, 8, 3, 0, 4, 3), "holds no picture"),
    "truncated gzip": (gzip.compress(HEADER + bytes(24))[:-9], "truncated or corrupt"),
    "corrupt gzip": (b"\x1f\x8b\x08\0" + bytes(6) + b"\xff" * 20, "or corrupt"),
    "wrong checksum": (gzip.compress(HEADER)[:-8] + bytes(8), "or corrupt .CRC"),
}


@pytest.mark.parametrize("kind", BROKEN_IDX)
def test_a_broken_idx_file_is_named_and_explained(tmp_path, kind):
    content, message = BROKEN_IDX[kind]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*{message}"):
        readers.read_idx(path)


def test_an_unreadable_idx_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be read"):
        readers.read_idx(tmp_path)  # a folder


# --- tensorflow-datasets


def _png(level):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full(SHAPE[:2], level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of one level each: PNG bytes, because encoding would need TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(12), "test": range(100, 104)}  # noqa: RUF012
    FEATURE = "image"

    def _info(self):
        image = tfds.features.Image(shape=SHAPE)
        features = tfds.features.FeaturesDict({self.FEATURE: image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {k: self._generate_examples(v) for k, v in self.SPLITS.items()}

    def _generate_examples(self, levels):
        for level in levels:
            yield level, {self.FEATURE: _png(level)}


class TinyWithValidation(TinyPictures):
    """The publisher chose the validation part."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = TinyPictures.SPLITS | {"validation": range(50, 53)}


class TinyWithoutTest(TinyPictures):
    """No test split."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(3)}  # noqa: RUF012


class TinyWithoutImage(TinyPictures):
    """Another feature name."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURE = "picture"


@pytest.fixture(autouse=True)
def empty_default_folder(tmp_path, monkeypatch):
    """What the home folder holds changes no test."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "default"))
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def prepare(builder, data_dir):
    builder = builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder


def levels(pictures):
    chex.assert_shape(pictures, (None, *SHAPE))
    assert (pictures == pictures[:, :1, :1]).all()
    return set(pictures[:, 0, 0, 0].tolist())


def test_prepared_pictures_are_read_and_the_last_sixth_validates(tmp_path):
    prepare(TinyPictures, tmp_path)
    pictures = datasets.load("tfds:tiny_pictures", SHAPE, str(tmp_path))
    assert [len(split) for split in pictures] == [10, 2, 4]
    assert levels(pictures.train) | levels(pictures.valid) == set(range(12))
    assert levels(pictures.test) == set(range(100, 104))
    again = datasets.load("tfds:tiny_pictures:1.0.0", SHAPE, str(tmp_path))
    chex.assert_trees_all_equal(pictures, again)


def test_the_publishers_validation_split_is_kept(tmp_path):
    prepare(TinyWithValidation, tmp_path)
    pictures = datasets.load("tfds:tiny_with_validation", SHAPE, str(tmp_path))
    assert [len(split) for split in pictures] == [12, 3, 4]
    assert levels(pictures.valid) == {50, 51, 52}


def test_the_default_folder_comes_second(tmp_path):
    prepare(TinyPictures, tmp_path / "default")
    for folder in ("", str(tmp_path)):
        pictures = datasets.load("tfds:tiny_pictures", SHAPE, folder)
        assert levels(pictures.test) == set(range(100, 104))


def test_mnist_falls_back_on_a_prepared_folder(tmp_path):
    class Mnist(TinyPictures, skip_registration=True):
        """A stand-in of the same name."""

        VERSION = tfds.core.Version("3.0.1")

    prepare(Mnist, tmp_path)
    assert len(datasets.load("mnist", SHAPE, str(tmp_path)).test) == 4


REFUSED = {
    TinyWithoutTest: (SHAPE, r"no split \['test'\] among \['train'\]"),
    TinyWithoutImage: (SHAPE, r"no feature 'image' among \['picture'\]"),
    TinyPictures: ((5, 5, 1), r"uint8 \(4, 3, 1\), but .* uint8 \(5, 5, 1\)"),
}


@pytest.mark.parametrize("builder", REFUSED)
def test_unusable_prepared_data_is_explained(tmp_path, builder):
    shape, message = REFUSED[builder]
    prepare(builder, tmp_path)
    with pytest.raises(
        InputError, match=f"^{tmp_path}/{builder.name}/1.0.0.*{message}"
    ):
        readers.read_tfds(builder.name, shape, (tmp_path,))


def test_a_broken_shard_is_named(tmp_path):
    prepare(TinyPictures, tmp_path)
    (shard,) = tmp_path.glob("tiny_pictures/1.0.0/*-train.array_record*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="split 'train': cannot be read"):
        readers.read_tfds("tiny_pictures", SHAPE, (tmp_path,))


def test_broken_metadata_are_named(tmp_path):
    builder = prepare(TinyPictures, tmp_path)
    (builder.data_path / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="tensorflow-datasets, 'tiny_pictures': "):
        readers.read_tfds("tiny_pictures", SHAPE, (tmp_path,))


@pytest.mark.parametrize("name", ["mnist", "no_such_data", "cifar10_corrupted/fog_1"])
def test_unprepared_data_is_refused_without_a_download(tmp_path, monkeypatch, name):
    def refuse(*unused, **unused_too):
        pytest.fail("tried to download")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(InputError, match=f"'{name}' in {tmp_path}, its default folder"):
        datasets.load(f"tfds:{name}", SHAPE, str(tmp_path))


@pytest.mark.parametrize("name", ["", "not a name"])
def test_a_malformed_name_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"tensorflow-datasets, '{name}': "):
        datasets.load(f"tfds:{name}", SHAPE, str(tmp_path))


def _install_tensorflow(monkeypatch, is_there):
    spec = object() if is_there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


@pytest.mark.parametrize("name", ["mnist", "tfds:mnist"])
def test_a_download_without_tensorflow_is_refused_at_once(tmp_path, monkeypatch, name):
    _install_tensorflow(monkeypatch, False)
    with pytest.raises(InputError, match="'mnist' with TensorFlow, which is not inst"):
        datasets.load(name, SHAPE, str(tmp_path), download=True)


def test_a_download_prepares_what_is_missing(tmp_path, monkeypatch):
    _install_tensorflow(monkeypatch, True)  # this builder does not use it
    name = f"tfds:{TinyPictures.name}"
    pictures = datasets.load(name, SHAPE, str(tmp_path), download=True)
    chex.assert_trees_all_equal(pictures, datasets.load(name, SHAPE, str(tmp_path)))


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    _install_tensorflow(monkeypatch, True)

    def fail(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TinyPictures, "download_and_prepare", fail)
    with pytest.raises(InputError, match=r"could not prepare .* no route to host"):
        datasets.load("tfds:tiny_pictures", SHAPE, str(tmp_path), download=True)


def test_missing_tensorflow_datasets_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core", None)
    with pytest.raises(InputError, match=r"pip install '\.\[tfds\]'"):
        datasets.load("tfds:mnist", SHAPE, str(tmp_path))
