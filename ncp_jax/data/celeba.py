"""CelebA (Liu et al., 2015): the aligned faces, the official split, two crops."""

from pathlib import Path

from ncp_jax.data import picture_files
from ncp_jax.data.picture_files import PictureSplits
from ncp_jax.errors import InputError, explained

SIZE = (178, 218)  # width, height of an aligned picture
# (left, upper, right, lower); results on different crops cannot be compared.
CROPS = {
    "nvae": (15, 40, 163, 188),  # 148x148
    "rae": (19, 39, 159, 179),  # the central 140x140
}
PARTITION = "list_eval_partition.txt"
KAGGLES = "list_eval_partition.csv"  # with a head, and commas


def find(data_dir: Path, crop: str = "nvae") -> PictureSplits:
    """Finds the pictures and divides them as the official split file says.

    Args:
      data_dir: holds img_align_celeba/ or img_align_celeba.zip, and `PARTITION` or
        `KAGGLES` next to it, themselves or in celeba/. Pictures that the split file
        does not list are left out.
      crop: one of `CROPS`: NVAE's or RAE's.

    Raises:
      InputError: another crop, nothing found, an unreadable or corrupt split file,
        pictures that it lists are missing, or a split is empty.
    """
    if crop not in CROPS:
        raise InputError(f"data.crop must be one of {tuple(CROPS)}, got {crop!r}")
    folders = [data_dir / "celeba", data_dir]
    for folder in folders:
        for pictures in (folder / "img_align_celeba", folder / "img_align_celeba.zip"):
            if pictures.exists():
                partition = folder / PARTITION
                if not partition.exists() and (folder / KAGGLES).exists():
                    partition = folder / KAGGLES
                return _divided(pictures, partition, CROPS[crop])
    places = "\n  ".join(f"{folder}/img_align_celeba{{,.zip}}" for folder in folders)
    raise InputError(
        f"celeba: looked for\n  {places}\nwith {PARTITION} or {KAGGLES} next to it"
    )


def _divided(
    pictures: Path, partition: Path, box: tuple[int, int, int, int]
) -> PictureSplits:
    splits = _read_partition(partition)
    files = picture_files.find(pictures)
    # In an archive, and in Kaggle's folder, they are within one that the file omits.
    located = {name.rsplit("/", 1)[-1]: name for name in files.stamps}
    missing = [name for split in splits for name in split if name not in located]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{pictures}: {len(missing)} pictures that {partition} lists are missing: "
            f"{shown}"
        )
    train, valid, test = ([located[name] for name in split] for split in splits)
    return PictureSplits(files, train, valid, test, box, SIZE)


def _read_partition(path: Path) -> list[list[str]]:
    """The file names of train, valid and test, in the file's order."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        reason = f"the split file cannot be read ({explained(error)})"
        raise InputError(f"{path}: {reason}") from error
    splits: list[list[str]] = [[], [], []]
    lines: dict[str, int] = {}  # by picture, where it was listed
    is_csv = path.suffix == ".csv"
    for i, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        match line.replace(",", " ").split() if is_csv else line.split():
            case ["image_id", "partition"] if is_csv and i == 1:
                pass
            case [name, "0" | "1" | "2" as split]:
                if name in lines:
                    raise InputError(
                        f"{path}: lists {name} twice, in line {lines[name]} and in "
                        f"line {i}, so that it could be trained on and tested on; "
                        "fetch it again, or remove one of the lines"
                    )
                lines[name] = i
                splits[int(split)].append(name)
            case []:
                pass
            case _:
                raise InputError(
                    f"{path}, line {i}: found {line[:60]!r}, expected a file name and "
                    "0 (train), 1 (valid) or 2 (test)"
                )
    if not all(splits):
        raise InputError(
            f"{path}: lists {', '.join(str(len(split)) for split in splits)} pictures "
            "for train, valid and test, expected some for each"
        )
    return splits
