"""The names in a data set's folders, before files are opened: pairs, splits, odd names."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets.classes import STANDARD, Preset
from datasets.pairs import (
    SPLIT_FOLDERS,
    Pair,
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


@dataclass
class SplitScan:
    """The names in one split's folders."""

    pairs: list[Pair] = field(default_factory=list)  # those that are complete
    labelled: bool = False  # there are label folders
    found: list[tuple[str, Entry]] = field(default_factory=list)  # what is wrong with the names


def scan_dataset(root: Path, preset: Preset = STANDARD) -> dict[str, SplitScan]:
    """Index the split folders of a data set by name; a DataError where there is no pair."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds train/im1, train/im2, …")
    names = [name for name in SPLIT_FOLDERS if locate_split(root / name, preset)[0].is_dir()]
    standard = any((root / name / "im1").is_dir() for name in names)
    for folder in (*([] if standard else [root]), *(root / name for name in names)):
        if preset is STANDARD and layout_hint(folder):
            raise DataError(f"{folder}: no im1 and im2 in it{layout_hint(folder)}")
    scans = {name: _scan_split(root / name, preset) for name in names}
    if not any(scan.pairs or scan.found for scan in scans.values()):
        raise DataError(
            f"{root}: no image pairs in it; expected train/im1 and train/im2, and val or test alike"
        )
    return scans


def _scan_split(folder: Path, preset: Preset) -> SplitScan:
    scan = scan_folder(folder, preset)
    found = [(problem.kind, _entry(problem, folder.parent)) for problem in scan.problems]
    if len(scan.labels) == 1 and "change_mask" not in scan.labels:
        found.append(("one-date", Entry((f"{folder.name}/{next(iter(scan.labels))}",))))
    if folder.name == "train" and not scan.labels:
        found.append(("no-labels", Entry((folder.name,))))
    return SplitScan(scan.pairs, bool(scan.labels), found)


def _entry(problem: Problem, root: Path) -> Entry:
    said = f"none in {', '.join(problem.missing_in)}" if problem.missing_in else ""
    return Entry(tuple(relative(path, root) for path in problem.files), said)


def differing_label_entries(
    root: Path, scans: dict[str, SplitScan], options: SplitOptions, preset: Preset = STANDARD
) -> Iterable[tuple[str, Entry]]:
    """Yield that ``val``, where it is to be validated on, has labels of another kind than train."""
    val = scans.get("val", SplitScan())
    if options.choose(val.labelled) == "folders" and differing_labels(root, "val", preset):
        folders = {
            split: label_folders(root / split, preset).values() for split in ("train", "val")
        }
        names = tuple(f"{split}/{name}" for split in folders for name in folders[split])
        yield "labels-differ", Entry(names)


def assign_splits(scans: dict[str, SplitScan], options: SplitOptions) -> dict[str, str]:
    """Name the split of every pair, as training divides the data set."""
    split_of = {pair.id: name for name, scan in scans.items() for pair in scan.pairs}
    train, val = scans.get("train", SplitScan()), scans.get("val", SplitScan())
    ids = [pair.id for pair in train.pairs]
    protocol = options.choose(val.labelled)
    # Without lists or a protocol asked for, what cannot be trained on is looked at all the same.
    asked = options.protocol or options.val_list
    if protocol == "folders" or not (asked or (len(ids) > 1 and train.labelled)):
        return split_of
    split = divide(ids, options, protocol)
    split_of |= dict.fromkeys(ids, UNUSED)
    return split_of | dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, HELD_OUT)
