"""Ten thousand damages, the same on every run: all end well or in an `InputError`.

Where a format has a checksum, what is read after all is what was there before. One
process, functions, no program; a damage that takes seconds is a hang and fails.
"""

import gzip
import io
import json
import resource
import signal
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from ncp_jax.data import (
    celeba,
    cifar,
    picture_cache,
    picture_files,
    readers,
    static_mnist,
)
from ncp_jax.data.partial_array import PartialArray
from ncp_jax.errors import InputError
from ncp_jax.experiment.setup import budget, data_seal, overrides, schema, validation
from ncp_jax.experiment.setup import config as config_lib
from ncp_jax.models.nvae import torch_file
from ncp_jax.pages import run_page
from ncp_jax.pages.parts import figure_arrays, group_curves
from ncp_jax.priors import hashed_arrays
from ncp_jax.records import array_files, log_lines, run_records
from ncp_jax.training import checkpoint_records
from tests import mutations
from tests.data import test_cifar as cifar_files
from tests.data import test_picture_files as pictures
from tests.models.nvae import test_torch_file as torch_files
from tests.models.nvae.test_torch_file import torch  # noqa: F401
from tests.pages.test_run_page import full, minimal  # noqa: F401
from tests.records import test_run_records as records

pytestmark = pytest.mark.slow

SECONDS = 5  # of computing that one damage may take, at the most
MORE_BYTES = 6 * 2**30  # of addresses, beyond those in use: a header may lie
SHAPE = (4, 3, 1)


@pytest.fixture(autouse=True)
def bounds():
    """A hang becomes an error, and so does a demand for all memory."""

    def stop(signum, frame):
        raise TimeoutError(f"one damage took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = Path("/proc/self/statm")
    if in_use.exists():  # on Linux
        used = int(in_use.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGPROF, before)


def survive(number, damage, read, expected=None):
    """Reads damaged things; returns how many were read after all.

    Args:
      number: of damages.
      damage: what makes the next one from the dice.
      read: of the damaged thing; may raise `InputError` and nothing else.
      expected: what every success returns; None for anything.
    """
    dice = np.random.default_rng(zlib.crc32(f"{number}".encode()))
    num_read = 0
    for i in range(number):
        damaged = damage(dice)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow and Python, of what is odd
                found = read(damaged)
        except InputError:
            continue
        except BaseException as error:
            raise AssertionError(f"damage {i}: {damaged!r:.2000}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        num_read += 1
        if expected is not None:
            assert same(found, expected), f"damage {i}: {damaged!r:.2000}"
    return num_read


def same(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[name], expected[name]) for name in expected
        )
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return found == expected


def of_file(path, read):
    """Damages the bytes of a file, and reads it."""
    content = path.read_bytes()

    def damaged_read(damaged):
        path.write_bytes(damaged)
        return read(path)

    return lambda dice: mutations.of_bytes(dice, content), damaged_read


# --- data


def idx():
    content = np.arange(24, dtype=np.uint8).tobytes()
    return struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 3) + content


def test_idx(tmp_path):
    (tmp_path / "x").write_bytes(idx())
    damage, read = of_file(tmp_path / "x", readers.read_idx)
    assert survive(700, damage, read) > 50
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(), mtime=0))
    expected = readers.read_idx(tmp_path / "x.gz")
    damage, read = of_file(tmp_path / "x.gz", readers.read_idx)
    assert survive(700, damage, read, expected) > 10


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_packed_pictures(tmp_path, save):
    dice = np.random.default_rng(0)
    parts = ("train", "valid", "test")
    save(
        tmp_path / "x.npz",
        **{k: dice.integers(256, size=(3, 2), dtype=np.uint8) for k in parts},
    )
    read = lambda path: static_mnist.read_npz(path, SHAPE)  # noqa: E731
    expected = read(tmp_path / "x.npz")
    assert survive(500, *of_file(tmp_path / "x.npz", read), expected) > 10


