"""Folders of pictures, and CelebA-HQ, which comes as one: found and divided."""

import re
from collections import Counter
from pathlib import Path

from ncp_jax.data import picture_files
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.data.splits import hold_out, pseudo_random_order
from ncp_jax.errors import InputError

# What folders of a split are called, in small or capital letters; "val2017", too.
SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "valid": ("valid", "val", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst"),
}
_WITH_MORE = r"({})([-_ ]?(set|split|data|images?|imgs?|pictures|\d+))?"
_PATTERNS = {
    split: re.compile(_WITH_MORE.format("|".join(words)), re.IGNORECASE)
    for split, words in SPLIT_WORDS.items()
}
_NUM_NAMED = 5  # folders in a line
_CELEBAHQ = (
    "celebahq",
    "celeba_hq",
    "celeba-hq",
    "celeba_hq_256",
    "CelebAMask-HQ/CelebA-HQ-img",
)


def divide(path: Path) -> PictureSplits:
    """Divides the pictures of a folder or a zip archive into train, valid and test.

    Sub-folders train/, valid/ and test/, under their usual names (`SPLIT_WORDS`), are
    taken at their word, sorted by name, and what lies beside them is left out. Only the
    top level counts: a class may be called train/, too. So is a train/ that has neither
    valid/ nor test/ but other folders of pictures beside it. What was taken for what is
    printed. What is lacking is made from the names in sorted order, shuffled by one
    fixed permutation:

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
    groups = _groups(path, list(files.stamps))
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


def split_of(folder: str) -> str:
    """Returns "train", "valid" or "test" for the name of such a folder, else ""."""
    found = (split for split, form in _PATTERNS.items() if form.fullmatch(folder))
    return next(found, "")


def _groups(path: Path, names: list[str]) -> dict[str, list[str]]:
    """The names within the sub-folders of each split; all empty if there are none."""
    parts = [name.split("/") for name in names]
    depth = 0
    while not split_of(first := parts[0][depth]) and all(
        len(part) > depth + 1 and part[depth] == first for part in parts
    ):
        depth += 1
    # Pictures that lie beside the folders are in none: "".
    tops = [part[depth] if len(part) > depth + 1 else "" for part in parts]
    counts = Counter(tops)
    by_split: dict[str, list[str]] = {split: [] for split in SPLIT_WORDS}
    for top in sorted(counts):
        if split := split_of(top):
            by_split[split].append(top)
    others = [top for top in counts if top and not split_of(top)]
    if others and by_split["train"] and not (by_split["valid"] or by_split["test"]):
        by_split["train"] = []  # a class of that name
    _tell(path, counts, by_split)
    return {
        split: [name for name, top in zip(names, tops, strict=True) if top in tops_of]
        for split, tops_of in by_split.items()
    }


def _tell(path: Path, counts: Counter[str], by_split: dict[str, list[str]]) -> None:
    """Prints which folders were taken for what, with their numbers of pictures."""
    taken = [top for tops in by_split.values() for top in tops]
    said = [
        f"{split} from " + ", ".join(f"{top}/ ({counts[top]:,})" for top in tops)
        for split, tops in by_split.items()
        if tops
    ]
    if not taken:
        said = [f"no folders of splits, {counts.total():,} pictures to be divided"]
        if classes := [top for top in sorted(counts) if split_of(top)]:
            said.append(f"{', '.join(classes)}/ taken for a class")
    elif left := counts.total() - sum(counts[top] for top in taken):
        beside = [f"{top}/" if top else "loose pictures" for top in sorted(counts)]
        names = [name for name in beside if name.rstrip("/") not in taken]
        shown = ", ".join(names[:_NUM_NAMED]) + ", ..." * (len(names) > _NUM_NAMED)
        said.append(f"left out {left:,}: {shown}")
    print(f"{path}: {'; '.join(said)}")


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
    return any(
        picture_files.is_picture(path.name)
        or (split_of(path.name) == "train" and path.is_dir())
        for path in folder.iterdir()
    )
