"""`picture_folder.py`: how a folder of pictures is found and divided."""

import numpy as np
import pytest

from ncp_jax.data import datasets, picture_folder
from ncp_jax.errors import InputError
from tests.data.test_picture_files import encoded, picture, write, write_zip

SHAPE = (8, 8, 3)
PNG = encoded(picture(8, 8))


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("NCP_JAX_DATA", raising=False)


def names(*folders_and_counts):
    """E.g. ("train", 2) gives train/00.png and train/01.png."""
    return [
        f"{folder}/{i:03}.png".removeprefix("/")
        for folder, count in folders_and_counts
        for i in range(count)
    ]


def divided(tmp_path, *folders_and_counts):
    write(tmp_path, dict.fromkeys(names(*folders_and_counts), b""))
    return picture_folder.divide(tmp_path)


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_sub_folders_are_taken_at_their_word(tmp_path, valid):
    parts = ("train/a", 2), ("train/b", 1), (valid, 2), ("test", 1)
    splits = divided(tmp_path, *parts, ("elsewhere", 3), ("", 1))
    assert splits.train == names(("train/a", 2), ("train/b", 1))
    assert splits.valid == names((valid, 2))
    assert splits.test == names(("test", 1))


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "DEV", "TEST"),
        ("train2017", "val2017", "test2017"),
        ("train_set", "valid-set", "test set"),
        ("train_images", "Validate", "testset"),
    ],
)
def test_split_folders_have_their_usual_names(tmp_path, capsys, train, valid, test):
    parts = (
        (train, 4),
        (f"{train}/test", 1),
        (valid, 2),
        (test, 1),
        (f"{test}/train", 2),
    )
    splits = divided(tmp_path, *parts, ("elsewhere", 3), ("", 1))
    assert sorted(splits.train) == sorted(names((train, 4), (f"{train}/test", 1)))
    assert splits.valid == names((valid, 2))
    assert sorted(splits.test) == sorted(names((test, 1), (f"{test}/train", 2)))
    assert capsys.readouterr().out == (
        f"{tmp_path}: train from {train}/ (5); valid from {valid}/ (2); test from "
        f"{test}/ (3); left out 4: loose pictures, elsewhere/\n"
    )


@pytest.mark.parametrize("name", ["Train", "testing", "val2017", "dev", "trn"])
def test_a_class_of_a_split_s_name_drops_no_other(tmp_path, capsys, name):
    """Only train/ can be a class at the top level: without it nothing trains."""
    parts = ("car", 20), (name, 10), ("ship", 30)
    if picture_folder.split_of(name) != "train":
        with pytest.raises(InputError, match=r"no pictures in train/"):
            divided(tmp_path, *parts)
        return
    splits = divided(tmp_path, *parts)
    assert sorted(splits.names) == sorted(names(*parts))
    shown = capsys.readouterr().out
    assert f"60 pictures to be divided; {name}/ taken for a class" in shown


@pytest.mark.parametrize(
    "name", ["trains", "contest", "valley", "tester", "retrain", "test_drive", "tt"]
)
def test_other_words_are_no_splits(tmp_path, name):
    assert not picture_folder.split_of(name)
    parts = (name, 10), ("other", 10)
    assert sorted(divided(tmp_path, *parts).names) == sorted(names(*parts))


def test_without_a_test_folder_half_the_validation_part_tests(tmp_path):
    splits = divided(tmp_path, ("train", 3), ("valid", 41))
    assert splits.train == names(("train", 3))
    assert (len(splits.valid), len(splits.test)) == (20, 21)
    assert sorted(splits.valid + splits.test) == names(("valid", 41))
    assert splits.valid != sorted(splits.valid)
    assert max(splits.valid) > min(splits.test)  # not the first half by name


def test_without_a_validation_folder_a_sixth_of_training_validates(tmp_path):
    splits = divided(tmp_path, ("train", 60), ("test", 2))
    assert (len(splits.train), len(splits.valid)) == (50, 10)
    assert sorted(splits.train + splits.valid) == names(("train", 60))
    assert min(splits.valid) < max(splits.train)
    assert splits.test == names(("test", 2))


def test_with_a_training_folder_only_it_lends_both(tmp_path):
    splits = divided(tmp_path, ("train", 24))
    assert [len(part) for part in splits[1:4]] == [20, 2, 2]
    assert sorted(splits.names) == names(("train", 24))


@pytest.mark.parametrize(
    ("count", "sizes"), [(3, [1, 1, 1]), (39, [37, 1, 1]), (60, [54, 3, 3])]
)
def test_without_sub_folders_a_tenth_is_held_out(tmp_path, count, sizes):
    splits = divided(tmp_path, ("", count))
    assert [len(part) for part in splits[1:4]] == sizes
    assert sorted(splits.names) == names(("", count))


def test_the_split_never_changes(tmp_path):
    """Results on other test pictures could not be compared."""
    splits = divided(tmp_path, ("a", 30), ("b", 30))
    assert splits.valid == ["b/025.png", "b/029.png", "a/011.png"]
    assert splits.test == ["b/009.png", "b/021.png", "a/006.png"]


