"""`picture_cache.py`: decoded once, continued after a kill, corrupt pictures named."""

import contextlib
import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ncp_jax.data import picture_cache, picture_files, picture_folder
from ncp_jax.errors import InputError
from tests.data.test_picture_files import encoded, picture, write

SHAPE = (8, 8, 3)
NUM = 40


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(picture_cache, "_MAX_CHUNK", 4)


@pytest.fixture
def source(tmp_path):
    """A folder of NUM different pictures."""
    contents = {f"{i:02}.png": encoded(picture(seed=i)) for i in range(NUM)}
    return write(tmp_path / "pictures", contents)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded_names(monkeypatch):
    """The files that are read, in no particular order."""
    names = []
    original = picture_files.PictureFiles.reader

    @contextlib.contextmanager
    def reader(self):
        with original(self) as read:
            yield lambda name: names.append(name) or read(name)

    monkeypatch.setattr(picture_files.PictureFiles, "reader", reader)
    return names


def load(source, cache, shape=SHAPE, **replaced):
    splits = picture_folder.divide(source)._replace(**replaced)
    return picture_cache.load("faces", splits, shape, [cache])


def expected(source, shape=SHAPE):
    splits = picture_folder.divide(source)
    return [
        np.stack(
            [picture_files.decode((source / name).read_bytes, shape) for name in part]
        )
        for part in splits[1:4]
    ]


def assert_sound(source, parts, shape=SHAPE):
    for part, right in zip(parts, expected(source, shape), strict=True):
        np.testing.assert_array_equal(part, right)


def suffixes(cache):
    return sorted(path.suffix for path in cache.iterdir())


COMPLETE = [".npy", ".sha256"]


# --- sound pictures


def test_pictures_are_decoded_once_and_mapped(source, cache, decoded_names):
    parts = load(source, cache)
    assert_sound(source, parts)
    assert len(decoded_names) == NUM
    for part in parts:
        assert isinstance(part, np.memmap)
        assert not part.flags.writeable
    again = load(source, cache)
    assert len(decoded_names) == NUM
    assert_sound(source, again)
    assert suffixes(cache) == COMPLETE


@pytest.mark.parametrize("change", ["shape", "box", "order", "file", "size"])
def test_whatever_changes_the_pictures_changes_the_cache(source, cache, change):
    load(source, cache)
    if change == "shape":
        assert_sound(source, load(source, cache, (8, 8, 1)), (8, 8, 1))
    elif change == "box":
        parts = load(source, cache, box=(0, 0, 8, 8))
        assert (parts[0] != expected(source)[0]).any()
    elif change == "order":
        train = picture_folder.divide(source).train[::-1]
        np.testing.assert_array_equal(
            load(source, cache, train=train)[0], expected(source)[0][::-1]
        )
    elif change == "file":
        (source / "07.png").write_bytes(encoded(picture(seed=99)))
        os.utime(source / "07.png", (1, 1))
        assert_sound(source, load(source, cache))
    else:
        load(source, cache, size=(16, 16))
    assert len(list(cache.glob("*.npy"))) == 2


def test_an_equal_folder_elsewhere_shares_no_cache(source, cache, tmp_path):
    """Uncompressed pictures of the same names and sizes, written at other times."""
    for name, seed in (("a", 0), ("b", 100)):
        contents = {
            f"{i}.bmp": encoded(picture(seed=seed + i), "BMP") for i in range(3)
        }
        folder = write(tmp_path / name, contents)
        for file in folder.iterdir():
            os.utime(file, (seed, seed))
        assert_sound(folder, load(folder, cache))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bar_on_a_terminal_one_line_elsewhere(
    source, cache, is_terminal, monkeypatch, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    load(source, cache)
    shown = capsys.readouterr().err
    if is_terminal:
        assert "decoding faces: 100%" in shown
        assert f" {NUM}/{NUM} " in shown
    else:
        assert shown.startswith(f"faces: decoding {NUM} pictures into {cache}/faces-")
        assert shown.count("\n") == 1
    load(source, cache)
    assert not capsys.readouterr().err


# --- interrupted


def stop_at(monkeypatch, num_decoded):
    """Makes the decoder fail as a Ctrl-C does, once so many are decoded."""
    decode = picture_files.decode
    count = iter(range(num_decoded))

    def decode_some(*args):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return decode(*args)

    monkeypatch.setattr(picture_files, "decode", decode_some)


def test_an_interrupted_run_is_continued(source, cache, monkeypatch, decoded_names):
    for _ in range(2):  # interrupted twice
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, 18)
            load(source, cache)
        assert suffixes(cache) == [".json", ".lock", ".partial"]
    first = picture_folder.divide(source).names[:32]  # 18 is 4 chunks of 4 and a bit
    decoded_names.clear()
    assert_sound(source, load(source, cache))
    assert not set(first) & set(decoded_names)
    assert len(decoded_names) == NUM - 32
    assert suffixes(cache) == COMPLETE


