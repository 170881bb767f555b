"""`array_files.py`: arrays of an npz are whole, or it is named."""

import io
import zipfile

import numpy as np
import pytest

from ncp_jax.errors import InputError
from ncp_jax.pages.parts import figure_arrays
from ncp_jax.records import array_files
from ncp_jax.records.array_files import Kind

ARRAYS = {
    "a": np.arange(6, dtype=np.int16).reshape(2, 3),
    "b/0": np.array("text"),
    "c": np.zeros((0, 4), np.float32),
    "d": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_it_reads_what_numpy_writes(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    found = array_files.read(tmp_path / "x.npz", "")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a zip file"),
        (npy(np.zeros(3)), r"one array, \.npy"),
        (zipped(b"xyz"), "magic string"),
        (zipped(npy(np.zeros(3))[:-1]), "EOF"),
        (zipped(npy(np.zeros(3)) + b"x"), "1 bytes follow"),
        (zipped(npy(np.zeros(3)).replace(b"(3,)", b"(2,)")), "8 bytes follow"),
        (zipped(npy(np.array([{}], object))), "allow_pickle"),
        (zipped(npy(np.zeros(3)).replace(b"(3,), }", b"(9**9, ")), "EOF"),
    ],
)
def test_what_is_no_npz_is_named_with_the_remedy(tmp_path, content, reason):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.npz is damaged \(.*{reason}.*: mend it"):
        array_files.read(tmp_path / "x.npz", "mend it")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"a": Kind((2, 3)), "d": Kind((3, 4))}, ""),
        ({"a": Kind(("K", "*")), "c": Kind(("*", 4)), "z": Kind((7,))}, ""),
        ({"a": Kind(("K", "L")), "d": Kind(("L", "*"))}, ""),
        ({"a": Kind((2, 3), "f")}, r"a is int16 \[2, 3\], not floats of shape \[2, 3"),
        ({"a": Kind((2,))}, r"not floats or integers of shape \[2\]"),
        ({"a": Kind((2, 4))}, "where 3 stands, it must be 4"),
        ({"a": Kind(("K", "*")), "d": Kind(("K", "*"))}, "3 stands, as of a, it must"),
        ({"b/0": Kind(())}, "b/0 is <U4"),
    ],
)
def test_arrays_are_compared_with_what_they_must_be(tmp_path, kinds, message):
    if not message:
        array_files.check(tmp_path, "", ARRAYS, kinds)
        return
    with pytest.raises(InputError, match=message):
        array_files.check(tmp_path, "", ARRAYS, kinds)


FIGURES = {
    "log_r_q": np.zeros((2, 9)),
    "log_r_p": np.zeros((2, 7)),
    "groups": np.arange(2),
    "plane_grid_x": np.zeros(4),
    "plane_grid_y": np.zeros(3),
    "plane_log_p": np.zeros((3, 4)),
    "points_data": np.zeros((5, 2)),
    "audit_curve": np.zeros((3, 2)),
    "audit_groups": np.arange(3),
    "audit_sir": np.zeros((1, 2)),
    "note_mmd": np.array("a note"),
    "ours_not": np.array([None]),
}


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("log_r_q", np.zeros(9)),
        ("log_r_p", np.zeros((3, 7))),
        ("log_r_q", np.full((2, 9), "x")),
        ("groups", np.zeros(2)),
        ("groups", np.arange(3)),
        ("plane_grid_x", np.zeros(5)),
        ("plane_grid_x", np.full(4, np.nan)),
        ("points_data", np.zeros((5, 3))),
        ("audit_groups", np.arange(2)),
        ("audit_sir", np.zeros(2)),
        ("note_mmd", np.array(3)),
        ("log_z_curve", np.float64(1)),
    ],
)
def test_arrays_of_other_shapes_are_no_figures(tmp_path, name, array):
    figure_arrays.check(tmp_path, "", FIGURES)
    with pytest.raises(InputError, match=rf"is damaged \(({name}|audit|log_r|plane)"):
        figure_arrays.check(tmp_path, "", FIGURES | {name: array})