@pytest.mark.parametrize("parts", [[("", 60)], [("train", 9), ("val", 9)]])
def test_enclosing_folders_do_not_count(tmp_path, parts):
    contents = dict.fromkeys(names(*parts), b"")
    enclosed = {f"a/b/{name}": b"" for name in contents}
    bare = picture_folder.divide(write(tmp_path / "bare", contents))
    for path in (
        write(tmp_path / "folder", enclosed),
        write_zip(tmp_path / "archive.zip", enclosed),
    ):
        splits = picture_folder.divide(path)
        assert splits.names == [f"a/b/{name}" for name in bare.names]
        assert list(map(len, splits[1:4])) == list(map(len, bare[1:4]))


TOO_FEW = {
    "two": ([("", 2)], "2 pictures are too few for training, validation and test"),
    "one validates": ([("train", 3), ("val", 1)], "1 validation picture cannot be"),
    "one trains": ([("train", 1), ("test", 2)], "1 training examples are too few"),
    "none trains": ([("val", 3), ("test", 2)], "has a valid part and a test part but"),
    "only test": ([("test", 3)], "has a test part but no pictures in train/"),
}


@pytest.mark.parametrize("kind", TOO_FEW)
def test_too_few_pictures_are_refused(tmp_path, kind):
    parts, message = TOO_FEW[kind]
    with pytest.raises(InputError, match=f"^{tmp_path}: .*{message}"):
        divided(tmp_path, *parts)


# --- CelebA-HQ


@pytest.mark.parametrize(
    "place", ["celebahq", "celeba_hq", "celeba_hq_256", "CelebAMask-HQ/CelebA-HQ-img"]
)
@pytest.mark.parametrize("is_zip", [False, True])
def test_celebahq_is_found_under_every_name(tmp_path, place, is_zip):
    write(tmp_path, {"mnist/a.png": PNG})  # another data set beside it
    contents = dict.fromkeys(names(("train", 4), ("val", 2)), PNG)
    if is_zip:
        write_zip(tmp_path / f"{place}.zip", contents)
    else:
        write(tmp_path / place, contents)
    dataset = datasets.load("celebahq", SHAPE, str(tmp_path))
    assert [split.shape for split in dataset] == [(n, *SHAPE) for n in (4, 1, 1)]


@pytest.mark.parametrize("folder", ["", "train", "Training"])
def test_celebahq_may_be_the_data_folder_itself(tmp_path, folder):
    write(tmp_path, dict.fromkeys(names((folder, 24)), PNG))
    assert len(picture_folder.find_celebahq(tmp_path).names) == 24


def test_missing_celebahq_lists_every_place(tmp_path):
    write(tmp_path, {"mnist/a.png": PNG})
    with pytest.raises(InputError) as error:
        datasets.load("celebahq", SHAPE, str(tmp_path))
    for name in ("celebahq", "celeba_hq_256", "CelebAMask-HQ/CelebA-HQ-img"):
        assert f"\n  {tmp_path}/{name}{{,.zip}}\n" in str(error.value)


# --- "folder"


def test_a_folder_of_pictures_is_loaded(tmp_path):
    contents = {
        name: encoded(picture(16, 16, seed=i))
        for i, name in enumerate(names(("train", 3), ("valid", 2), ("test", 2)))
    }
    write(tmp_path, contents)
    dataset = datasets.load("folder", (16, 16, 3), str(tmp_path))
    assert [len(split) for split in dataset] == [3, 2, 2]
    for i, decoded in enumerate(np.concatenate(dataset)):
        np.testing.assert_array_equal(decoded, np.asarray(picture(16, 16, seed=i)))


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}: no picture"):
        datasets.load("folder", SHAPE, str(tmp_path))


def test_the_cache_of_a_folder_is_none_of_its_files(tmp_path, capsys):
    """Of 20 pictures and the cache it said "skipped 1 .npy; convert them to .png"."""
    (tmp_path / "ncp_jax_cache").mkdir()
    np.save(tmp_path / "ncp_jax_cache" / "decoded.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"no picture.*found nothing$"):
        datasets.load("folder", SHAPE, str(tmp_path))
    write(tmp_path, dict.fromkeys(names(("train", 4), ("valid", 2), ("test", 1)), PNG))
    datasets.load("folder", SHAPE, str(tmp_path))
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.parametrize("cache", [True, False])
def test_a_zip_may_be_given_itself(tmp_path, cache):
    contents = dict.fromkeys(names(("train", 4), ("valid", 2), ("test", 1)), PNG)
    path = write_zip(tmp_path / "pictures.zip", contents)
    options = {"cache_dir": str(tmp_path / "cache")} if cache else {}
    dataset = datasets.load("folder", SHAPE, str(path), **options)
    assert [len(part) for part in dataset] == [4, 2, 1]
    assert (tmp_path / ("cache" if cache else "ncp_jax_cache")).is_dir()
