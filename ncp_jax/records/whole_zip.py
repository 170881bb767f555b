"""Whether a zip archive's directory is whole, which Python's reader does not ask."""

import struct
import zipfile

_END = b"PK\5\6"  # begins the record that ends an archive: counts, sizes, a comment
_END_BYTES = 22
_MANY = 2**16 - 1  # the counts of larger archives stand elsewhere


def check(archive: zipfile.ZipFile) -> None:
    """Compares the number of members with that which the archive says it has.

    A damaged length in the directory hides the members that follow it; their checksums
    are then never looked at.

    Raises:
      BadZipFile: there are fewer members, or more.
    """
    file = archive.fp
    assert file is not None  # it is open
    position = file.tell()
    size = file.seek(0, 2)
    file.seek(max(size - _END_BYTES - _MANY, 0))
    tail = file.read()
    file.seek(position)
    start = tail.rfind(_END)
    if start < 0 or len(tail) < start + _END_BYTES:
        raise zipfile.BadZipFile("the record of its end is damaged")
    (expected,) = struct.unpack("<H", tail[start + 10 : start + 12])
    found = len(archive.infolist())
    if expected != _MANY and found % (_MANY + 1) != expected:
        raise zipfile.BadZipFile(f"{found} members are listed where {expected} are due")
