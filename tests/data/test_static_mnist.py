"""`static_mnist.py`: zeros and ones in every layout, and nothing else."""

import gzip

import chex
import numpy as np
import pytest

from ncp_jax.data import datasets, static_mnist
from ncp_jax.errors import InputError

SHAPE = (4, 3, 1)


def packed(shape=SHAPE, sizes=(3, 2, 1)):
    """Random bits of the three splits, and the same packed."""
    rng = np.random.default_rng(0)
    splits = zip(("train", "valid", "test"), sizes, strict=True)
    bits = {k: rng.integers(2, size=(n, *shape), dtype=np.uint8) for k, n in splits}
    return bits, {
        k: np.packbits(b.reshape(len(b), -1), axis=1) for k, b in bits.items()
    }


def test_packed_bits_become_black_and_white_pictures(tmp_path):
    bits, arrays = packed()  # 12 pixels: the last byte is half padding
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    pictures = static_mnist.read_npz(tmp_path / "b.npz", SHAPE)
    chex.assert_trees_all_equal(pictures, {k: 255 * b for k, b in bits.items()})
    assert pictures["train"].dtype == np.uint8


@pytest.mark.parametrize("key", ["train", "valid", "test"])
def test_packed_bits_need_all_three_keys(tmp_path, key):
    _, arrays = packed()
    del arrays[key]
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InputError, match=f"b.npz: no key '{key}' among"):
        static_mnist.read_npz(tmp_path / "b.npz", SHAPE)


def test_packed_bits_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "b.npz", **packed()[1])
    with pytest.raises(InputError, match=r"uint8 \[3, 2\]; .* \(28, 28, 1\) .*, 98\]"):
        static_mnist.read_npz(tmp_path / "b.npz", (28, 28, 1))


@pytest.mark.parametrize("kind", ["method", "encrypted", "version", "header"])
def test_an_npz_that_python_cannot_read_is_named(tmp_path, kind):
    """Flips that make zipfile and NumPy raise what no corrupt file should."""
    path, (_, arrays) = tmp_path / "b.npz", packed()
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    if kind == "header":  # Python that is no header
        start = content.index(b"{'descr'")
        content[start : start + 8] = b"{'de(cr'"
        content = content.replace(b"'|u1'", b"((((('")
    else:
        offset, value = {"method": (10, 99), "encrypted": (8, 1), "version": (6, 255)}[
            kind
        ]
        local, entry = content.index(b"PK\3\4"), content.index(b"PK\1\2")
        content[entry + offset] = value
        if kind != "version":
            content[local + offset - 2] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.npz: corrupt npz"):
        static_mnist.read_npz(path, SHAPE)


@pytest.mark.parametrize("kind", ["text", "truncated", "flipped", "pickled"])
def test_a_corrupt_npz_is_named(tmp_path, kind):
    path = tmp_path / "b.npz"
    if kind == "pickled":  # never unpickled: a pickle may run code
        np.savez(path, train=np.array([{}], object))
    else:
        np.savez(path, **packed()[1])
    content = bytearray(path.read_bytes())
    if kind == "text":
        content = b"<html>404</html>"
    elif kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "flipped":
        content[content.index(b"NUMPY") + 123] ^= 0xFF  # the first byte of the data
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: corrupt"):
        static_mnist.read_npz(path, SHAPE)


# --- unpacked


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32, np.int64])
@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("axes", [(12,), (4, 3), (4, 3, 1)])
def test_unpacked_bits_are_read_alike(tmp_path, dtype, scale, axes):
    if dtype is bool and scale == 255:
        pytest.skip("there is no such thing")
    bits, _ = packed()
    arrays = {k: (scale * b).astype(dtype).reshape(-1, *axes) for k, b in bits.items()}
    np.savez(tmp_path / "b.npz", **arrays)
    pictures = static_mnist.read_npz(tmp_path / "b.npz", SHAPE)
    chex.assert_trees_all_equal(pictures, {k: 255 * b for k, b in bits.items()})
    assert pictures["test"].dtype == np.uint8


@pytest.mark.parametrize("value", [2, 0.5, 254, np.nan])
def test_grey_values_are_no_bits(tmp_path, value):
    arrays = {key: np.zeros((2, 12)) for key in static_mnist.SPLITS}
    arrays["valid"][1, 3] = value
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(InputError, match=r"'valid' holds other values .*name='arrays'"):
        static_mnist.read_npz(tmp_path / "b.npz", SHAPE)


# --- Larochelle's text


def text_of(bits):
    return "".join(" ".join(map(str, row.ravel())) + " \n" for row in bits).encode()


@pytest.mark.parametrize("folder", ["binarized_mnist", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_three_texts_are_found_and_read(tmp_path, folder, suffix):
    bits, _ = packed()
    (tmp_path / folder).mkdir(exist_ok=True)
    for key, part in bits.items():
        content = text_of(part)
        path = tmp_path / folder / f"binarized_mnist_{key}.amat{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    found = datasets.load("binarized_mnist", SHAPE, str(tmp_path))
    chex.assert_trees_all_equal(found._asdict(), {k: 255 * b for k, b in bits.items()})


def test_two_of_three_texts_are_not_enough(tmp_path):
    for key in ("train", "valid"):
        (tmp_path / f"binarized_mnist_{key}.amat").touch()
    with pytest.raises(InputError, match=r"found nothing; or binarized_mnist_train"):
        datasets.load("binarized_mnist", SHAPE, str(tmp_path))


ROW = "0 1 0 1 0 1 0 1 0 1 0 1\n"
BROKEN = {
    "two digits": (ROW + ROW.replace("1 0", "11 0", 1), "line 2: found '0 11 0"),
    "grey": (ROW + "0.5" + ROW, r"line 2: found .*0\.5"),
    "a page": ("<html>", "line 1: found '<html>'"),
    "short": (ROW + ROW[:-3], r"line 2: 11 pixels, expected 12 .*truncated"),
    "long": (ROW[:-1] + " 1\n" + ROW, "line 1: 13 pixels, expected 12"),
    "bytes": (ROW + "\x00", "line 2: found"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_text_that_is_something_else_is_named_with_the_line(tmp_path, kind):
    content, message = BROKEN[kind]
    path = tmp_path / "x.amat"
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{path}, {message}"):
        static_mnist.read_text(path, SHAPE)


def test_an_empty_text_has_no_pictures(tmp_path):
    (tmp_path / "x.amat").touch()
    assert static_mnist.read_text(tmp_path / "x.amat", SHAPE).shape == (0, *SHAPE)
