"""`picture_files.py`: what counts as a picture, and what decoding makes of it."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from ncp_jax.data import picture_files
from ncp_jax.errors import InputError

RGB = (8, 8, 3)


def picture(width=16, height=16, mode="RGB", seed=0):
    """A smooth picture, which JPEG keeps nearly."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(3, 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder, contents):
    """Writes files by relative name."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def decode(content, *args, **options):
    return picture_files.decode(lambda: content, *args, **options)


# --- find

CONTENTS = {
    "b.JPG": b"1",
    "a/z.png": b"22",
    "a/c/y.jpeg": b"333",
    "x.webp": b"4444",
    "w.bmp": b"55555",
    "readme.txt": b"6",
    "a/.z.png": b"7",
    ".hidden/v.png": b"8",
    "__MACOSX/a/._z.png": b"9",
}
PICTURES = ["a/c/y.jpeg", "a/z.png", "b.JPG", "w.bmp", "x.webp"]


def test_pictures_of_folders_and_archives_are_listed_alike(tmp_path):
    folder = write(tmp_path / "folder", CONTENTS)
    archive = write_zip(tmp_path / "archive.zip", CONTENTS)
    for path in (folder, archive):
        files = picture_files.find(path)
        assert list(files.stamps) == PICTURES
        with files.reader() as read:
            assert [read(name) for name in PICTURES] == [CONTENTS[n] for n in PICTURES]


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere", {"a.png": b"1"})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    assert list(picture_files.find(tmp_path / "folder").stamps) == ["link/a.png"]


def test_no_folder_is_listed_twice(tmp_path, capsys):
    """Links to the folder itself, around it, beside, to each other, and a chain."""
    folder = write(tmp_path / "x" / "folder", {"a/1.png": b"1", "b/c/2.png": b"2"})
    folder.joinpath("0").symlink_to("b")  # before b by name, after it by kind
    folder.joinpath("a", "self").symlink_to(folder)
    folder.joinpath("a", "up").symlink_to("..")
    folder.joinpath("b", "around").symlink_to(tmp_path)
    write(tmp_path / "other", {"3.png": b"3"})
    folder.joinpath("one").symlink_to(tmp_path / "other")
    folder.joinpath("two").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(folder)
    found = list(picture_files.find(folder).stamps)
    assert found == ["a/1.png", "b/c/2.png", "one/3.png"]
    shown = capsys.readouterr().out
    assert shown.startswith(f"{folder}: skipped ") and "and 2 more" in shown
    assert f"(the folder {folder} once more)" in shown
    assert f"{folder}/0 (the folder {folder}/b once more)" in shown


def test_a_link_that_leads_to_itself_is_no_folder(tmp_path):
    write(tmp_path, {"a.png": b"1"})
    (tmp_path / "b").symlink_to("b")
    assert list(picture_files.find(tmp_path).stamps) == ["a.png"]
    (tmp_path / "c.png").symlink_to("c.png")
    with pytest.raises(InputError, match=rf"^{tmp_path}/c\.png: cannot be read"):
        picture_files.find(tmp_path)


def test_what_is_no_regular_file_is_skipped(tmp_path, capsys):
    write(tmp_path, {"a.png": b"1", "folder.png/b.png": b"2"})
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    assert list(picture_files.find(tmp_path).stamps) == ["a.png", "folder.png/b.png"]
    assert f"skipped {tmp_path}/pipe.png (no regular file)" in capsys.readouterr().out


def test_stamps_tell_another_content(tmp_path):
    def stamps(content, time):
        write(tmp_path, {"a.png": content})
        os.utime(tmp_path / "a.png", (time, time))
        archive = write_zip(tmp_path / "b.zip", {"a.png": content})
        return [
            picture_files.find(path).stamps["a.png"] for path in (tmp_path, archive)
        ]

    first = stamps(b"123", 1)
    assert stamps(b"123", 1) == first
    for content, time in ((b"1234", 1), (b"124", 2)):
        assert all(x != y for x, y in zip(stamps(content, time), first, strict=True))


def test_nothing_to_list_is_an_error(tmp_path):
    write(tmp_path, {"readme.txt": b""})
    with pytest.raises(InputError, match=rf"^{tmp_path}: no picture \(.*found 1 \.txt"):
        picture_files.find(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>", None])
def test_a_broken_archive_is_named(tmp_path, content):
    path = tmp_path / "a.zip"
    if content is None:
        content = write_zip(path, CONTENTS).read_bytes()[:-30]
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: no zip archive, or truncated"):
        picture_files.find(path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (8, 9, "deflate64"),
        (8, 93, "zstandard"),
        (8, 77, "unknown"),
        (6, 1, "encrypted"),
        (4, 255, "no zip archive, or truncated"),  # the version that is needed
    ],
)
def test_an_archive_that_python_cannot_read_is_named(tmp_path, field, value, reason):
    path = write_zip(tmp_path / "a.zip", {"readme.txt": b"", "a.png": PNG})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")  # of the last member, in the directory
    content[entry + 2 + field] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*{reason}"):
        picture_files.find(path)


# --- decode


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_a_picture_of_the_right_shape_keeps_its_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = picture()
    decoded = decode(encoded(image, kind, **options), (16, 16, 3))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image))


def test_a_jpeg_is_decoded_as_pillow_does():
    content = encoded(picture(), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content, (16, 16, 3)), expected)
    assert np.abs(expected - np.asarray(picture(), int)).mean() < 8


def test_resizing_averages_over_the_area_behind_a_pixel():
    checkerboard = np.uint8(np.indices((64, 64)).sum(0) % 2 * 254)
    decoded = decode(encoded(Image.fromarray(checkerboard)), (8, 8, 1))
    np.testing.assert_allclose(decoded, 127, atol=1)  # nearest would give 0 or 254


def test_the_box_is_cut_out_first():
    image = picture(20, 30)
    box = (2, 5, 18, 21)
    expected = image.crop(box).resize((8, 8), Image.Resampling.BILINEAR)
    decoded = decode(encoded(image), RGB, box)
    np.testing.assert_array_equal(decoded, np.asarray(expected))
    assert (decoded != decode(encoded(image), RGB, (3, 5, 19, 21))).any()


@pytest.mark.parametrize("is_wide", [False, True])
def test_other_proportions_are_cut_to_the_centre(is_wide):
    levels = np.zeros((16, 32), np.uint8)
    levels[:, :8], levels[:, 24:] = 100, 200
    levels = levels if is_wide else levels.T
    decoded = decode(encoded(Image.fromarray(levels)), (16, 16, 1))
    np.testing.assert_array_equal(decoded, 0)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [*((mode, "PNG") for mode in ("1", "L", "P", "LA", "RGBA")), ("CMYK", "JPEG")],
)
@pytest.mark.parametrize(("channels", "target"), [(1, "L"), (3, "RGB")])
def test_every_8_bit_mode_becomes_grey_or_rgb(mode, kind, channels, target):
    content = encoded(picture(8, 8).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert(target))
    decoded = decode(content, (8, 8, channels))
    np.testing.assert_array_equal(decoded, expected.reshape(8, 8, channels))


def test_a_turned_photograph_is_set_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = picture(16, 16)
    decoded = decode(encoded(image, "PNG", exif=exif), (16, 16, 3))
    np.testing.assert_array_equal(decoded, np.rot90(np.asarray(image), -1))


def flipped(content, position):
    return (
        content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
    )


JPEG, PNG = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
REFUSED = {
    "empty": (b"", "is no picture, or its header is broken"),
    "text": (b"<html>404</html>", "is no picture"),
    "truncated jpeg": (JPEG[:-20], "cannot be decoded: .*truncated"),
    "truncated png": (PNG[:-40], "cannot be decoded: "),
    "flipped png": (flipped(PNG, len(PNG) // 2), "cannot be decoded: "),
    "16 bits": (
        encoded(Image.fromarray(np.full((4, 4), 999, np.uint16))),
        "is of mode I;16, expected one of",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_corrupt_picture_is_refused(kind):
    content, message = REFUSED[kind]
    with pytest.raises(InputError, match=f"^{message}"):
        decode(content, RGB)


def test_another_size_than_required_is_refused():
    content = encoded(picture(16, 9))
    assert decode(content, RGB, size=(16, 9)).shape == RGB
    with pytest.raises(InputError, match=r"^is 16x9 pixels, expected 178x218$"):
        decode(content, RGB, size=(178, 218))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^cannot be decoded: .*No such file"):
        picture_files.decode((tmp_path / "a.png").read_bytes, RGB)


def test_a_corrupt_member_of_an_archive_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": PNG})
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(PNG) + len(PNG) // 2))
    with (
        picture_files.find(path).reader() as read,
        pytest.raises(InputError, match="cannot be decoded: Bad CRC-32"),
    ):
        picture_files.decode(lambda: read("a.png"), RGB)


@pytest.mark.parametrize("shape", [(2,), (8, 8), (8, 8, 2), (8, 0, 3), (8, 8, 3, 1)])
def test_a_shape_of_no_picture_is_refused(shape):
    with pytest.raises(InputError, match=r"^celeba: pictures are resized to"):
        picture_files.check_shape("celeba", shape)


# --- other formats


@pytest.mark.parametrize(
    ("kind", "suffix", "mode"),
    [
        ("TIFF", ".tif", "RGB"),
        ("TIFF", ".TIFF", "L"),
        ("GIF", ".gif", "P"),
        ("WEBP", ".webp", "RGB"),
    ],
)
def test_pictures_of_every_listed_format_are_decoded(tmp_path, kind, suffix, mode):
    image, options = picture(8, 8, mode), {"lossless": True} if kind == "WEBP" else {}
    write(tmp_path, {f"a{suffix}": encoded(image, kind, **options)})
    (name,) = picture_files.find(tmp_path).stamps
    found = decode((tmp_path / name).read_bytes(), RGB)
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_a_file_of_several_pictures_is_none(kind):
    frames = [picture(8, 8, seed=seed) for seed in range(3)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="holds 3 pictures, expected one: split it"):
        decode(content, RGB)


@pytest.mark.parametrize("is_zip", [False, True])
def test_pictures_that_are_not_read_are_named(tmp_path, capsys, is_zip):
    contents = dict.fromkeys(["a.png", "b.HEIC", "c/d.heic", "e.jp2", "f.txt"], b"1")
    path = tmp_path / "x.zip"
    if is_zip:
        write_zip(path, contents)
    else:
        path = write(tmp_path / "x", contents)
    assert list(picture_files.find(path).stamps) == ["a.png"]
    assert f"{path}: skipped 1 .jp2, 2 .heic, which are not" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.npy", r"found 1 \.npy; config\.data\.name='arrays' reads"),
        ("a.parquet", r"; config\.data\.name='parquet' reads those"),
        ("a.zip", r"found 1 \.zip; give a \.zip itself as config\.data\.dir"),
        ("a", "found 1 without suffix$"),
    ],
)
def test_a_folder_without_pictures_says_what_it_holds(tmp_path, name, hint):
    write(tmp_path, {name: b""})
    with pytest.raises(InputError, match=hint):
        picture_files.find(tmp_path)