def test_hashed_arrays(tmp_path):
    arrays = {"basis/0": np.ones((2, 3)), "widths": np.arange(2)}
    hashed_arrays.write(tmp_path / "x.npz", arrays)
    read = lambda path: hashed_arrays.read(path, "fit")  # noqa: E731
    assert survive(500, *of_file(tmp_path / "x.npz", read), arrays) > 10


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(cifar, "PICTURES_PER_BATCH", 1)
    rows = np.arange(3072).astype(np.uint8)[None]
    return {
        "binary": (".bin", cifar_files.binary_batch(rows)),
        "python": ("", cifar_files.python_2_batch(rows)),
    }


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_cifar(tmp_path, small_batches, layout):
    suffix, content = small_batches[layout]
    files = {name + suffix: content for name in cifar_files.NAMES}
    folder = cifar_files.write(tmp_path, layout, False, files)
    last = folder / f"test_batch{suffix}"
    damage, read = of_file(last, lambda path: cifar.read(folder))
    assert survive(300, damage, read) > 30
    if layout == "python":  # where it is no picture
        head, tail = content[:250], content[250:]
        damage = lambda dice: mutations.of_bytes(dice, head) + tail  # noqa: E731
        survive(700, damage, read)
    archive = cifar_files.write(tmp_path, layout, True, files)
    expected = cifar.read(archive)
    assert survive(200, *of_file(archive, cifar.read), expected) > 3


def all_pictures(path):
    files = picture_files.find(path)
    with files.reader() as read:
        return {
            name: picture_files.decode(lambda name=name: read(name), (4, 4, 3))
            for name in files.stamps
        }


def test_zip_of_pictures(tmp_path):
    picture = pictures.encoded(pictures.picture(4, 4))
    contents = {"a.png": picture, "b/c.png": picture, "readme.txt": b"x"}
    pictures.write_zip(tmp_path / "x.zip", contents)
    expected = all_pictures(tmp_path / "x.zip")
    assert survive(600, *of_file(tmp_path / "x.zip", all_pictures), expected) > 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_pictures(kind):
    content = pictures.encoded(pictures.picture(8, 8), kind)
    damage = lambda dice: mutations.of_bytes(dice, content)  # noqa: E731
    survive(150, damage, lambda c: picture_files.decode(lambda: c, (4, 4, 3)))


def test_celeba_partition(tmp_path):
    lines = "".join(f"{i:06}.jpg {i % 3}\n" for i in range(9))
    (tmp_path / "x.txt").write_text(lines)
    assert survive(200, *of_file(tmp_path / "x.txt", celeba._read_partition)) > 10


def test_progress_of_the_cache(tmp_path):
    with PartialArray(tmp_path / "x.npy", (3, *SHAPE)) as partial:
        partial.write(0, np.zeros(SHAPE, np.uint8))
        partial.num_tried = 1
        partial.save()

    def read(path):
        with PartialArray(tmp_path / "x.npy", (3, *SHAPE)) as found:
            return found.num_tried

    damage, damaged_read = of_file(tmp_path / "x.json", read)
    survive(150, damage, damaged_read)


def test_sealed_cache(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, *SHAPE), np.uint8))
    read = lambda path: np.array(picture_cache._open(path, (3, *SHAPE)))  # noqa: E731
    expected = read(tmp_path / "x.npy")  # which seals it
    assert survive(200, *of_file(tmp_path / "x.npy", read), expected) < 40


def test_torch_files(tmp_path, torch):  # noqa: F811
    path, storage = tmp_path / "c.pt", np.arange(12, dtype=np.float32)
    tensor = torch_files.Tensor(torch, "0", storage, 1, (2, 3), (1, 4))
    state = {"state_dict": {"w": tensor, "n": 3}, "args": (1.5, "x")}
    torch_files.save(path, state, {"0": storage})
    expected = torch_file.load(path)
    assert survive(700, *of_file(path, torch_file.load), expected) > 10
    stream = io.BytesIO()
    torch_files.Pickler(stream, protocol=2).dump(state)

    class Damaged:  # a pickle that is damaged before it is put into the archive
        def __init__(self, dice):
            self.content = mutations.of_bytes(dice, stream.getvalue())

    def read(damaged):
        with torch_files.zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", damaged.content)
            archive.writestr("archive/data/0", storage.tobytes())
        return torch_file.load(path)

    assert survive(1_200, Damaged, read) > 10


# --- records


def test_arrays_of_figures(tmp_path):
    path, arrays = (
        tmp_path / "x.npz",
        {"log_r_q": np.ones((2, 3)), "groups": np.arange(2)},
    )
    np.savez_compressed(path, **arrays)
    read = lambda path: array_files.read(path, "again")  # noqa: E731
    assert survive(700, *of_file(path, read), arrays) > 10


