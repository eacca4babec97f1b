"""Masks on disk that are to be compared: labels and predictions, paired by name and counted."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB, Bands
from datasets.classes import (
    CHANGE_CLASSES,
    SECOND_CLASSES,
    STANDARD,
    ClassList,
    Preset,
    classes_file,
    read_classes,
)
from datasets.images import valid_pixels
from datasets.labels import read_coded, read_label
from datasets.pairs import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    and_more,
    files_by_stem,
    index_pairs,
    label_folders,
    require_partners,
)
from datasets.splits import RASTER_SUFFIXES, choose_named, read_lines
from datasets.task import is_mask_folder, load_classes
from tools.scoring.statistics import PairCounts, count_change, count_pair, drop_one_sided
from utils.errors import DataError
from utils.files import read_json
from utils.parallel import ParallelMap
from utils.pictures import CHANGE_MASKS
from utils.text import progress

PairPaths = tuple[Path, ...]  # one mask per date, or a change mask alone


@dataclass(frozen=True)
class MaskJob:
    """The files of one pair: its labels, and its masks in each folder of predictions."""

    name: str
    label: PairPaths
    predictions: tuple[PairPaths, ...]
    images: PairPaths = ()  # whose pixels without data do not count


def find_classes(
    path: Path | None, label: Path, preset: Preset = STANDARD
) -> tuple[ClassList, str]:
    """Return the class list and where it comes from."""
    if preset is not STANDARD:
        return load_classes(label.absolute().parent, preset), "those of --preset"
    if path is not None:
        file = classes_file(path)
        return read_classes(file), str(file)
    for folder in (label, label.absolute().parent):
        if classes_file(folder).exists():
            return read_classes(classes_file(folder)), str(classes_file(folder))
    if is_mask_folder(label):
        return CHANGE_CLASSES, "the labels are change masks"
    return SECOND_CLASSES, "SECOND's"


def epoch_choice(folder: Path) -> str:
    """Return on which pairs the epoch was chosen that predicted a folder, where test.py tells."""
    return str(_told(folder).get("epoch_choice", ""))


def bands_read(folder: Path) -> tuple[int, ...]:
    """Return the bands that a folder was predicted from, where test.py tells, else 1 to 3."""
    with suppress(KeyError, TypeError, ValueError):
        return Bands(_told(folder)["bands"]).numbers
    return RGB.numbers


def _told(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(read_json(folder / "metrics.json"))
    return {}


def find_jobs(
    label: Path,
    predictions: Sequence[Path],
    names: Path | None,
    classes: ClassList,
    preset: Preset = STANDARD,
) -> list[MaskJob]:
    """List the pairs to score, by name; with a preset, labels are a split as it is published.

    Raises:
        DataError: a folder or file is missing, a file is too many, or a name is unknown.
    """
    labels, images = _find_labels(label, classes.is_binary, preset)
    found = [find_masks(folder, classes.is_binary) for folder in predictions]
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
    return [MaskJob(n, labels[n], tuple(masks[n] for masks in found), images[n]) for n in chosen]


def _find_labels(
    label: Path, binary: bool, preset: Preset
) -> tuple[dict[str, PairPaths], dict[str, PairPaths]]:
    """Return labels by name, and the images beside them."""
    if preset is not STANDARD:
        pairs = index_pairs(label, preset)
        if not pairs[0].labels:
            raise DataError(f"{label}: no labels in it; name a split that has them")
        if not (binary or preset.coded or pairs[0].labelled_dates == (1, 2)):
            raise DataError(f"{label}: labels of one date, where scores are of both")
        labels = {pair.name: tuple(pair.labels.values()) for pair in pairs}
        return labels, {pair.name: (pair.image1, pair.image2) for pair in pairs}
    labels = find_masks(label, binary)
    places = [label / name for name in IMAGE_FOLDERS if label_folders(label)]
    files = [files_by_stem(place, RASTER_SUFFIXES) for place in places]
    return labels, {name: tuple(of[name] for of in files if name in of) for name in labels}


def find_masks(folder: Path, binary: bool = False) -> dict[str, PairPaths]:
    """Return the masks of both dates by name, from ``label1/label2`` or else ``im1/im2``.

    Those of ``binary`` sets are change masks: in ``label1`` and ``label2``, in ``label``, in
    ``change``, or in the folder itself.

    Raises:
        DataError: the folders are missing or empty, or a mask has no partner.
    """
    if binary:
        alone = CHANGE_MASKS if (folder / CHANGE_MASKS).is_dir() else "."
        names = tuple(label_folders(folder).values()) or (alone,)
    else:
        pairs = (LABEL_FOLDERS, IMAGE_FOLDERS)
        found = [pair for pair in pairs if any((folder / name).is_dir() for name in pair)]
        if not found:
            raise DataError(f"{folder}: no folders im1 and im2, or label1 and label2, in it")
        names = found[0]
    places = [folder / name for name in names]
    for place in places:
        if not place.is_dir():
            raise DataError(
                f"{place}: no such folder; it needs masks of both dates, or change masks"
            )
    files = [files_by_stem(place, IMAGE_SUFFIXES) for place in places]
    require_partners(files[0], files[-1], places[0], places[-1])
    if not files[0]:
        raise DataError(f"{places[0]}: no masks in it; expected PNG files")
    return {name: tuple(of[name] for of in files) for name in files[0]}


def read_names(path: Path, known: Iterable[str]) -> list[str]:
    """Read names from a text file, one a line, with or without folder and suffix."""
    return choose_named(path, read_lines(path), {name: name for name in known}, "has no label")


def read_maps(paths: PairPaths, classes: ClassList, preset: Preset = STANDARD) -> list[np.ndarray]:
    """Read the masks of a pair, or its labels as a preset codes them: (H, W) uint8 indices."""
    if preset.coded:
        return list(read_coded(paths, preset).values())
    return [read_label(path, classes) for path in paths]


@dataclass(frozen=True)
class MaskCounter:
    """Reads the masks of a pair and counts them."""

    classes: ClassList
    one_sided: str  # ``error``, ``unchanged`` or ``keep`` pixels predicted to change at one date
    bands: tuple[int, ...] = RGB.numbers  # whose gaps count nowhere
    preset: Preset = STANDARD  # of the labels

    def __call__(self, job: MaskJob) -> list[PairCounts]:
        """Return the counts of the pair for each folder of predictions.

        Raises:
            DataError: a mask is unreadable, holds what is no class, or differs in size, or the
                dates disagree on what changed.
        """
        masks = {job.label: read_maps(job.label, self.classes, self.preset)}
        for paths in job.predictions:
            masks[paths] = masks.get(paths) or read_maps(paths, self.classes)
        height, width = size = masks[job.label][0].shape
        for path, mask in ((p, m) for each in masks.items() for p, m in zip(*each, strict=False)):
            if mask.shape != size:
                raise DataError(
                    f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, but {job.label[0]} has "
                    f"{width} × {height}; write masks of the labels' size"
                )
        valid = None
        with suppress(DataError):  # another program may have predicted what is not read here
            valid = valid_pixels(job.images, self.bands)
        if valid is not None and valid.shape == size:
            masks = {paths: [mask[valid] for mask in each] for paths, each in masks.items()}
        return [self._count(job.label, prediction, masks) for prediction in job.predictions]

    def _count(
        self, label: PairPaths, prediction: PairPaths, masks: Mapping[PairPaths, list[np.ndarray]]
    ) -> PairCounts:
        labels, predictions = masks[label], masks[prediction]
        if self.classes.is_binary:
            for paths in (label, prediction):
                differing = int((masks[paths][0] != masks[paths][-1]).sum())
                if differing:
                    raise _disagreement(paths, differing, "one, both dates have to be equal")
            return count_change(predictions[0], labels[0])
        pair = count_pair(*predictions, *labels, self.classes.num_classes)
        in_label, in_prediction, _ = pair.one_sided
        if in_label and label != prediction:  # a report without labels has predictions alone
            raise _disagreement(label, in_label, "the labels or leave the pair out with --names")
        if in_prediction and self.one_sided == "error":
            remedy = "the masks or choose a rule with --one-sided"
            raise _disagreement(prediction, in_prediction, remedy)
        if in_prediction and self.one_sided == "unchanged":
            pair = count_pair(*drop_one_sided(*predictions), *labels, self.classes.num_classes)
        return pair


def _disagreement(paths: PairPaths, pixels: int, remedy: str) -> DataError:
    return DataError(
        f"{paths[0]} and {paths[-1]}: disagree on what changed in {pixels} pixels "
        f"(0 in one alone); correct {remedy}"
    )


def count_all(
    jobs: Sequence[MaskJob], counter: MaskCounter, workers: int
) -> list[list[PairCounts]]:
    """Count all pairs, in several processes where it pays; per folder of predictions one list."""
    rows = list(progress(ParallelMap(counter, jobs, workers), "score", unit="pair"))
    return [list(column) for column in zip(*rows, strict=True)]
