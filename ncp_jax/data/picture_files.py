"""Picture files in a folder or a zip archive: listed, read, decoded to one shape."""

import contextlib
import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import PIL
from PIL import Image, ImageOps

from ncp_jax.errors import InputError, explained
from ncp_jax.records import whole_zip

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CACHE_FOLDER = "ncp_jax_cache"  # in a data set's folder: what was made of it
# Pictures that are not read: they are named, lest a part of a data set be missed.
NOT_READ = [
    ".avif",
    ".cr2",
    ".dng",
    ".exr",
    ".heic",
    ".heif",
    ".jfif",
    ".jp2",
    ".jxl",
    ".nef",
    ".npy",
    ".npz",
    ".pbm",
    ".pgm",
    ".ppm",
    ".psd",
    ".svg",
    ".tga",
]
# 16-bit and float pictures are not among them: Pillow would clip their levels.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_CHANNELS = {1: "L", 3: "RGB"}
_NUM_NAMED = 5  # of what was skipped
_COMPRESSIONS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
_OTHER_COMPRESSIONS = {  # that archives may have and Python's module lacks
    1: "shrink",
    6: "implode",
    9: "deflate64",
    93: "zstandard",
    95: "xz",
    96: "jpeg",
    98: "ppmd",
    99: "AES",
}


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


class Listed(Protocol):
    """What `PictureFiles` offers, whatever the pictures lie in."""

    @property
    def path(self) -> Path:
        """Of what they lie in."""
        ...

    @property
    def stamps(self) -> dict[str, str]:
        """By name, what changes with the content."""
        ...

    def reader(self) -> AbstractContextManager[Callable[[str], bytes]]:
        """Lends a function that reads the bytes of a name."""
        ...


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

    files: Listed
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
    files and folders are left out. Links are followed, but no folder is listed twice: a
    link to one that is listed already, or that is around it, is skipped, as is what is
    no regular file. What was skipped is printed, pictures of formats that are not read
    (`NOT_READ`), too.

    Args:
      path: the folder or the archive.

    Raises:
      InputError: the archive is corrupt, a folder cannot be read, or there is no
        picture.
    """
    seen = Counter[str]()
    stamps = _in_folder(path, seen) if path.is_dir() else _in_zip(path, seen)
    if not stamps:
        held = ", ".join(
            f"{n:,} {s or 'without suffix'}" for s, n in seen.most_common(5)
        )
        raise InputError(
            f"{path}: no picture ({', '.join(SUFFIXES)}) in it; found "
            f"{held or 'nothing'}{_hint(seen)}"
        )
    if named := [f"{n:,} {suffix}" for suffix, n in seen.items() if suffix in NOT_READ]:
        print(
            f"{path}: skipped {', '.join(sorted(named))}, which are not read; convert "
            "them to .png"
        )
    return PictureFiles(path, dict(sorted(stamps.items())))


def _hint(seen: Iterable[str]) -> str:
    """What else a folder without a picture may be."""
    kinds = {".npy": "arrays", ".npz": "arrays", ".parquet": "parquet"}
    if names := sorted({kinds[suffix] for suffix in seen if suffix in kinds}):
        return f"; config.data.name='{names[0]}' reads those"
    is_packed = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"} & set(seen)
    return "; give a .zip itself as config.data.dir, unpack others" * bool(is_packed)


def is_picture(name: str) -> bool:
    """Tells a picture by its name, relative to the folder or archive it is in."""
    is_kept = not any(map(is_hidden, name.split("/")))
    return is_kept and name.lower().endswith(SUFFIXES)


def is_hidden(part: str) -> bool:
    """Whether a name in a path is of no data of the user's."""
    return part.startswith(".") or part in ("__MACOSX", CACHE_FOLDER)


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
            if (num_frames := getattr(file, "n_frames", 1)) > 1:
                raise InputError(f"holds {num_frames} pictures, expected one: split it")
            picture = ImageOps.exif_transpose(file)
    except InputError:
        raise
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


def _in_folder(path: Path, seen_suffixes: Counter[str]) -> dict[str, str]:
    stamps, skipped = {}, list[str]()
    try:
        seen = {_identity(path.stat())}
        folders, links = [("", path)], list[tuple[str, Path]]()
        while folders or links:  # real folders first: no link takes the place of one
            prefix, folder = folders.pop() if folders else links.pop(0)
            if prefix and _identity(folder.stat()) in seen:
                skipped.append(f"{folder} (the folder {folder.resolve()} once more)")
                continue
            seen.add(_identity(folder.stat()))
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if not is_hidden(entry.name) and _is_folder(entry):
                    found = links if entry.is_symlink() else folders
                    found.append((f"{prefix}{entry.name}/", Path(entry.path)))
                elif is_picture(entry.name):
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        stamp = f"{status.st_size} {status.st_mtime_ns}"
                        stamps[prefix + entry.name] = stamp
                    else:
                        skipped.append(f"{entry.path} (no regular file)")
                elif not is_hidden(entry.name):
                    seen_suffixes[Path(entry.name).suffix.lower()] += 1
    except OSError as error:
        where = error.filename or path
        raise InputError(f"{where}: cannot be read ({explained(error)})") from error
    if skipped:
        more = f" and {len(skipped) - _NUM_NAMED} more" * (len(skipped) > _NUM_NAMED)
        print(f"{path}: skipped {', '.join(skipped[:_NUM_NAMED])}{more}")
    return stamps


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link that leads to itself
        return entry.is_dir()
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _in_zip(path: Path, seen_suffixes: Counter[str]) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            whole_zip.check(archive)
            members = archive.infolist()
            for member in members:
                if not is_picture(member.filename):
                    _check_name(archive, member)
    except Exception as error:  # of broken directories zipfile raises many kinds
        if isinstance(error, PermissionError):
            raise InputError(f"{path}: cannot be read ({explained(error)})") from error
        raise InputError(
            f"{path}: no zip archive, or truncated or corrupt ({error}); fetch it again"
        ) from error
    pictures = [member for member in members if is_picture(member.filename)]
    for member in members:
        is_seen = not any(map(is_hidden, member.filename.split("/")))
        if is_seen and not (member.is_dir() or is_picture(member.filename)):
            seen_suffixes[Path(member.filename).suffix.lower()] += 1
    for member in pictures:
        if reason := _unreadable(member):
            raise InputError(
                f"{path}: {member.filename} is {reason}, which cannot be read here; "
                "unpack the archive, or pack the pictures again with plain deflate"
            )
    return {
        member.filename: f"{member.file_size} {member.CRC:08x}" for member in pictures
    }


def _check_name(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Compares both places of a name, so that a damaged one hides no picture."""
    with contextlib.suppress(NotImplementedError, RuntimeError):  # is left out anyway
        archive.open(member).close()


def _unreadable(member: zipfile.ZipInfo) -> str:
    """Why Python cannot read a member of an archive; "" if it can."""
    if member.flag_bits & 1:
        return "encrypted"
    if member.compress_type not in _COMPRESSIONS:
        method = _OTHER_COMPRESSIONS.get(member.compress_type, "unknown")
        return f"compressed by method {member.compress_type} ({method})"
    return ""
