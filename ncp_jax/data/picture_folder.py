"""Folders of pictures, and CelebA-HQ, which comes as one: found and divided."""

from collections.abc import Iterable
from pathlib import Path

from ncp_jax.data import picture_files
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.data.splits import hold_out, pseudo_random_order
from ncp_jax.errors import InputError

SPLIT_FOLDERS = {
    "train": ("train",),
    "valid": ("valid", "val", "validation"),
    "test": ("test",),
}
_CELEBAHQ = (
    "celebahq",
    "celeba_hq",
    "celeba-hq",
    "celeba_hq_256",
    "CelebAMask-HQ/CelebA-HQ-img",
)


def divide(path: Path) -> PictureSplits:
    """Divides the pictures of a folder or a zip archive into train, valid and test.

    Sub-folders train/, valid/ (or val/, validation/) and test/ are taken at their word,
    sorted by name, and what lies beside them is left out. What they lack is made from
    the names in sorted order, shuffled by one fixed permutation:

    - without test/, half of valid/ becomes the test set, so that nothing is ever tuned
      on it;
    - without valid/, a sixth of train/ validates;
    - without any, a tenth is held out, half of it for testing.

    Folders that contain everything, as archives often have one, do not count.

    Args:
      path: the folder or the archive.

    Raises:
      InputError: a corrupt archive, no or too few pictures, or no train/.
    """
    files = picture_files.find(path)
    groups = _groups(files.stamps)
    if not any(groups.values()):
        return PictureSplits(files, *_three_parts(list(files.stamps), path))
    train, valid, test = groups["train"], groups["valid"], groups["test"]
    if not train:
        beside = " and ".join(f"a {key} part" for key in groups if groups[key])
        raise InputError(f"{path}: has {beside} but no pictures in train/")
    if not valid:
        train, valid = hold_out(_shuffled(train), str(path))
    if not test:
        if len(valid) < 2:
            raise InputError(
                f"{path}: has no test/, and {len(valid)} validation picture cannot be "
                "halved; at least 2 are needed"
            )
        shuffled = _shuffled(valid)
        valid, test = shuffled[: len(valid) // 2], shuffled[len(valid) // 2 :]
    return PictureSplits(files, train, valid, test)


def find_celebahq(data_dir: Path) -> PictureSplits:
    """Finds CelebA-HQ (Karras et al., 2018) and divides it, see `divide`.

    The usual 27,000 training and 3,000 validation pictures, as folders train/ and
    valid/, so give 1,500 for validation and 1,500 for testing; 30,000 pictures in one
    folder give numbers as many, but other pictures. The pictures keep their 8 bits: to
    reduce them to 5 is the business of whoever makes x of them.

    Args:
      data_dir: holds the folder or the archive under one of its usual names, or holds
        the pictures itself, directly or in train/.

    Raises:
      InputError: nothing found, or what `divide` refuses.
    """
    places = [
        data_dir / (name + suffix) for name in _CELEBAHQ for suffix in ("", ".zip")
    ]
    found = next((path for path in places if path.exists()), None)
    if found is None and _holds_pictures(data_dir):
        found = data_dir
    if found is None:
        looked = "\n  ".join(f"{data_dir}/{name}{{,.zip}}" for name in _CELEBAHQ)
        raise InputError(
            f"celebahq: looked for\n  {looked}\nand for pictures in {data_dir} itself"
        )
    return divide(found)


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """The names within the sub-folders of each split; all empty if there are none."""
    parts = [name.split("/") for name in names]
    known = {folder for folders in SPLIT_FOLDERS.values() for folder in folders}
    depth = 0
    while (first := parts[0][depth]) not in known and all(
        len(part) > depth + 1 and part[depth] == first for part in parts
    ):
        depth += 1
    return {
        split: [
            "/".join(part)
            for part in parts
            if len(part) > depth + 1 and part[depth] in folders
        ]
        for split, folders in SPLIT_FOLDERS.items()
    }


def _three_parts(
    names: list[str], path: Path
) -> tuple[list[str], list[str], list[str]]:
    num_held_out = max(1, len(names) // 20)
    first_valid = len(names) - 2 * num_held_out
    if first_valid < 1:
        raise InputError(
            f"{path}: {len(names)} pictures are too few for training, validation and "
            "test; at least 3 are needed"
        )
    names = _shuffled(names)
    return (
        names[:first_valid],
        names[first_valid : first_valid + num_held_out],
        names[first_valid + num_held_out :],
    )


def _shuffled(names: list[str]) -> list[str]:
    return [names[i] for i in pseudo_random_order(len(names))]


def _holds_pictures(folder: Path) -> bool:
    if (folder / "train").is_dir():
        return True
    return any(picture_files.is_picture(path.name) for path in folder.iterdir())
