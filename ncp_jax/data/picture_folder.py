"""Folders of pictures, and CelebA-HQ, which comes as one: found and divided."""

import re
from collections import Counter
from pathlib import Path

from ncp_jax.data import picture_files
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.data.splits import complete
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
    printed. What is lacking is made from the names in sorted order, see
    `splits.complete`.

    Folders that contain everything, as archives often have one, do not count.

    Args:
      path: the folder or the archive.

    Raises:
      InputError: a corrupt archive, no or too few pictures, or no train/.
    """
    files = picture_files.find(path)
    groups = _groups(path, list(files.stamps))
    unnamed = [] if any(groups.values()) else list(files.stamps)
    return PictureSplits(files, *complete(groups | {"": unnamed}, str(path)))


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


def _holds_pictures(folder: Path) -> bool:
    return any(
        picture_files.is_picture(path.name)
        or (split_of(path.name) == "train" and path.is_dir())
        for path in folder.iterdir()
    )
