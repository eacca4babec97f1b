"""The names in a data set's folders, before files are opened: pairs, splits, odd names."""

from collections.abc import Iterable
from pathlib import Path

from datasets.classes import STANDARD, Preset
from datasets.pairs import (
    SPLIT_FOLDERS,
    FolderScan,
    Problem,
    differing_labels,
    label_folders,
    layout_hint,
    locate_split,
    scan_folder,
)
from datasets.splits import SplitOptions, divide
from tools.checking.findings import Entry, relative
from utils.errors import DataError

HELD_OUT, UNUSED = "held out of train", "unused"


def scan_dataset(root: Path, preset: Preset = STANDARD) -> dict[str, FolderScan]:
    """Index the split folders of a data set by name; a DataError where there is no pair."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds train/im1, train/im2, …")
    names = [name for name in SPLIT_FOLDERS if locate_split(root / name, preset)[0].is_dir()]
    standard = any((root / name / "im1").is_dir() for name in names)
    for folder in (*([] if standard else [root]), *(root / name for name in names)):
        if preset is STANDARD and layout_hint(folder):
            raise DataError(f"{folder}: no im1 and im2 in it{layout_hint(folder)}")
    scans = {name: scan_folder(root / name, preset) for name in names}
    if not any(scan.pairs or name_entries(root / n, scan) for n, scan in scans.items()):
        raise DataError(
            f"{root}: no image pairs in it; expected train/im1 and train/im2, and val or test alike"
        )
    return scans


def name_entries(folder: Path, scan: FolderScan) -> list[tuple[str, Entry]]:
    """List what is wrong with the names in a split's folder."""
    found = [(problem.kind, _entry(problem, folder.parent)) for problem in scan.problems]
    if len(scan.labels) == 1 and "change_mask" not in scan.labels:
        found.append(("one-date", Entry((f"{folder.name}/{next(iter(scan.labels))}",))))
    if folder.name == "train" and not scan.labels:
        found.append(("no-labels", Entry((folder.name,))))
    return found


def _entry(problem: Problem, root: Path) -> Entry:
    said = f"none in {', '.join(problem.missing_in)}" if problem.missing_in else ""
    return Entry(tuple(relative(path, root) for path in problem.files), said)


def differing_label_entries(
    root: Path, scans: dict[str, FolderScan], options: SplitOptions, preset: Preset = STANDARD
) -> Iterable[tuple[str, Entry]]:
    """Yield that ``val``, where it is to be validated on, has labels of another kind than train."""
    val = scans.get("val", FolderScan({}))
    if options.choose(bool(val.labels)) == "folders" and differing_labels(root, "val", preset):
        folders = {
            split: label_folders(root / split, preset).values() for split in ("train", "val")
        }
        names = tuple(f"{split}/{name}" for split in folders for name in folders[split])
        yield "labels-differ", Entry(names)


def assign_splits(scans: dict[str, FolderScan], options: SplitOptions) -> dict[str, str]:
    """Name the split of every pair, as training divides the data set."""
    split_of = {pair.id: name for name, scan in scans.items() for pair in scan.pairs}
    train, val = scans.get("train", FolderScan({})), scans.get("val", FolderScan({}))
    ids = [pair.id for pair in train.pairs]
    protocol = options.choose(bool(val.labels))
    # Without lists or a protocol asked for, what cannot be trained on is looked at all the same.
    asked = options.protocol or options.val_list
    if protocol == "folders" or not (asked or (len(ids) > 1 and train.labels)):
        return split_of
    split = divide(ids, options, protocol)
    split_of |= dict.fromkeys(ids, UNUSED)
    return split_of | dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, HELD_OUT)
