"""`cifar.py` on small batches of the true layouts, sound and broken."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from ncp_jax.data import cifar, datasets
from ncp_jax.errors import InputError

REAL = Path(os.environ.get("NCP_JAX_DATA") or "absent")
NUM = 4  # pictures per batch
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
FOLDERS = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}
LAYOUTS = [(layout, is_archive) for layout in FOLDERS for is_archive in (False, True)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(cifar, "PICTURES_PER_BATCH", NUM)
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def batches():
    """[6, NUM, 3072] bytes as the publisher orders them."""
    return np.random.default_rng(0).integers(256, size=(6, NUM, 3072), dtype=np.uint8)


def binary_batch(rows):
    labels = np.arange(len(rows), dtype=np.uint8)[:, None]
    return np.concatenate([labels, rows], axis=1).tobytes()


def python_2_batch(rows, kind=b"u1", module=b"numpy.core.multiarray"):
    """What Python 2's cPickle wrote, protocol 2: the texts are byte strings."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    def number(value):
        return b"J" + struct.pack("<i", value)

    shape = b"".join(map(number, rows.shape))
    content = rows.tobytes()
    return b"".join(
        [
            *(b"\x80\x02}q\x01(", short(b"batch_label"), short(b"batch 1 of 5")),
            *(short(b"labels"), b"]q\x02(K\x03K\x09e"),
            *(short(b"data"), b"c" + module + b"\n_reconstruct\ncnumpy\nndarray\n"),
            *(b"K\0\x85", short(b"b"), b"\x87R"),  # _reconstruct(ndarray, (0,), "b")
            *(b"(K\x01", shape, b"\x86" if rows.ndim == 2 else b"\x85"),
            *(b"cnumpy\ndtype\n", short(kind), b"K\0K\x01\x87R"),
            *(b"(K\x03", short(b"|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"),
            *(b"\x89T", struct.pack("<i", len(content)), content, b"tb"),
            *(short(b"filenames"), b"]", short(b"a.png"), b"au."),
        ]
    )


def encoded(layout):
    """The six files of a layout by name."""
    encode = {"binary": binary_batch, "python": python_2_batch}[layout]
    suffix = {"binary": ".bin", "python": ""}[layout]
    return {
        name + suffix: encode(rows) for name, rows in zip(NAMES, batches(), strict=True)
    }


def write(place, layout, is_archive, files=None):
    """Writes the files of a layout; returns their folder or archive."""
    files = encoded(layout) if files is None else files
    path = place / (f"cifar-10-{layout}.tar.gz" if is_archive else FOLDERS[layout])
    place.mkdir(parents=True, exist_ok=True)
    if is_archive:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in {"readme.html": b"", **files}.items():
                member = tarfile.TarInfo(f"{FOLDERS[layout]}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    return path


# --- sound files


def test_the_imitation_is_what_pickle_reads():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy has renamed its modules since
        batch = pickle.loads(python_2_batch(batches()[0]), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], batches()[0])
    assert batch[b"labels"] == [3, 9]


@pytest.mark.parametrize(("layout", "is_archive"), LAYOUTS)
@pytest.mark.parametrize("place", ["cifar10", ".", "CIFAR10"])
def test_every_layout_is_found_and_read(tmp_path, layout, is_archive, place):
    path = write(tmp_path / place, layout, is_archive)
    assert cifar.find(tmp_path) == path
    train, test = cifar.read(path)
    assert (train.dtype, train.shape) == (np.uint8, (5 * NUM, 32, 32, 3))
    planes = batches().reshape(6 * NUM, 3, 32, 32)  # red, green, blue
    pictures = np.concatenate([train, test])
    for row, column, channel in [(0, 0, 0), (3, 17, 1), (31, 30, 2)]:
        np.testing.assert_array_equal(
            pictures[:, row, column, channel], planes[:, channel, row, column]
        )


@pytest.mark.skipif(not cifar.find(REAL), reason="NCP_JAX_DATA has no CIFAR-10")
def test_real_cifar10(monkeypatch):
    monkeypatch.undo()
    train, test = cifar.read(cifar.find(REAL))
    assert (train.shape, test.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    # the means that everybody normalises by
    means = train.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-3)


def test_load_validates_on_the_last_sixth_of_the_training_batches(tmp_path):
    path = write(tmp_path, "python", True)
    train, test = cifar.read(path)
    dataset = datasets.load("cifar10", (32, 32, 3), str(tmp_path))
    assert [len(split) for split in dataset] == [17, 3, 4]
    np.testing.assert_array_equal(np.concatenate(dataset[:2]), train)
    np.testing.assert_array_equal(dataset.test, test)
    with pytest.raises(InputError, match=r"\(32, 32, 3\), but .* \(64, 64, 3\)"):
        datasets.load("cifar10", (64, 64, 3), str(tmp_path))


def test_an_incomplete_folder_is_passed_over(tmp_path):
    (write(tmp_path, "binary", False) / "data_batch_3.bin").unlink()
    assert cifar.find(tmp_path) is None
    archive = write(tmp_path, "python", True)
    assert cifar.find(tmp_path) == archive


def test_missing_files_list_every_place(tmp_path):
    with pytest.raises(InputError) as error:
        datasets.load("cifar10", (32, 32, 3), str(tmp_path))
    batches = "{data_batch_{1,2,3,4,5},test_batch}"
    for place in ("cifar10", ".", "CIFAR10"):
        for file in (
            f"cifar-10-batches-bin/{batches}.bin\n",
            f"cifar-10-batches-py/{batches}\n",
            "cifar-10-{binary,python}.tar.gz\n",
        ):
            assert f"\n  {tmp_path / place}/{file}" in str(error.value)
    assert f"has not prepared 'cifar10' in {tmp_path};" in str(error.value)


# --- broken files


def broken(layout, name, content):
    return encoded(layout) | {name: content}


@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_a_binary_batch_of_another_length_is_named(tmp_path, is_archive, change):
    content = binary_batch(batches()[3])
    content = content[:change] if change < 0 else content + bytes(change)
    files = broken("binary", "data_batch_4.bin", content)
    path = write(tmp_path, "binary", is_archive, files)
    found, expected = NUM * 3073 + change, NUM * 3073
    message = f"^{path}/data_batch_4.bin: {found} bytes found, .* = {expected} bytes"
    with pytest.raises(InputError, match=message):
        cifar.read(path)


def test_a_missing_batch_is_named(tmp_path):
    files = encoded("python")
    del files["data_batch_2"], files["test_batch"]
    path = write(tmp_path, "python", True, files)
    with pytest.raises(InputError, match=f"^{path}: lacks data_batch_2, test_batch;"):
        cifar.read(path)


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "checksum", "no tar"])
def test_a_broken_archive_is_named(tmp_path, kind):
    path = write(tmp_path, "binary", True)
    content = path.read_bytes()
    path.write_bytes(
        {
            "text": b"<html>404</html>",
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "checksum": content[:-8] + bytes(8),
            "no tar": gzip.compress(b"x" * 2000),
        }[kind]
    )
    with pytest.raises(InputError, match=f"^{path}: no tar.gz archive, or truncated"):
        cifar.read(path)


