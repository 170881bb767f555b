"""Pictures in parquet files, as hubs of data sets serve them; read by pyarrow."""

import bisect
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ncp_jax.data.numpy_pictures import split_in
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.data.picture_folder import SPLIT_WORDS
from ncp_jax.data.splits import complete
from ncp_jax.errors import InputError, explained

COLUMNS = ("image", "img", "picture", "images")  # looked for in this order
_KEPT = 4  # row groups in memory
_INSTALL = "in a clone of ncp_jax, pip install '.[parquet]'"


class Table(NamedTuple):
    """One parquet file.

    Attributes:
      path: of the file.
      column: of the pictures.
      first_rows: of its row groups, and at the end the number of rows.
    """

    path: Path
    column: str
    first_rows: tuple[int, ...]


class ParquetFiles(NamedTuple):
    """The pictures of parquet files, in the place of `PictureFiles`.

    Attributes:
      path: of the folder or the file.
      stamps: by name, "FILE/ROW"; a stamp changes with its file's size and time.
      tables: by name of the file.
    """

    path: Path
    stamps: dict[str, str]
    tables: dict[str, Table]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """Lends a function that reads the bytes of a name, from any thread."""
        yield _Reader(self.tables).read


def divide(path: Path) -> PictureSplits:
    """Lists the pictures of parquet files and divides them.

    The part is what a file's name, or its folder's, speaks of
    ("train-00000-of-00001.parquet", "default/validation/0000.parquet"); what is lacking
    is made, see `splits.complete`.

    Args:
      path: a file, or a folder with files anywhere below it.

    Raises:
      InputError: pyarrow is not installed, a file is damaged or holds no column of
        pictures, or there are too few.
    """
    tables = {name: _table(file) for name, file in _files(path).items()}
    parts: dict[str, list[str]] = {split: [] for split in ("", *SPLIT_WORDS)}
    stamps: dict[str, str] = {}
    for name, table in tables.items():
        status = table.path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        rows = [f"{name}/{row:08}" for row in range(table.first_rows[-1])]
        parts[split_in(name)] += rows
        stamps |= dict.fromkeys(rows, stamp)
    if any(parts[split] for split in SPLIT_WORDS):
        parts[""] = []
    counts = {split or "to be divided": len(rows) for split, rows in parts.items()}
    print(f"{path}: " + ", ".join(f"{n:,} {s}" for s, n in counts.items() if n))
    # In the order of the files: a row group is read once.
    train, valid, test = map(sorted, complete(parts, str(path)))
    return PictureSplits(ParquetFiles(path, stamps, tables), train, valid, test)


class _Reader:
    """Reads pictures one by one, out of the row groups that were read last."""

    def __init__(self, tables: dict[str, Table]):
        self._tables = tables
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()

    def read(self, name: str) -> bytes:
        """Returns the bytes of a picture by its name.

        Raises:
          ValueError: the row holds none.
        """
        file, _, row = name.rpartition("/")
        firsts = self._tables[file].first_rows
        group = bisect.bisect_right(firsts, int(row)) - 1
        with self._lock:
            pictures = self._group(file, group)
        picture = pictures[int(row) - firsts[group]]
        where: str | None = None
        if isinstance(picture, dict):
            where, picture = picture.get("path"), picture.get("bytes")
        if not picture:
            kept = f", only the path {where!r} of a file elsewhere" if where else ""
            raise ValueError(f"the row has no bytes{kept}")
        return picture

    def _group(self, file: str, group: int) -> list[Any]:
        if (file, group) not in self._groups:
            table = self._tables[file]
            with _opened(table.path) as parquet:
                column = parquet.read_row_group(group, columns=[table.column])
            self._groups[file, group] = column.column(0).to_pylist()
            if len(self._groups) > _KEPT:
                self._groups.popitem(last=False)
        return self._groups[file, group]


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {path.name: path}
    found = {
        str(file.relative_to(path)): file
        for file in sorted(path.rglob("*.parquet"))
        if file.is_file() and not file.name.startswith(".")
    }
    if not found:
        raise InputError(f"{path}: no .parquet file in it")
    return found


def _table(path: Path) -> Table:
    with _opened(path) as parquet:
        column = _column(path, parquet.schema_arrow)
        counts = [
            parquet.metadata.row_group(i).num_rows
            for i in range(parquet.metadata.num_row_groups)
        ]
    firsts = [0]
    for count in counts:
        firsts.append(firsts[-1] + count)
    return Table(path, column, tuple(firsts))


def _column(path: Path, schema: Any) -> str:
    """The column of encoded pictures: bytes, or a struct with a field of bytes."""
    fitting = [field.name for field in schema if _is_of_bytes(field.type)]
    named = [name for name in COLUMNS if name in fitting]
    if named or len(fitting) == 1:
        return (named or fitting)[0]
    seen = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise InputError(
        f"{path}: no column of pictures: one called image, of encoded bytes or of "
        f"struct{{bytes, path}}, is needed; found {seen}"
    )


def _is_of_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _is_of_bytes(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path} is read by pyarrow ({error}): {_INSTALL}") from error
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as opened:
            yield opened
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({explained(error)})") from error
    except Exception as error:  # of damaged files pyarrow raises many kinds
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: no parquet file, or damaged ({reason}); fetch it again"
        ) from error
