"""A data set looked at before training: all files, all labels, copies between the splits."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from datasets import splits
from datasets.change_detection import IMAGE_FOLDERS, IMAGE_SUFFIXES, LABEL_FOLDERS, Pair
from datasets.classes import ClassList
from datasets.duplicates import MAX_HAMMING, ImageKey, find_copies
from datasets.findings import (
    Entry,
    Finding,
    collect,
    copy_entries,
    pair_entries,
    relative,
    set_entries,
)
from datasets.label_formats import COLOR_DISTANCE
from datasets.pair_report import PairReport, inspect_pair
from utils.errors import DataError

SPLIT_FOLDERS = ("train", "val", "test")
HELD_OUT, UNUSED = "held out of train", "unused"
QUICK_SECONDS = 0.6
Progress = Callable[[Iterable, str], Iterable]


@dataclass
class FolderScan:
    """The names in one split's folders, before any file is opened.

    Attributes:
        pairs: what is complete; labels are None where the folder has none or one is missing.
        labelled: whether there are label folders.
        found: what is wrong with the names.
    """

    pairs: list[Pair] = field(default_factory=list)
    labelled: bool = False
    found: list[tuple[str, Entry]] = field(default_factory=list)


@dataclass
class Report:
    """What `inspect_dataset` found.

    Attributes:
        root: the data set.
        classes: its class list.
        pairs: one report per pair, in the order of folders and names.
        findings: what is wrong, errors first.
    """

    root: Path
    classes: ClassList
    pairs: list[PairReport]
    findings: list[Finding]

    def transitions(self, split: str | None = None) -> np.ndarray:
        """Return the summed (C + 1, C + 1) class counts, date 1 by date 2, of all or one split."""
        size = len(self.classes.names)
        chosen = (r for r in self.pairs if r.transitions is not None and split in (None, r.split))
        return sum((r.transitions for r in chosen), np.zeros((size, size), dtype=np.int64))

    @property
    def splits(self) -> list[str]:
        """The splits there are, in order."""
        return list(dict.fromkeys(report.split for report in self.pairs))


class ParallelMap:
    """``work(item)`` for each item in order, from a pool of processes where it pays."""

    def __init__(self, work: Callable, items: Sequence, workers: int) -> None:
        self._work, self._items = work, items
        self._workers = min(workers, len(items) // 8)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator:
        if self._workers < 2:
            yield from map(self._work, self._items)
            return
        # Forked workers share the imported libraries; they decode, and touch no thread of torch.
        method = "fork" if sys.platform == "linux" else "spawn"
        pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context(method))
        chunk = max(1, min(16, len(self) // (4 * self._workers)))
        try:
            yield from pool.map(self._work, self._items, chunksize=chunk)
        finally:
            pool.shutdown(cancel_futures=True)


def inspect_dataset(
    root: Path,
    classes: ClassList,
    train_list: Path | None = None,
    val_list: Path | None = None,
    color_distance: int = COLOR_DISTANCE,
    max_hamming: int = MAX_HAMMING,
    workers: int = 1,
    progress: Progress = lambda items, _: items,
) -> Report:
    """Look at every file of a data set; nothing in the files raises.

    Args:
        root: folder with train, val or test.
        classes: its class list.
        train_list, val_list: as for training; else ROOT/val or every 10th name is validated on.
        color_distance: Euclidean RGB distance up to which a label colour counts as a class's.
        max_hamming: bits of 63 in which the hashes of a near copy may differ.
        workers: processes that decode.
        progress: wraps iterables in a bar.

    Raises:
        DataError: there is no pair below ``root``, or a list does not fit.
    """
    root = Path(root)
    scans = scan_dataset(root)
    split_of = assign_splits(scans, train_list, val_list)
    pairs = [pair for scan in scans.values() for pair in scan.pairs]
    work = partial(inspect_pair, classes=classes, color_distance=color_distance)
    reports = list(progress(ParallelMap(work, pairs, workers), "pairs"))
    found = [item for scan in scans.values() for item in scan.found]
    images = []
    for number, report in enumerate(reports):
        report.split = split_of[report.pair.id]
        found += pair_entries(report, root)
        if report.split != UNUSED:
            images += _image_keys(number, report, root)
    copies = find_copies(images, max_hamming, lambda items: progress(items, "copies"))
    found += copy_entries(copies, [report.pair.id for report in reports])
    found += set_entries(reports, classes, root)
    return Report(root, classes, reports, collect(found))


def scan_dataset(root: Path) -> dict[str, FolderScan]:
    """Index the split folders of a data set by name.

    Raises:
        DataError: there is no pair below ``root``.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds train/im1, train/im2, …")
    names = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    scans = {name: scan_folder(root / name, root) for name in names}
    if not any(scan.pairs or scan.found for scan in scans.values()):
        raise DataError(
            f"{root}: no image pairs in it; expected train/im1 and train/im2, and val or test alike"
        )
    return scans


