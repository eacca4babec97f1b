"""A data set looked at before training: all files, all labels, copies between the splits."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB
from datasets.classes import STANDARD, ClassList, Preset
from datasets.labels import COLOR_DISTANCE
from datasets.pairs import Pair
from datasets.splits import AS_THE_DATA_SUGGESTS, Split, SplitOptions, divided_copies
from datasets.statistics import statistics_to_dict
from tools.checking.duplicates import MAX_HAMMING, find_copies
from tools.checking.findings import Entry, Finding, collect, pair_entries, set_entries
from tools.checking.pair_report import PairReport, inspect_pair, sum_images
from tools.checking.scan import (
    UNUSED,
    assign_splits,
    differing_label_entries,
    name_entries,
    scan_dataset,
)
from utils.parallel import ParallelMap
from utils.text import progress


@dataclass(frozen=True)
class CheckOptions:
    """How a data set is looked at: the options of that name of tools/check_data.py."""

    split: SplitOptions = AS_THE_DATA_SUGGESTS
    bands: tuple[int, ...] = RGB.numbers
    color_distance: int = COLOR_DISTANCE
    hash_distance: int = MAX_HAMMING
    workers: int = 1
    preset: Preset = STANDARD


USUAL = CheckOptions()


@dataclass
class Report:
    """What `inspect_dataset` found."""

    root: Path
    classes: ClassList
    bands: tuple[int, ...]  # to be used, numbers from 1
    pairs: list[PairReport]  # in the order of folders and names
    findings: list[Finding]  # errors first

    @property
    def splits(self) -> list[str]:
        """The splits there are, in order."""
        return list(dict.fromkeys(report.split for report in self.pairs))

    def dates(self, split: str) -> tuple[int, ...]:
        """Return the dates whose classes a split's labels name."""
        if self.classes.is_binary:
            return ()
        found = {date for r in self.pairs if r.split == split for date in r.pair.labelled_dates}
        return tuple(sorted(found))

    def transitions(self, split: str | None = None, both_dates: bool = False) -> np.ndarray:
        """Return the summed (C + 1, C + 1) class counts, date 1 by date 2, of all or one split.

        A single label stands for both dates, unless only pairs with ``both_dates`` are asked for.
        """
        total = np.zeros((len(self.classes.names),) * 2, dtype=np.int64)
        for report in self.pairs:
            of_both = len(report.labels) == 2 and not self.classes.is_binary
            wanted = split in (None, report.split) and (of_both or not both_dates)
            if wanted and report.transitions is not None:
                total += report.transitions
        return total

    def class_shares(self, split: str) -> np.ndarray:
        """Return the percent of a split's changed area that each class covers: (2 dates, C)."""
        counts = self.transitions(split)
        of_dates = np.stack([counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]])
        return 100 * of_dates / np.maximum(1, of_dates.sum(axis=1, keepdims=True))

    def band_statistics(self) -> dict[str, Any] | None:
        """Return mean and standard deviation of each band over both dates of the training pairs,
        and of each date in ``dates``.

        None where there are no readable training images, or some of other bands or depths.
        """
        pairs = [report.images for report in self.pairs if report.split == "train"]
        both = sum_images(file for images in pairs for file in images)
        if both is None:
            return None
        dates = [sum_images(images[date] for images in pairs) for date in (0, 1)]
        read = sum(file.band_sums is not None for images in pairs for file in images)
        return statistics_to_dict(*both, read // 2) | {
            "dates": [d and {"mean": d[0].mean(), "std": d[0].std()} for d in dates]
        }


def scan_names(
    root: Path, split: SplitOptions = AS_THE_DATA_SUGGESTS, preset: Preset = STANDARD
) -> tuple[list[Pair], dict[str, str], list[tuple[str, Entry]]]:
    """Return a data set's complete pairs, the split of each by its id, and what names are wrong.

    Raises:
        DataError: there is no pair below ``root``, or the split does not fit.
        OptionError: the split asks for labels in ROOT/val that are not there.
    """
    scans = scan_dataset(root, preset)
    found = [item for name in scans for item in name_entries(root / name, scans[name])]
    found += differing_label_entries(root, scans, split, preset)
    pairs = [pair for scan in scans.values() for pair in scan.pairs]
    split_of = assign_splits(scans, split)
    train = tuple(name for name, split in split_of.items() if split == "train")
    rest = tuple(name for name, split in split_of.items() if split not in ("train", UNUSED))
    copies = divided_copies(Split("", train, rest))
    return pairs, split_of, found + [("leak-copies", Entry(names)) for names in copies]


def inspect_dataset(root: Path, classes: ClassList, options: CheckOptions = USUAL) -> Report:
    """Look at every file of a data set; `scan_names` may raise, nothing in the files does."""
    root = Path(root)
    pairs, split_of, found = scan_names(root, options.split, options.preset)
    how = {"color_distance": options.color_distance, "bands": options.bands}
    work = partial(inspect_pair, classes=classes, **how)
    reads = ParallelMap(work, pairs, options.workers)
    reports = list(progress(reads, "checking", unit="pairs"))
    if classes.is_binary:  # either date says what changed
        found = [item for item in found if item[0] != "one-date"]
    for report in reports:
        report.split = split_of[report.pair.id]
        found += pair_entries(report, options.bands)
    used = [report for report in reports if report.split != UNUSED]
    found += find_copies(used, options.hash_distance)
    found += set_entries(reports, classes, options.bands)
    return Report(root, classes, options.bands, reports, collect(found))
