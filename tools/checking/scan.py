"""The names in a data set's folders, before files are opened: pairs, splits, odd names."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets.pairs import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    RASTER_SUFFIXES,
    SPLIT_FOLDERS,
    Pair,
    differing_labels,
    label_folders,
    layout_hint,
)
from datasets.splits import SplitOptions, divide
from tools.checking.findings import Entry, relative
from utils.errors import DataError

HELD_OUT, UNUSED = "held out of train", "unused"


@dataclass
class FolderScan:
    """The names in one split's folders, before any file is opened.

    Attributes:
        pairs: what is complete; they have no labels where the folder has none or one is missing.
        labelled: whether there are label folders.
        found: what is wrong with the names.
    """

    pairs: list[Pair] = field(default_factory=list)
    labelled: bool = False
    found: list[tuple[str, Entry]] = field(default_factory=list)


def scan_dataset(root: Path) -> dict[str, FolderScan]:
    """Index the split folders of a data set by name.

    Raises:
        DataError: there is no pair below ``root``.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds train/im1, train/im2, …")
    names = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    for folder in (root, *(root / name for name in names)):
        if layout_hint(folder):
            raise DataError(f"{folder}: no im1 and im2 in it{layout_hint(folder)}")
    scans = {name: scan_folder(root / name, root) for name in names}
    if not any(scan.pairs or scan.found for scan in scans.values()):
        raise DataError(
            f"{root}: no image pairs in it; expected train/im1 and train/im2, and val or test alike"
        )
    return scans


def scan_folder(folder: Path, root: Path) -> FolderScan:
    """Index one split's folder; what `index_pairs` refuses becomes a finding."""
    labels = label_folders(folder)
    scan = FolderScan(labelled=bool(labels))
    names = (*IMAGE_FOLDERS, *labels.values())
    files = {name: _files_by_stem(folder / name, root, scan.found) for name in names}
    stems = sorted({stem for by_stem in files.values() for stem in by_stem})
    alike: dict[str, list[str]] = {}
    for stem in stems:
        alike.setdefault(stem.lower(), []).append(stem)
    for stem in stems:
        there = {name: by_stem[stem] for name, by_stem in files.items() if stem in by_stem}
        missing = [name for name in names if name not in there]
        if missing:
            others = [other for other in alike[stem.lower()] if other != stem]
            renamed = any(other in files[name] for other in others for name in missing)
            paths = tuple(relative(path, root) for path in there.values())
            said = f"none in {', '.join(missing)}"
            scan.found.append(("partner-case" if renamed else "no-partner", Entry(paths, said)))
        if all(name in there for name in IMAGE_FOLDERS):
            complete = all(name in there for name in labels.values())
            of_pair = {key: there[name] for key, name in labels.items()} if complete else {}
            pair_id = f"{folder.name}/{stem}"
            scan.pairs.append(Pair(pair_id, there["im1"], there["im2"], **of_pair))
    if len(labels) == 1 and "change_mask" not in labels:
        scan.found.append(("one-date", Entry((relative(folder / names[-1], root),))))
    if folder.name == "train" and not scan.labelled:
        scan.found.append(("no-labels", Entry((relative(folder, root),))))
    return scan


def differing_label_entries(
    root: Path, scans: dict[str, FolderScan], options: SplitOptions
) -> Iterable[tuple[str, Entry]]:
    """Yield that ``val``, where it is to be validated on, has labels of another kind than train.

    Raises:
        OptionError: labels in ROOT/val are asked for and missing.
    """
    val = scans.get("val", FolderScan())
    if options.choose(val.labelled) == "folders" and differing_labels(root):
        names = [
            f"{split}/{name}"
            for split in ("train", "val")
            for name in label_folders(root / split).values()
        ]
        yield "labels-differ", Entry(tuple(names))


def assign_splits(scans: dict[str, FolderScan], options: SplitOptions) -> dict[str, str]:
    """Name the split of every pair, as training divides the data set.

    Raises:
        DataError: the split does not fit the pairs.
        OptionError: labels in ROOT/val are asked for and missing.
    """
    split_of = {pair.id: name for name, scan in scans.items() for pair in scan.pairs}
    train, val = scans.get("train", FolderScan()), scans.get("val", FolderScan())
    ids = [pair.id for pair in train.pairs]
    protocol = options.choose(val.labelled)
    # Without lists or a protocol asked for, what cannot be trained on is looked at all the same.
    asked = options.protocol or options.val_list
    if protocol == "folders" or not (asked or (len(ids) > 1 and train.labelled)):
        return split_of
    split = divide(ids, options, protocol)
    split_of |= dict.fromkeys(ids, UNUSED)
    return split_of | dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, HELD_OUT)


def _files_by_stem(folder: Path, root: Path, found: list[tuple[str, Entry]]) -> dict[str, Path]:
    suffixes = RASTER_SUFFIXES if folder.name in IMAGE_FOLDERS else IMAGE_SUFFIXES
    files: dict[str, Path] = {}
    lower: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes:
            found.append(("ignored-files", Entry((relative(path, root),))))
            continue
        other = files.get(path.stem) or lower.get(path.stem.lower())
        if other is not None:
            kind = "same-stem" if path.stem in files else "name-case"
            found.append((kind, Entry((relative(other, root), relative(path, root)))))
        files.setdefault(path.stem, path)
        lower.setdefault(path.stem.lower(), path)
    return files
