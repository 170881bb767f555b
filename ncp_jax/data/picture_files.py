"""Picture files in a folder or a zip archive: listed, read, decoded to one shape."""

import contextlib
import glob
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps

from ncp_jax.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# 16-bit and float pictures are not among them: Pillow would clip their levels.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_CHANNELS = {1: "L", 3: "RGB"}


class PictureFiles(NamedTuple):
    """The picture files below a folder or in a zip archive.

    Attributes:
      path: of the folder or the archive.
      stamps: by name relative to `path`, sorted; a stamp changes with the content
        (size and time of a file, size and checksum of an archive's member).
    """

    path: Path
    stamps: dict[str, str]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """Lends a function that reads the bytes of a name, from any thread."""
        if self.path.is_dir():
            yield lambda name: (self.path / name).read_bytes()
        else:
            with zipfile.ZipFile(self.path) as archive:
                yield archive.read  # verifies the checksum


class PictureSplits(NamedTuple):
    """Which pictures make up a data set, and how they are cut.

    Attributes:
      files: where they are.
      train: names in `files`.
      valid: names in `files`.
      test: names in `files`.
      box: (left, upper, right, lower) of the part that is used; None means all.
      size: (width, height) that every picture must have; None means any.
    """

    files: PictureFiles
    train: list[str]
    valid: list[str]
    test: list[str]
    box: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None

    @property
    def names(self) -> list[str]:
        """All pictures: train, then valid, then test."""
        return [*self.train, *self.valid, *self.test]


def find(path: Path) -> PictureFiles:
    """Lists the pictures anywhere below a folder, or anywhere in a zip archive.

    A picture is what ends in one of `SUFFIXES`, in small or capital letters; hidden
    files and folders are left out, links are followed.

    Args:
      path: the folder or the archive.

    Raises:
      InputError: the archive is corrupt, or there is no picture.
    """
    stamps = _in_folder(path) if path.is_dir() else _in_zip(path)
    if not stamps:
        raise InputError(f"{path}: no picture ({', '.join(SUFFIXES)}) in it")
    return PictureFiles(path, dict(sorted(stamps.items())))


def is_picture(name: str) -> bool:
    """Tells a picture by its name, relative to the folder or archive it is in."""
    parts = name.split("/")
    is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not is_hidden and name.lower().endswith(SUFFIXES)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raises `InputError` unless `shape` is one that pictures can be resized to."""
    if len(shape) != 3 or shape[-1] not in _CHANNELS or min(shape) < 1:
        raise InputError(
            f"{name}: pictures are resized to (height, width, 3) or, in grey, "
            f"(height, width, 1), but the config expects {shape}"
        )


def decode(
    read: Callable[[], bytes],
    shape: tuple[int, ...],
    box: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes one picture, turned as its EXIF tag says, and resizes it to `shape`.

    `box` is cut out, then the largest centred part of the proportions of `shape`. That
    is resized with Pillow's bilinear filter, which averages over the whole area behind
    a pixel (antialiased). Transparency is dropped.

    Args:
      read: returns the file's bytes.
      shape: (H, W, C) with C = 3 (RGB) or 1 (grey).
      box: (left, upper, right, lower); None means the whole picture.
      size: (width, height) that the picture must have; None means any.

    Returns:
      uint8 [H, W, C].

    Raises:
      InputError: unreadable, corrupt, of more than 8 bits, or not of `size`.
    """
    height, width, channels = shape
    try:
        content = read()
        with Image.open(io.BytesIO(content)) as file:
            file.verify()  # PNG's checksums, which decoding does not look at
        with Image.open(io.BytesIO(content)) as file:
            picture = ImageOps.exif_transpose(file)
    except PIL.UnidentifiedImageError as error:
        raise InputError("is no picture, or its header is broken") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders and zipfile raise of many kinds
        raise InputError(f"cannot be decoded: {error}") from error
    if size and picture.size != size:
        raise InputError(f"is {_by(picture.size)} pixels, expected {_by(size)}")
    if picture.mode not in _MODES:
        raise InputError(f"is of mode {picture.mode}, expected one of {_MODES}")
    if box:
        picture = picture.crop(box)
    fitted = ImageOps.fit(
        picture.convert(_CHANNELS[channels]),
        (width, height),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(fitted).reshape(shape)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _in_folder(path: Path) -> dict[str, str]:
    stamps = {}
    for name in glob.iglob("**/*", root_dir=path, recursive=True):
        relative = name.replace(os.sep, "/")
        if is_picture(relative):
            try:
                status = (path / name).stat()
            except OSError as error:
                raise InputError(f"{path / name}: cannot be read ({error})") from error
            stamps[relative] = f"{status.st_size} {status.st_mtime_ns}"
    return stamps


def _in_zip(path: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: no zip archive, or truncated or corrupt ({error}); fetch it again"
        ) from error
    return {
        member.filename: f"{member.file_size} {member.CRC:08x}"
        for member in members
        if is_picture(member.filename)
    }