ROWS = batches()[0]
BROKEN_PICKLES = {
    "truncated": (python_2_batch(ROWS)[:-9], "no pickle, or truncated or corrupt"),
    "empty": (b"", "no pickle"),
    "text": (b"<html>404</html>", "no pickle"),
    "no dict": (pickle.dumps([1, 2]), "no dict with an array"),
    "no data": (pickle.dumps({b"labels": [1]}), "no dict with an array"),
    "no array": (pickle.dumps({b"data": b"123"}), "no dict with an array"),
    "too few": (python_2_batch(ROWS[1:]), r"u1 \(3, 3072\), expected u1 \(4, 3072\)"),
    "flat": (python_2_batch(ROWS.reshape(-1)), r"u1 \(12288,\), expected"),
    "floats": (python_2_batch(ROWS, kind=b"f4"), r"f4 \(4, 3072\), expected u1"),
    "short": (python_2_batch(ROWS).replace(b"J\4\0\0\0", b"J\5\0\0\0"), r"u1 \(5, 30"),
    "no state": (b"\x80\2cnumpy\nndarray\n)R}b.", "no pickle, or trunc"),
    "a type": (b"\x80\2}U\4datacnumpy\nndarray\ns.", "no dict with an array"),
    "persistent": (b"\x80\2U\1aQ.", "no pickle, or truncated or corrupt"),
}


@pytest.mark.parametrize("kind", BROKEN_PICKLES)
def test_a_broken_pickle_is_named(tmp_path, kind):
    content, message = BROKEN_PICKLES[kind]
    path = write(tmp_path, "python", False, broken("python", "test_batch", content))
    with pytest.raises(InputError, match=f"^{path}/test_batch: .*{message}"):
        cifar.read(path)


