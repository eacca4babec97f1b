"""A data set looked at before training: all files, all labels, copies between the splits."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB
from datasets.classes import ClassList
from datasets.labels import COLOR_DISTANCE
from datasets.pairs import Pair
from datasets.splits import AS_THE_DATA_SUGGESTS, SplitOptions
from datasets.statistics import BandSums, statistics_to_dict
from tools.checking.duplicates import MAX_HAMMING, ImageKey, find_copies
from tools.checking.findings import (
    Finding,
    collect,
    copy_entries,
    pair_entries,
    relative,
    set_entries,
)
from tools.checking.pair_report import PairReport, inspect_pair
from tools.checking.scan import UNUSED, assign_splits, differing_label_entries, scan_dataset
from utils.parallel import ParallelMap

QUICK_SECONDS = 0.6

Progress = Callable[[Iterable, str], Iterable]


@dataclass
class Report:
    """What `inspect_dataset` found.

    Attributes:
        root: the data set.
        classes: its class list.
        pairs: one report per pair, in the order of folders and names.
        findings: what is wrong, errors first.
        bands: numbers of the bands that are to be used, from 1.
    """

    root: Path
    classes: ClassList
    pairs: list[PairReport]
    findings: list[Finding]
    bands: tuple[int, ...] = RGB.numbers

    def band_statistics(self) -> dict[str, Any] | None:
        """Return mean and standard deviation of each band over both dates of the training pairs.

        None where there are no readable training images, or some of other bands or depths.
        """
        files = [
            (file.bits, sums)
            for report in self.pairs
            if report.split == "train"
            for file, sums in zip(report.images, report.band_sums, strict=True)
            if sums is not None
        ]
        if len({(bits, len(sums.sums)) for bits, sums in files}) != 1:
            return None
        total = reduce(BandSums.__add__, (sums for _, sums in files))
        return statistics_to_dict(total, files[0][0], len(files) // 2)

    def transitions(self, split: str | None = None, both_dates: bool = False) -> np.ndarray:
        """Return the summed (C + 1, C + 1) class counts, date 1 by date 2, of all or one split.

        A single label stands for both dates, unless only pairs with ``both_dates`` are asked for.
        """
        size = len(self.classes.names)
        chosen = (
            r
            for r in self.pairs
            if r.transitions is not None
            and split in (None, r.split)
            and not (both_dates and (self.classes.is_binary or len(r.labels) < 2))
        )
        return sum((r.transitions for r in chosen), np.zeros((size, size), dtype=np.int64))

    def dates(self, split: str) -> tuple[int, ...]:
        """Return the dates whose classes a split's labels name."""
        if self.classes.is_binary:
            return ()
        found = {date for r in self.pairs if r.split == split for date in r.pair.labelled_dates}
        return tuple(sorted(found))

    @property
    def splits(self) -> list[str]:
        """The splits there are, in order."""
        return list(dict.fromkeys(report.split for report in self.pairs))


def inspect_dataset(
    root: Path,
    classes: ClassList,
    split: SplitOptions = AS_THE_DATA_SUGGESTS,
    color_distance: int = COLOR_DISTANCE,
    max_hamming: int = MAX_HAMMING,
    workers: int = 1,
    progress: Progress = lambda items, _: items,
    bands: tuple[int, ...] = RGB.numbers,
) -> Report:
    """Look at every file of a data set; nothing in the files raises.

    Args:
        root: folder with train, val or test.
        classes: its class list.
        split: as for training.
        color_distance: Euclidean RGB distance up to which a label colour counts as a class's.
        max_hamming: bits of 63 in which the hashes of a near copy may differ.
        workers: processes that decode.
        progress: wraps iterables in a bar.
        bands: numbers of the bands that are to be used, from 1.

    Raises:
        DataError: there is no pair below ``root``, or the split does not fit.
        OptionError: the split asks for labels in ROOT/val that are not there.
    """
    root = Path(root)
    scans = scan_dataset(root)
    split_of = assign_splits(scans, split)
    pairs = [pair for scan in scans.values() for pair in scan.pairs]
    work = partial(inspect_pair, classes=classes, color_distance=color_distance)
    reports = list(progress(ParallelMap(work, pairs, workers), "pairs"))
    found = [item for scan in scans.values() for item in scan.found]
    found += differing_label_entries(root, scans, split)
    if classes.is_binary:  # either date says what changed
        found = [item for item in found if item[0] != "one-date"]
    images = []
    for number, report in enumerate(reports):
        report.split = split_of[report.pair.id]
        found += pair_entries(report, root, bands)
        if report.split != UNUSED:
            images += _image_keys(number, report, root)
    copies = find_copies(images, max_hamming, lambda items: progress(items, "copies"))
    found += copy_entries(copies, [report.pair.id for report in reports])
    found += set_entries(reports, classes, root)
    return Report(root, classes, reports, collect(found), bands)


def quick_check(
    pairs: Sequence[Pair],
    classes: ClassList,
    bands: tuple[int, ...] = RGB.numbers,
    sample: int = 16,
) -> list[str]:
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
    found = [item for report in reports for item in pair_entries(report, root, bands)]
    found += [
        item
        for item in set_entries(reports, classes, root)
        if item[0] in ("all-unchanged", "all-changed", "all-marked", "mixed-depth")
    ]
    return [str(finding) for finding in collect(found)]


def _image_keys(number: int, report: PairReport, root: Path) -> Iterator[ImageKey]:
    for file, fingerprint in zip(report.images, report.fingerprints, strict=True):
        if fingerprint is not None:
            path = relative(file.path, root)
            yield ImageKey(path, number, report.split, fingerprint.digest, fingerprint.thumbnail)
