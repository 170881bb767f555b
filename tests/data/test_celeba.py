"""`celeba.py` on a few pictures in the true layout."""

import io

import numpy as np
import pytest
from PIL import Image

from ncp_jax.data import celeba, datasets
from ncp_jax.errors import InputError
from tests.data.test_picture_files import encoded, picture, write, write_zip

SHAPE = (64, 64, 3)
SPLITS = {"000001": 0, "000002": 1, "000003": 0, "000004": 2, "000005": 0}
PARTITION = "".join(f"{name}.jpg {split}\n" for name, split in SPLITS.items()).encode()
ORDER = ["000001", "000003", "000005", "000002", "000004"]  # train, valid, test


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def faces():
    return {
        f"{name}.jpg": encoded(picture(178, 218, seed=i), "JPEG")
        for i, name in enumerate([*SPLITS, "000006"])  # the last is not listed
    }


def lay_out(place, is_zip, contents=None, partition=PARTITION):
    contents = faces() if contents is None else contents
    inside = {f"img_align_celeba/{name}": value for name, value in contents.items()}
    if is_zip:
        write_zip(place / "img_align_celeba.zip", {"img_align_celeba/": b"", **inside})
    else:
        write(place, inside)
    if partition is not None:
        (place / "list_eval_partition.txt").write_bytes(partition)


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("place", ["celeba", "."])
def test_the_official_split_is_followed(tmp_path, is_zip, place):
    lay_out(tmp_path / place, is_zip)
    splits = celeba.find(tmp_path)
    prefix = "img_align_celeba/" if is_zip else ""
    assert splits.names == [f"{prefix}{name}.jpg" for name in ORDER]
    assert [len(split) for split in splits[1:4]] == [3, 1, 1]


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize(
    ("crop", "box", "side"),
    [("nvae", (15, 40, 163, 188), 148), ("rae", (19, 39, 159, 179), 140)],
)
def test_both_crops_are_resized_to_the_shape(tmp_path, is_zip, crop, box, side):
    lay_out(tmp_path / "celeba", is_zip)
    dataset = datasets.load("celeba", SHAPE, str(tmp_path), crop=crop)
    assert [split.shape for split in dataset] == [(n, *SHAPE) for n in (3, 1, 1)]
    for name, decoded in zip(ORDER, np.concatenate(dataset), strict=True):
        face = Image.open(io.BytesIO(faces()[f"{name}.jpg"])).crop(box)
        assert face.size == (side, side)
        small = face.resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(decoded, np.asarray(small))


KAGGLES = b"image_id,partition\r\n" + PARTITION.replace(b" ", b",")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_kaggles_layout_is_the_same(tmp_path, bom):
    """Commas, a head, and the folder within a folder of its own name."""
    lay_out(tmp_path / "img_align_celeba", False, partition=None)
    (tmp_path / celeba.KAGGLES).write_bytes(bom + KAGGLES)
    splits = celeba.find(tmp_path)
    assert splits.names == [f"img_align_celeba/{name}.jpg" for name in ORDER]
    assert [len(split) for split in splits[1:4]] == [3, 1, 1]
    (tmp_path / celeba.KAGGLES).write_bytes(KAGGLES + b"000001.jpg,1\n")
    with pytest.raises(
        InputError, match=r"\.csv: lists 000001\.jpg twice, in line 2 a"
    ):
        celeba.find(tmp_path)
    (tmp_path / celeba.KAGGLES).write_bytes(KAGGLES + b"image_id,partition\n")
    with pytest.raises(InputError, match=r"\.csv, line 7: found 'image_id,partition'"):
        celeba.find(tmp_path)


def test_raes_crop_is_the_centre():
    left, upper, right, lower = celeba.CROPS["rae"]
    assert (left + right, upper + lower) == celeba.SIZE


def test_an_unknown_crop_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"crop must be one of \('nvae', 'rae'\)"):
        datasets.load("celeba", SHAPE, str(tmp_path), crop="108")


def test_missing_files_list_every_place(tmp_path):
    with pytest.raises(InputError) as error:
        datasets.load("celeba", SHAPE, str(tmp_path))
    for place in (tmp_path / "celeba", tmp_path):
        assert f"\n  {place}/img_align_celeba{{,.zip}}\n" in str(error.value)
    assert "list_eval_partition.txt" in str(error.value)


@pytest.mark.parametrize("split", [0, 2])
def test_a_picture_that_is_listed_twice_is_refused_with_both_lines(tmp_path, split):
    lay_out(tmp_path, False, partition=PARTITION + b"\n000002.jpg %d\n" % split)
    with pytest.raises(
        InputError, match=r"lists 000002\.jpg twice, in line 2 and in line 7,"
    ):
        celeba.find(tmp_path)


def test_a_missing_split_file_is_named(tmp_path):
    lay_out(tmp_path, False, partition=None)
    with pytest.raises(InputError, match=f"^{tmp_path}/list_eval_partition.txt: the"):
        celeba.find(tmp_path)


BROKEN = {
    "no split": (b"000001.jpg 0\n000002.jpg\n", r", line 2: found '000002.jpg', exp"),
    "another split": (b"000001.jpg 3\n", ", line 1: found '000001.jpg 3', expected"),
    "a page": (b"<!DOCTYPE html>\n", ", line 1: found '<!DOCTYPE html>', expected"),
    "three words": (b"a.jpg 0 1", ", line 1: found 'a.jpg 0 1', expected"),
    "no bytes": (b"", ": lists 0, 0, 0 pictures"),
    "no test": (b"000001.jpg 0\n\n000002.jpg 1\n", ": lists 1, 1, 0 pictures"),
    "binary": (b"\xff\xfe 7\n", ", line 1: found"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_split_file_is_named(tmp_path, kind):
    partition, message = BROKEN[kind]
    lay_out(tmp_path, False, partition=partition)
    with pytest.raises(InputError, match=f"^{tmp_path}/{celeba.PARTITION}{message}"):
        celeba.find(tmp_path)


@pytest.mark.parametrize("is_zip", [False, True])
def test_missing_pictures_are_named(tmp_path, is_zip):
    contents = faces()
    del contents["000002.jpg"], contents["000004.jpg"]
    lay_out(tmp_path, is_zip, contents)
    message = r"img_align_celeba.*: 2 pictures .* missing: 000002.jpg, 000004.jpg$"
    with pytest.raises(InputError, match=message):
        celeba.find(tmp_path)


def test_pictures_of_another_size_are_named(tmp_path):
    contents = faces()
    contents["000003.jpg"] = encoded(picture(178, 178), "JPEG")
    lay_out(tmp_path, False, contents)
    message = "align_celeba/000003.jpg is 178x178 pixels, expected 178x218"
    with pytest.raises(InputError, match=f"^celeba: 1 of 5 .*\n.*{message}$"):
        datasets.load("celeba", SHAPE, str(tmp_path))
