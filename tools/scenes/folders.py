"""Folders of generated pairs: an earlier run's are replaced, real data never is."""

import re
from collections.abc import Sequence
from pathlib import Path

from utils.errors import OptionError
from utils.files import remove_leftovers

SPLITS = ("train", "val")
FOLDERS = ("im1", "im2", "label1", "label2", "label", "truth1", "truth2")
PAIR_NAME = re.compile(r"\d{5,}\.png")


def make_room(root: Path, overwrite: bool, records: Sequence[str] = ()) -> None:
    """Remove generated pairs from ``root/{train,val}``; other files there are refused.

    Only generated pairs have ``truth1``, the class of every pixel. Folders that become empty go
    too: one without files would count as labels still. Hidden files and what lies elsewhere stay,
    but for ``records``: files in ``root`` that belong to the pairs. The last must be there.

    Raises:
        OptionError: ``root`` has pairs and ``overwrite`` is off, has files of another origin, or
            is itself a file.
    """
    if root.exists() and not root.is_dir():
        raise OptionError(f"{root}: a file; choose a folder that is empty or does not exist")
    folders = [root / split / name for split in SPLITS for name in FOLDERS]
    pairs = [path for folder in folders for path in sorted(folder.glob("[!.]*"))]
    recorded = [root / name for name in records if (root / name).exists()]
    if not overwrite and (pairs or recorded):
        raise OptionError(
            f"{root}: has {len(pairs)} files of pairs; pass --overwrite to replace generated "
            "pairs, or choose another folder"
        )
    truths = {path for path in pairs if path.parent.name == "truth1"}
    foreign = [
        path
        for path in pairs
        if not (PAIR_NAME.fullmatch(path.name) and path.parents[1] / "truth1" / path.name in truths)
    ]
    if records and (pairs or recorded) and root / records[-1] not in recorded:
        foreign.append(root)
    if foreign:
        missing = f" (it has no {records[-1]})" if foreign[0] == root else ""
        raise OptionError(
            f"{foreign[0]}: not written by this tool{missing}, nothing was removed; choose another "
            "folder"
        )
    # Truth and record go last, so that an interrupted removal still looks like generated pairs.
    for path in [*sorted(pairs, key=truths.__contains__), *recorded]:
        path.unlink()
    for folder in [*folders, *(root / split for split in SPLITS)]:
        remove_leftovers(folder, age_s=0)
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