def test_bytes_that_do_not_fill_the_shape_are_refused(tmp_path):
    content = python_2_batch(ROWS)
    length = struct.pack("<i", ROWS.size)
    start = content.index(b"T" + length) + 5
    short = b"T" + struct.pack("<i", ROWS.size - 1)
    content = content[: start - 5] + short + content[start:-1] + b"."
    content = content[: start + ROWS.size - 1] + content[start + ROWS.size :]
    path = write(tmp_path, "python", False, broken("python", "test_batch", content))
    with pytest.raises(InputError, match=r"bytes of 'data' do not fill \(4, 3072\)"):
        cifar.read(path)


def test_columns_first_are_refused(tmp_path):
    content = python_2_batch(ROWS).replace(b"tb\x89T", b"tb\x88T")
    path = write(tmp_path, "python", False, broken("python", "test_batch", content))
    with pytest.raises(InputError, match="columns first, expected u1"):
        cifar.read(path)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_archive", [False, True])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, is_archive, protocol):
    mark = tmp_path / "mark"
    evil = Malicious(os.mkdir, str(mark))
    content = pickle.dumps({"data": evil}, protocol)
    path = write(tmp_path, "python", is_archive, broken("python", NAMES[0], content))
    with pytest.raises(InputError, match=rf"/{NAMES[0]}: .* asks for \w+\.mkdir, "):
        cifar.read(path)
    assert not mark.exists()
    pickle.loads(content)  # it would have
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "numpy.core.multiarray\nfromfile",
        "numpy\nmemmap",
        "numpy.testing\nrundocs",
        "builtins\neval",
        "__builtin__\ngetattr",
        "copyreg\n_reconstructor",
        "copy\n_reconstruct",
        "numpy.ndarray\n__init__",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    content = b"\x80\2}U\4datac" + name.encode() + b"\ns."
    path = write(tmp_path, "python", False, broken("python", NAMES[0], content))
    with pytest.raises(InputError, match=f"asks for {name.replace(chr(10), '.')}, "):
        cifar.read(path)


def test_the_imitation_with_todays_module_is_read(tmp_path):
    content = python_2_batch(ROWS, module=b"numpy._core.multiarray")
    path = write(tmp_path, "python", False, broken("python", NAMES[0], content))
    np.testing.assert_array_equal(cifar.read(path)[0][:NUM, 0, 0, 0], ROWS[:, 0])


def refused(tmp_path, content):
    path = write(tmp_path, "python", False, broken("python", NAMES[0], content))
    with pytest.raises(InputError) as error:
        cifar.read(path)
    assert str(error.value).startswith(f"{path}/{NAMES[0]}: ")
    return str(error.value)


@pytest.mark.parametrize(
    "memo", [b"r\xff\xff\xff\x7f", b"p2147483647\n", b"p99999999999999999999\n"]
)
def test_a_memo_of_a_huge_number_is_refused_before_it_is_made(tmp_path, memo):
    """Python's reader would ask for memory for all numbers up to this one."""
    content = b"\x80\2}" + memo + python_2_batch(ROWS)[3:]
    assert "numbers an object" in refused(tmp_path, content)


def test_a_shape_that_holds_itself_is_refused(tmp_path):
    """To compare it with the right one never ends."""
    content = python_2_batch(ROWS)
    own = b"(]q\x7fh\x7fat"  # ([...],)
    start = content.index(b"(K\1") + 3
    end = content.index(b"cnumpy\ndtype")
    refused(tmp_path, content[:start] + own + content[end:])


IMPORTS = {
    "broken after it": b"\x80\2cos\nsystem\n",
    "names as bytes": b"\x80\4U\2osU\6system\x93.",
    "names from the memo": b"\x80\4\x8c\2os\x940\x8c\6system\x940h\0h\1\x93.",
    "an instance": b"(ios\nsystem\n.",
    "never reached": b"\x80\2}.cos\nsystem\n.",
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_every_way_of_importing_is_named(tmp_path, kind):
    content = IMPORTS[kind]
    if kind == "never reached":  # what follows the end is never read
        assert "no dict with an array" in refused(tmp_path, content)
        return
    assert "asks for os.system, " in refused(tmp_path, content)


def test_a_class_by_its_registered_number_is_refused(tmp_path):
    message = refused(tmp_path, b"\x80\2\x82\1.")
    assert "asks for the registered class 1" in message