def test_results_and_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(records.CONFIG))
    (tmp_path / "results.json").write_text(json.dumps(records.results()))

    def write(name):
        def page(damaged):
            text = json.dumps(damaged) if isinstance(damaged, dict) else damaged
            (tmp_path / name).write_bytes(
                text.encode() if isinstance(text, str) else text
            )
            return run_page.write(tmp_path)

        return page

    for name, content in (
        ("config.json", records.CONFIG),
        ("results.json", records.results()),
    ):
        text = json.dumps(content).encode()
        damage = lambda dice, c=content: mutations.of_json(dice, c)  # noqa: E731
        assert survive(500, damage, write(name)) > 50
        damage = lambda dice, t=text: mutations.of_bytes(dice, t)  # noqa: E731
        assert survive(200, damage, write(name)) > 10
        (tmp_path / name).write_bytes(text)


def test_log_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def read(damaged):
        path.write_bytes(damaged)
        group_curves.read(path, "gain")
        return run_page.read_losses(path)

    text = "\n".join(map(json.dumps, records.LINES)).encode()
    survive(300, lambda dice: mutations.of_bytes(dice, text), read)

    def lines(dice):
        return "\n".join(
            json.dumps(mutations.of_json(dice, x)) for x in records.LINES
        ).encode()

    survive(400, lines, read)
    path.write_bytes(text)
    assert log_lines.read(path) == records.LINES


def test_figures(full):  # noqa: F811
    """Arrays of other shapes, types and sizes are refused, or can be drawn."""
    path = full / "evaluation" / "arrays.npz"
    arrays = array_files.read(path, "")

    def damage(dice):
        name = [*arrays][dice.integers(len(arrays))]
        array = arrays[name]
        choices = (
            lambda: array[:1],
            lambda: array[..., :1],
            lambda: array[:0],
            lambda: array.T,
            lambda: array.reshape(-1),
            lambda: array[None],
            lambda: array.astype(complex),
            lambda: array.astype(str),
            lambda: array * 1e300,
            lambda: np.full_like(array, np.nan),
            lambda: np.float64(3),
        )
        return name, choices[dice.integers(len(choices))]()

    def read(damaged):
        figure_arrays.check(path, "", arrays | dict([damaged]))

    assert 20 < survive(300, damage, read) < 200

    def draw(damaged):
        np.savez(path, **arrays | dict([damaged]))
        run_page.write(full)

    survive(8, damage, draw)


def test_seals(tmp_path):
    data = np.zeros((3, *SHAPE), np.uint8)
    seal = data_seal.of("x", data_seal.Dataset(data, data, data))

    def read(damaged):
        if data_seal.is_seal(damaged):
            return data_seal.differences(damaged, seal)

    survive(300, lambda dice: mutations.of_json(dice, seal), read)
    metadata = {"valid_loss": 1.5, "sha256": {"w": "0"}, "wall_seconds": 3.0}
    sealed = metadata | {"seal": checkpoint_records.seal_of(metadata)}
    path = tmp_path / "metadata" / "metadata"
    path.parent.mkdir()
    path.write_text(json.dumps(sealed))
    read_record = lambda _: checkpoint_records.read_record(tmp_path) or metadata  # noqa: E731
    assert survive(300, *of_file(path, read_record), metadata) == 300


# --- settings


def test_overrides():
    config = config_lib.default()
    known = schema.fields(config)
    names = [*known]

    def damage(dice):
        words = []
        for _ in range(dice.integers(1, 3)):
            name = names[dice.integers(len(names))]
            word = f"--config.{name}={known[name]}"
            words.append(mutations.of_text(dice, word) if dice.integers(4) else word)
        return words

    def read(words):
        _, changes = overrides.split(words, known)
        changed = overrides.apply(config, changes)
        validation.validate(changed)
        budget.check(changed)

    assert 50 < survive(600, damage, read) < 550


def test_config_values():
    config = config_lib.default().to_dict()
    odd = (
        len,
        object,
        np.zeros(3),
        {1, 2},
        b"x",
        1j,
        np.float32(2),
        (1,),
        (),
        range(3),
    )

    def damage(dice):
        damaged = mutations.of_json(dice, config)
        if dice.integers(3) == 0:
            section = damaged.get(["data", "vae", "ncp", "sample"][dice.integers(4)])
            if isinstance(section, dict) and section:
                name = [*section][dice.integers(len(section))]
                section[name] = odd[dice.integers(len(odd))]
        return damaged

    def read(damaged):
        checked = schema.checked(damaged)
        validation.validate(checked)
        budget.check(checked)
        assert schema.checked(checked).to_dict() == checked.to_dict()

    assert 20 < survive(600, damage, read) < 500
    assert run_records.MAX_DEPTH > 3