def test_a_killed_process_is_continued(source, cache, decoded_names):
    """In earnest: the process gets SIGKILL when it is about half through."""
    code = f"""
import os, signal, sys
from pathlib import Path
from ncp_jax.data import picture_cache, picture_files, picture_folder
picture_cache._MAX_CHUNK = 4
decode, left = picture_files.decode, iter(range({NUM // 2}))
def decode_some(*args):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args)
picture_files.decode = decode_some
splits = picture_folder.divide(Path({str(source)!r}))
picture_cache.load("faces", splits, {SHAPE}, [Path({str(cache)!r})])
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert_sound(source, load(source, cache))
    assert len(decoded_names) == NUM - 20  # the chunks that were complete


@pytest.mark.parametrize("kind", ["no record", "half a record", "short", "list"])
def test_a_damaged_beginning_is_begun_anew(source, cache, monkeypatch, kind):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 18)
        load(source, cache)
    (record,), (partial,) = cache.glob("*.json"), cache.glob("*.partial")
    if kind == "no record":
        record.unlink()
    elif kind == "half a record":
        record.write_text(record.read_text()[:9])
    elif kind == "list":
        record.write_text("[]")
    else:
        partial.write_bytes(partial.read_bytes()[:-1])
    assert_sound(source, load(source, cache))


def test_two_at_once_decode_once(source, cache, decoded_names):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load(source, cache)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for parts in results:
        assert_sound(source, parts)
    assert len(decoded_names) == NUM


def test_who_finds_another_at_work_waits_and_says_so(source, cache, capsys):
    load(source, cache)
    (complete,) = cache.glob("*.npy")
    aside = complete.rename(complete.with_suffix(".aside"))
    lock = complete.with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    results = []
    waiter = threading.Thread(target=lambda: results.append(load(source, cache)))
    waiter.start()
    said, deadline = "", time.monotonic() + 60
    while "another process decodes, waiting" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        said += capsys.readouterr().err
    aside.rename(complete)
    lock.close()
    waiter.join()
    assert_sound(source, results[0])


# --- refused


def test_corrupt_pictures_are_all_named_and_the_others_decoded(
    source, cache, decoded_names
):
    (source / "03.png").write_bytes(b"")
    (source / "30.png").write_bytes((source / "30.png").read_bytes()[:-30])
    message = f"^faces: 2 of {NUM} pictures cannot be used; fetch them again:"
    for attempt in range(2):
        with pytest.raises(InputError, match=message) as error:
            load(source, cache)
        lines = str(error.value).split("\n  ")[1:]
        assert lines[0].startswith(f"{source}/03.png is no picture")
        assert lines[1].startswith(f"{source}/30.png cannot be decoded: ")
        assert len(lines) == 2
        if attempt == 0:
            assert len(decoded_names) == NUM
            decoded_names.clear()
    assert sorted(decoded_names) == ["03.png", "30.png"]  # only these are tried again
    assert not list(cache.glob("*.npy"))


def test_a_picture_that_failed_is_tried_again(source, cache, decoded_names):
    content, times = (source / "05.png").read_bytes(), (1, 1)
    (source / "05.png").write_bytes(bytes(len(content)))
    os.utime(source / "05.png", times)
    with pytest.raises(InputError, match=r"05\.png is no picture"):
        load(source, cache)
    (source / "05.png").write_bytes(content)
    os.utime(source / "05.png", times)
    decoded_names.clear()
    assert_sound(source, load(source, cache))
    assert decoded_names == ["05.png"]


def test_an_interrupted_run_remembers_what_failed(source, cache, monkeypatch):
    first = picture_folder.divide(source).names[1]
    (source / first).write_bytes(b"")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 18)
        load(source, cache)
    with pytest.raises(InputError, match=f"1 of {NUM} .*\n.*/{first} is no picture"):
        load(source, cache)


def test_retries_are_resumable_too(source, cache, monkeypatch, decoded_names):
    files = [source / name for name in picture_folder.divide(source).names[:5]]
    contents = [file.read_bytes() for file in files]

    def write_first(contents):  # none of which changes size or time
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
            os.utime(file, (1, 1))

    def load_some(num_decoded):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, num_decoded)
            load(source, cache)

    write_first([bytes(len(content)) for content in contents])
    load_some(18)  # 16 are recorded, 5 of them as failed
    write_first(contents)
    load_some(5)  # 4 of the 5 are recorded as mended
    decoded_names.clear()
    assert_sound(source, load(source, cache))
    assert len(decoded_names) == 1 + NUM - 16


def test_many_corrupt_pictures_are_counted(source, cache):
    for path in source.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)40 of 40 .*\n  and 20 more$") as error:
        load(source, cache)
    assert str(error.value).count("is no picture") == 20


def test_a_full_disk_is_explained_and_the_run_can_continue(
    source, cache, monkeypatch, decoded_names
):
    fsync, left = os.fsync, iter(range(3))

    def full(descriptor):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"0\.00 GB, .* into .*cache .*No space"):
            load(source, cache)
    decoded_names.clear()
    assert_sound(source, load(source, cache))
    assert len(decoded_names) == NUM - 12


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(text):
    """A header of Python that is no header, in a file of the right format."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BROKEN = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "text": lambda content: b"hello",
    "flipped": lambda content: content[:-5] + bytes([content[-5] ^ 4]) + content[-4:],
    "flipped header": lambda content: content[:20] + b"\0" + content[21:],
    "no header": lambda content: with_header(b"{'descr': ("),
    "a huge shape": lambda content: with_header(
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % 10**15
    ),
    "another": lambda content: saved(np.zeros((NUM, *SHAPE), np.float32)),
    "npz": lambda content: b"PK\x03\x04" + content,
}


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_cache_is_named(source, cache, kind, is_sealed):
    load(source, cache)
    (path,), (seal,) = cache.glob("*.npy"), cache.glob("*.sha256")
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    message = "a broken cache"
    if not is_sealed:  # a flipped pixel cannot be told, and is what is sealed
        seal.unlink()
        message = "holds float32" if kind == "another" else message
    if kind == "flipped" and not is_sealed:
        load(source, cache)
        return
    with pytest.raises(InputError, match=f"^{path}: {message}.* delete it"):
        load(source, cache)


