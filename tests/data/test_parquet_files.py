"""`parquet_files.py`: the layouts in which hubs serve pictures."""

import sys

import numpy as np
import pytest

from ncp_jax.data import datasets, parquet_files
from ncp_jax.errors import InputError
from tests.data.test_picture_files import encoded, picture

pyarrow = pytest.importorskip("pyarrow")
SHAPE = (8, 8, 3)


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def pngs(first, num):
    return [encoded(picture(8, 8, seed=seed)) for seed in range(first, first + num)]


def write(path, contents, column="image", is_struct=True, rows_per_group=3):
    """A file of encoded pictures and labels."""
    from pyarrow import parquet

    if is_struct:
        contents = [{"bytes": content, "path": "a.png"} for content in contents]
    table = pyarrow.table({"label": list(range(len(contents))), column: contents})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows_per_group)


def decoded(first, num):
    return np.stack(
        [np.asarray(picture(8, 8, seed=s)) for s in range(first, first + num)]
    )


def load(path):
    return datasets.load("parquet", SHAPE, str(path))


@pytest.mark.parametrize(
    "names",
    [
        ("data/{}-00000-of-00001.parquet", ("train", "validation", "test")),
        ("default/{}/0000.parquet", ("train", "val", "test")),
    ],
)
def test_parts_follow_the_names_of_hubs(tmp_path, names, capsys):
    form, splits = names
    for split, (first, num) in zip(splits, ((0, 7), (7, 3), (10, 4)), strict=True):
        write(tmp_path / form.format(split), pngs(first, num))
    train, valid, test = load(tmp_path)
    np.testing.assert_array_equal(train, decoded(0, 7))
    np.testing.assert_array_equal(valid, decoded(7, 3))
    np.testing.assert_array_equal(test, decoded(10, 4))
    assert f"{tmp_path}: 7 train, 3 valid, 4 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "is_struct"), [("img", True), ("image", False), ("anything", False)]
)
def test_pictures_are_found_in_their_column(tmp_path, column, is_struct):
    write(tmp_path / "a.parquet", pngs(0, 20), column, is_struct)
    found = np.concatenate(load(tmp_path / "a.parquet"))
    assert sorted(p.tobytes() for p in found) == sorted(
        p.tobytes() for p in decoded(0, 20)
    )


def test_several_files_of_one_part_follow_one_another(tmp_path):
    for i in range(3):
        write(tmp_path / f"train-0000{i}-of-00003.parquet", pngs(4 * i, 4))
    write(tmp_path / "test-00000-of-00001.parquet", pngs(12, 2))
    train, valid, test = load(tmp_path)
    assert (len(train), len(valid)) == (10, 2)  # a sixth validates
    np.testing.assert_array_equal(test, decoded(12, 2))


def test_row_groups_are_read_once_in_order(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", pngs(0, 40), rows_per_group=2)
    opened, inner = [], parquet_files._opened
    monkeypatch.setattr(
        parquet_files, "_opened", lambda path: opened.append(path) or inner(path)
    )
    splits = parquet_files.divide(tmp_path)
    assert splits.train == sorted(splits.train)
    before = len(opened)
    with splits.files.reader() as read:
        for name in splits.train:
            read(name)
    assert len(opened) - before <= 20


def test_a_row_without_bytes_is_named(tmp_path):
    write(tmp_path / "train.parquet", [*pngs(0, 5), None, *pngs(6, 9)])
    with pytest.raises(
        InputError, match=r"1 of \d+ .*\n.*train\.parquet/0+5 .*no bytes"
    ):
        load(tmp_path)


def test_files_without_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no \.parquet file in it"):
        load(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 <html>")
    with pytest.raises(InputError, match=r"a\.parquet: no parquet file, or damaged"):
        load(tmp_path)
    from pyarrow import parquet

    table = pyarrow.table({"label": [1, 2], "text": ["a", "b"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no column of .*label \(int64\), text \(str"):
        load(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install '\.\[parquet\]'"):
        load(tmp_path)
