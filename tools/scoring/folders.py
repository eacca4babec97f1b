"""Masks on disk that are to be compared: labels and predictions, paired by name and counted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.classes import ClassList
from datasets.labels import read_label
from datasets.pairs import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    and_more,
    files_by_stem,
    label_folders,
    require_partners,
)
from datasets.splits import choose_named, read_lines
from tools.scoring.statistics import PairCounts, count_change, count_pair, drop_one_sided
from utils.errors import DataError
from utils.parallel import ParallelMap
from utils.pictures import CHANGE_MASKS
from utils.text import progress

PairPaths = tuple[Path, ...]  # one mask per date, or a change mask alone


@dataclass(frozen=True)
class MaskJob:
    """The files of one pair: its labels, and its masks in each folder of predictions.

    Change masks without classes are one file each, class masks one per date.
    """

    name: str
    label: PairPaths
    predictions: tuple[PairPaths, ...]


def find_jobs(
    label: Path, predictions: Sequence[Path], names: Path | None, binary: bool = False
) -> list[MaskJob]:
    """List the pairs to score, by name; arguments beside the folders as `find_masks`.

    Raises:
        DataError: a folder or file is missing, a file is too many, or a name is unknown.
    """
    labels = find_masks(label, binary)
    found = [find_masks(folder, binary) for folder in predictions]
    chosen = read_names(names, labels) if names else sorted(labels)
    for folder, masks in zip(predictions, found, strict=True):
        missing = [name for name in chosen if name not in masks]
        if missing:
            raise DataError(
                f"{folder}: no prediction for {labels[missing[0]][0]}{and_more(missing)}; predict "
                "all pairs, or list those to score with --names"
            )
        extra = sorted(set(masks) - set(labels))
        if extra and not names:
            raise DataError(
                f"{masks[extra[0]][0]}: no label in {label}{and_more(extra)}; remove the file, or "
                "list the pairs to score with --names"
            )
    return [MaskJob(n, labels[n], tuple(masks[n] for masks in found)) for n in chosen]


def find_masks(folder: Path, binary: bool = False) -> dict[str, PairPaths]:
    """Return the masks of both dates by name, from ``label1/label2`` or else ``im1/im2``.

    Args:
        folder: holds the masks.
        binary: look for change masks instead: in ``label1`` and ``label2``, in ``label``, in
            ``change``, or in the folder itself.

    Raises:
        DataError: the folders are missing or empty, or a mask has no partner.
    """
    if binary:
        return _find_change_masks(folder)
    pair = next(
        (
            pair
            for pair in (LABEL_FOLDERS, IMAGE_FOLDERS)
            if any((folder / name).is_dir() for name in pair)
        ),
        None,
    )
    if pair is None:
        raise DataError(f"{folder}: no folders im1 and im2, or label1 and label2, in it")
    dates: list[dict[str, Path]] = []
    for name in pair:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name}: no such folder; masks of both dates are needed")
        dates.append(files_by_stem(folder / name, IMAGE_SUFFIXES))
    require_partners(*dates, *(folder / name for name in pair))
    if not dates[0]:
        raise DataError(f"{folder / pair[0]}: no masks in it; expected PNG files")
    return {name: (dates[0][name], dates[1][name]) for name in dates[0]}


def _find_change_masks(folder: Path) -> dict[str, PairPaths]:
    masks = [folder / CHANGE_MASKS] if (folder / CHANGE_MASKS).is_dir() else [folder]
    places = [folder / name for name in label_folders(folder).values()] or masks
    if not places[0].is_dir():
        raise DataError(f"{folder}: no such folder; expected change masks in it, or in change")
    files = [files_by_stem(place, IMAGE_SUFFIXES) for place in places]
    if not files[0]:
        raise DataError(f"{places[0]}: no masks in it; expected PNG files, or a folder change")
    require_partners(files[0], files[-1], places[0], places[-1])
    return {name: tuple(of[name] for of in files) for name in files[0]}


def read_names(path: Path, known: Collection[str]) -> list[str]:
    """Read names from a text file, one a line, with or without folder and suffix.

    Raises:
        DataError: the file is unreadable or empty, or a name repeats or is not known.
    """
    return choose_named(path, read_lines(path), {name: name for name in known}, "has no label")


class MaskCounter:
    """Reads the masks of a pair and counts them.

    Args:
        classes: the class list.
        one_sided: what to do with pixels predicted to change at one date alone: ``error``,
            ``unchanged`` or ``keep``.
    """

    def __init__(self, classes: ClassList, one_sided: str) -> None:
        self.classes = classes
        self.one_sided = one_sided

    def __call__(self, job: MaskJob) -> list[PairCounts]:
        """Return the counts of the pair for each folder of predictions.

        Raises:
            DataError: a mask is unreadable, holds what is no class, or differs in size, or the
                dates disagree on what changed.
        """
        if self.classes.is_binary:
            return self._count_change(job)
        label1, label2 = self._read(job.label, job.label[0])
        counts = []
        for paths in job.predictions:
            masks = self._read(paths, job.label[0], label1.shape)
            pair = count_pair(*masks, label1, label2, self.classes.num_classes)
            if pair.one_sided_label:
                raise DataError(
                    f"{job.label[0]} and {job.label[1]}: disagree on what changed in "
                    f"{pair.one_sided_label} pixels (0 in one, a class in the other); correct the "
                    "labels or leave the pair out with --names"
                )
            if pair.one_sided_prediction and self.one_sided == "error":
                raise DataError(
                    f"{paths[0]} and {paths[1]}: disagree on what changed in "
                    f"{pair.one_sided_prediction} pixels (0 in one, a class in the other); correct "
                    "the masks or choose a rule with --one-sided"
                )
            if pair.one_sided_prediction and self.one_sided == "unchanged":
                masks = drop_one_sided(*masks)
                pair = count_pair(*masks, label1, label2, self.classes.num_classes)
            counts.append(pair)
        return counts

    def _count_change(self, job: MaskJob) -> list[PairCounts]:
        label = self._read_change(job.label, job.label[0])
        masks = [self._read_change(p, job.label[0], label.shape) for p in job.predictions]
        return [count_change(mask, label) for mask in masks]

    def _read_change(
        self, paths: PairPaths, reference: Path, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        masks = self._read(paths, reference, shape)
        disagreeing = int((masks[0] != masks[-1]).sum())
        if disagreeing:
            raise DataError(
                f"{paths[0]} and {paths[-1]}: disagree on what changed in {disagreeing} pixels; "
                "change masks of both dates must be equal"
            )
        return masks[0]

    def _read(
        self, paths: PairPaths, reference: Path, shape: tuple[int, ...] | None = None
    ) -> tuple[np.ndarray, ...]:
        masks = []
        for path in paths:
            mask = read_label(path, self.classes)
            shape = shape or mask.shape
            if mask.shape != shape:
                raise DataError(
                    f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, but {reference} has "
                    f"{shape[1]} × {shape[0]}; write masks of the labels' size"
                )
            masks.append(mask)
        return tuple(masks)


def count_all(
    jobs: Sequence[MaskJob], counter: MaskCounter, workers: int
) -> list[list[PairCounts]]:
    """Count all pairs, in several processes where it pays; per folder of predictions one list.

    Raises:
        DataError: as `MaskCounter`.
        UserError: one of the processes was killed.
    """
    rows = list(progress(ParallelMap(counter, jobs, workers), "score", unit="pair"))
    return [list(column) for column in zip(*rows, strict=True)]
