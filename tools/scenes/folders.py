"""Data sets that tools write: unfinished ones go on, earlier ones are replaced, no others are."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import open_image
from datasets.pairs import UNFINISHED
from utils.errors import OptionError
from utils.files import file_state, read_json, remove_leftovers, write_json
from utils.locks import LOCK, exclusive, holder

SPLITS = ("train", "val")
FOLDERS = ("im1", "im2", "label1", "label2", "label", "truth1", "truth2")
PAIR_NAME = re.compile(r"\d{5,}\.png")


def goes_on(root: Path, record: Mapping[str, Any], overwrite: bool = False) -> bool:
    """Tell whether ``root`` holds the beginning of the work that a ``record`` describes.

    An OptionError where it is of other work, unless that is to be overwritten, or where another
    program is at work there.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        writer = holder(root / LOCK)
        if writer:
            raise OptionError(f"{root}: {writer} is writing there; choose another folder")
        try:
            found = dict(read_json(root / UNFINISHED))
        except (ValueError, TypeError):  # somebody's hand
            found = {}
        record = json.loads(json.dumps(record, default=str))
        if found == record:
            return True
        if not overwrite:
            names = ", ".join(k for k in record if found.get(k) != record[k]) or "options"
            raise OptionError(
                f"{root}: not finished, and begun with another {names}; give the first command "
                "again, or choose another folder"
            )
    return False


@contextmanager
def unfinished(root: Path, record: Mapping[str, Any]) -> Iterator[None]:
    """Be the one program that writes a data set, which is marked until the block has ended well."""
    with exclusive(root / LOCK, "a data set"):
        write_json(root / UNFINISHED, record)
        for folder in root.glob("*/*/"):
            remove_leftovers(folder)
        yield
        (root / UNFINISHED).unlink()


def digest_files(files: Iterable[Path]) -> str:
    """Return what changes where one of some files is replaced."""
    states = [(str(path), *file_state(path)) for path in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def read_truth(folder: Path, name: str, others: Sequence[str]) -> list[np.ndarray] | None:
    """Return the classes (H, W) uint8 of both dates of a pair that is whole; None where not."""
    truths = [folder / f"truth{date}" / name for date in (1, 2)]
    if all(path.exists() for path in (*truths, *(folder / other / name for other in others))):
        return [np.asarray(open_image(path)) for path in truths]
    return None


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