def test_a_cache_without_a_seal_is_sealed_at_its_next_use(source, cache):
    load(source, cache)
    (path,), (seal,) = cache.glob("*.npy"), cache.glob("*.sha256")
    content = seal.read_text()
    assert content == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    for before in (None, ""):
        seal.unlink() if before is None else seal.write_text(before)
        assert_sound(source, load(source, cache))
        assert seal.read_text() == content


# --- where


def test_folders_prefer_the_data_folder_then_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/own")
    first, second = picture_cache.folders("", tmp_path)
    assert (first, str(second)) == (tmp_path / "ncp_jax_cache", "/own/ncp_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(picture_cache.folders("", tmp_path)[1]) == (
        "/home/someone/.cache/ncp_jax"
    )
    assert list(map(str, picture_cache.folders("/x", tmp_path))) == ["/x"]


def test_a_folder_that_cannot_be_written_is_passed_over(source, tmp_path):
    splits = picture_folder.divide(source)
    (tmp_path / "file").touch()
    blocked, free = tmp_path / "file" / "cache", tmp_path / "free"
    picture_cache.load("faces", splits, SHAPE, [blocked, free])
    assert suffixes(free) == COMPLETE
    with pytest.raises(InputError, match=f"tried {blocked}; set data.cache_dir to"):
        picture_cache.load("faces", splits, SHAPE, [blocked])


def test_a_complete_cache_is_used_wherever_it_is(source, tmp_path, decoded_names):
    splits = picture_folder.divide(source)
    load(source, tmp_path / "second")
    decoded_names.clear()
    places = [tmp_path / "first", tmp_path / "second"]
    assert_sound(source, picture_cache.load("faces", splits, SHAPE, places))
    assert not decoded_names
    assert not places[0].exists()


def test_a_shape_of_no_picture_is_refused(source, cache):
    with pytest.raises(InputError, match=r"faces: pictures are resized .* \(2,\)$"):
        load(source, cache, (2,))