def scan_folder(folder: Path, root: Path) -> FolderScan:
    """Index one split's folder; what `index_pairs` refuses becomes a finding."""
    scan = FolderScan(labelled=any((folder / name).is_dir() for name in LABEL_FOLDERS))
    names = IMAGE_FOLDERS + (LABEL_FOLDERS if scan.labelled else ())
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
            labels = [there.get(name) for name in LABEL_FOLDERS]
            labels = labels if None not in labels else [None, None]
            pair_id = f"{folder.name}/{stem}"
            scan.pairs.append(Pair(pair_id, there["im1"], there["im2"], *labels))
    if folder.name == "train" and not scan.labelled:
        scan.found.append(("no-labels", Entry((relative(folder, root),))))
    return scan


def assign_splits(
    scans: dict[str, FolderScan], train_list: Path | None = None, val_list: Path | None = None
) -> dict[str, str]:
    """Name the split of every pair, as training divides the data set.

    Raises:
        DataError: a list does not fit the pairs.
    """
    split_of = {pair.id: name for name, scan in scans.items() for pair in scan.pairs}
    train, val = scans.get("train", FolderScan()), scans.get("val", FolderScan())
    ids = [pair.id for pair in train.pairs]
    if val_list is not None:
        split = splits.from_lists(ids, train_list, val_list)
    elif len(ids) > 1 and train.labelled and not val.labelled:
        split = splits.every_10th(ids)
    else:
        return split_of
    split_of |= dict.fromkeys(ids, UNUSED)
    return split_of | dict.fromkeys(split.train, "train") | dict.fromkeys(split.val, HELD_OUT)


def quick_check(pairs: Sequence[Pair], classes: ClassList, sample: int = 16) -> list[str]:
    """Look at a few pairs spread over a set and return warnings, one line each.

    Reads labels and the headers of the images, and stops after half a second.
    """
    step = max(1, len(pairs) // max(1, sample))
    reports: list[PairReport] = []
    deadline = time.perf_counter() + QUICK_SECONDS
    for pair in list(pairs[::step])[:sample]:
        if reports and time.perf_counter() > deadline:
            break
        reports.append(inspect_pair(pair, classes, decode_images=False))
        reports[-1].split = f"a sample of {len(pairs)} pairs"
    root = pairs[0].image1.parents[2] if pairs else Path()
    found = [item for report in reports for item in pair_entries(report, root)]
    found += [
        item
        for item in set_entries(reports, classes, root)
        if item[0] in ("all-unchanged", "all-changed")
    ]
    return [str(finding) for finding in collect(found)]


def _files_by_stem(folder: Path, root: Path, found: list[tuple[str, Entry]]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    lower: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            found.append(("ignored-files", Entry((relative(path, root),))))
            continue
        other = files.get(path.stem) or lower.get(path.stem.lower())
        if other is not None:
            kind = "same-stem" if path.stem in files else "name-case"
            found.append((kind, Entry((relative(other, root), relative(path, root)))))
        files.setdefault(path.stem, path)
        lower.setdefault(path.stem.lower(), path)
    return files


def _image_keys(number: int, report: PairReport, root: Path) -> Iterator[ImageKey]:
    for file, fingerprint in zip(report.images, report.fingerprints, strict=True):
        if fingerprint is not None:
            path = relative(file.path, root)
            yield ImageKey(path, number, report.split, fingerprint.digest, fingerprint.thumbnail)
