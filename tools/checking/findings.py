"""Everything that can be wrong with a data set, and what to do about it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB
from datasets.classes import ClassList, suspect_order
from datasets.images import DTYPES, lacks_bands
from datasets.labels import (
    BINARY,
    CONTRADICTING_COLORS,
    FOREIGN_COLORS,
    FOREIGN_VALUES,
    NEAR_COLORS,
    OTHER_MODE,
    READABLE,
)
from tools.checking.pair_report import FileReport, PairReport, sum_images
from utils.places import places_apart

ERROR, WARNING, NOTE = "error", "warning", "note"

# kind: (level, what, remedy). Errors stop training or make its scores worthless; a
# note tells what to expect.
KINDS: dict[str, tuple[str, str, str]] = {
    "unreadable": (ERROR, "files that cannot be decoded",
        "copy them again, or remove their pairs"),
    "no-partner": (ERROR, "files without a partner of the same name",
        "add the missing files, or remove these"),
    "partner-case": (ERROR, "partners whose names differ in case",
        "rename them alike"),
    "partner-form": (ERROR, "partners whose names are spelled in two forms of Unicode",
        "rename one: an accent is composed in one and decomposed in the other"),
    "unread-pair": (ERROR, "pairs in formats that are not read",
        "save them as PNG, JPEG, BMP, TIFF or NPY, or move them elsewhere"),
    "name-case": (WARNING, "names that differ only in case; Windows and macOS keep one of them",
        "rename one"),
    "same-stem": (ERROR, "names that occur twice with different suffixes",
        "remove one of each"),
    "ignored-files": (WARNING, "files that are not read",
        "save images as PNG, JPEG, BMP, TIFF or NPY, or move other files elsewhere"),
    "no-labels": (ERROR, "a training set without label1 and label2, and without label",
        "add class labels, of both dates if there are, or change masks in label"),
    "labels-differ": (ERROR, "labels of each date in train or val, and change masks in the other",
        "use the same folders in both, or leave val out with --split every-10th, random or k-fold"),
    "one-date": (NOTE, "labels of one date alone",
        "nothing if intended: that date trains the semantics and is scored; label.py needs both"),
    "size-mismatch": (ERROR, "files of a pair that differ in size",
        "co-register each pair to one size"),
    "mixed-sizes": (WARNING, "images of several sizes in one split",
        "train with --crop-size N, at most the smallest side"),
    "bit-depth": (ERROR, "images whose values are not whole numbers of 8 or 16 bits",
        "save all with one scale, as gdal_translate -ot UInt16 -scale LOW HIGH 0 65535 does"),
    "mixed-depth": (ERROR, "images of 8 and of 16 bits in one data set",
        "save all of one depth, with one scale"),
    "band-count": (ERROR, "images without some of the chosen bands (1, 2, 3 without --bands)",
        "choose with --bands, here and in train.py, what all images have; or save them alike"),
    "mixed-modes": (WARNING, "images of several modes in one folder",
        "nothing if intended: 8-bit images are read as RGB; else save them alike"),
    "no-data": (NOTE, "images with pixels that the file calls nodata, masked or transparent",
        "nothing if intended: losses, scores and statistics leave them out, masks are 0 there"),
    "orientation": (WARNING, "files with an orientation tag, read upright as viewers show them",
        "look whether labels fit; nothing if they were drawn on what a viewer shows"),
    "places-differ": (ERROR, "pairs whose dates lie at different places on the map",
        "warp both to one grid, as gdalwarp -t_srs … -te … -tr … does"),
    "label-place": (WARNING, "labels that lie elsewhere on the map than their image",
        "rasterise them on the grid of the images"),
    "dates-differ": (WARNING, "splits whose dates differ as a whole, not here and there",
        "save both dates with one scale and of one kind; nothing if the sensors are so different"),
    "blank-image": (WARNING, "images of a single colour",
        "remove the pairs if these are tiles without data"),
    "same-image": (WARNING, "pairs with the same image at both dates",
        "put the right second image there, or remove the pair"),
    "label-near-colours": (ERROR, "labels whose colours are near class colours (lossy compression)",
        "write a clean copy with --convert OUT; raise --color-distance if pixels stay beyond it"),
    "label-binary": (ERROR, "labels with only 0 and 255: a change mask without classes",
        "give semantic labels; or, for change alone, remove classes.json or list one class in it"),
    "label-values": (ERROR, "labels with values beyond the class list",
        'list the classes in classes.json, or --convert OUT --class-map FILE, as {"255": 0}'),
    "label-colours": (ERROR, "labels with colours of no class",
        'list the colours in classes.json, or --convert OUT --class-map FILE, as {"#ff8000": 5}'),
    "label-palette": (ERROR, "labels whose colours contradict their indices",
        "save them as RGB, or --convert OUT --class-map FILE with the colours alone (#rrggbb)"),
    "label-mode": (ERROR, "labels in a mode that is no label format",
        "save class indices as 8-bit grey PNG, or try --convert OUT"),
    "mixed-formats": (WARNING, "labels of several formats in one folder",
        "nothing if intended; --convert OUT writes all as index PNGs"),
    "labels-disagree": (ERROR, "pairs whose two labels disagree on what changed",
        "correct the masks; or --convert OUT --resolve-disagreement makes such pixels unchanged"),
    "same-class": (WARNING, "pairs with changed pixels of the same class at both dates",
        "check the masks; --convert OUT --unchanged-where-equal makes such pixels unchanged"),
    "all-unchanged": (ERROR, "splits in whose labels nothing changed",
        "check that the labels are class masks, 0 only where nothing changed"),
    "all-changed": (ERROR, "labels that give every pixel a class, so that everything counts as "
        "changed", "labels must be 0 where nothing changed: --convert OUT --unchanged-where-equal"),
    "all-marked": (ERROR, "change masks in which every pixel changed",
        "check the masks: 0 where nothing changed, else 255 (or 1); remove pairs without any 0"),
    "class-missing": (WARNING, "classes that no training label contains",
        "take them out of classes.json, or add pairs that show them"),
    "class-order": (WARNING, "class shares that speak for another order of the classes",
        "look at the labels before you train"),
    "leak-copies": (ERROR, "augmented copies of one tile, trained on and held out",
        "keep a tile and its copies on one side"),
    "leak-exact": (ERROR, "the same image in two splits: scores on it are worthless",
        "remove the pairs from one of the splits"),
    "leak-near": (WARNING, "almost the same image in two splits",
        "look at them in suspicious.png; remove the pairs from one split if they show one place"),
    "duplicate-exact": (WARNING, "the same image in several pairs of a split",
        "remove the surplus pairs, unless one image belongs to several dates on purpose"),
    "duplicate-near": (WARNING, "almost the same image in several pairs of a split",
        "look at them in suspicious.png; keep a place with all its copies in one split"),
}  # fmt: skip

LABEL_KINDS = {
    NEAR_COLORS: "label-near-colours",
    BINARY: "label-binary",
    FOREIGN_VALUES: "label-values",
    FOREIGN_COLORS: "label-colours",
    CONTRADICTING_COLORS: "label-palette",
    OTHER_MODE: "label-mode",
}

SHOWN = 4  # entries in the text; the JSON has all
DATES_APART, DATES_SCALED = 2, 5  # deviations between means; ratio of deviations
MANY = 0.5  # share of the pairs from which something is said of the whole set


@dataclass(frozen=True)
class Entry:
    """One occurrence of a finding: the files it concerns, and figures in words.

    ``pairs`` are the ids of the pairs, for pictures; empty where no pair is complete.
    """

    files: tuple[str, ...]
    detail: str = ""
    pairs: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f" and {len(self.files) - SHOWN} more" if len(self.files) > SHOWN else ""
        files = " + ".join(self.files[:SHOWN]) + more
        return f"{files} ({self.detail})" if files and self.detail else files or self.detail


@dataclass(frozen=True)
class Finding:
    """Something wrong, everywhere it occurs; level, what and remedy are those of `KINDS`."""

    kind: str
    level: str
    what: str
    remedy: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        more = len(self.entries) - SHOWN
        lines = [
            f"{self.level.upper()} {self.kind}, {len(self.entries)} ×: {self.what}",
            *(f"    {entry}" for entry in self.entries[:SHOWN]),
            *([f"    and {more} more"] if more > 0 else []),
            f"  → {self.remedy}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, all entries included."""
        entries = [{"files": list(e.files), "detail": e.detail} for e in self.entries]
        return {
            "kind": self.kind, "level": self.level, "what": self.what, "remedy": self.remedy,
            "count": len(entries), "entries": entries,
        }  # fmt: skip


Found = Iterable[tuple[str, Entry]]  # kinds, and where they occur


def collect(found: Found) -> list[Finding]:
    """Group what was found by kind, errors first and notes last, in the order of `KINDS`."""
    entries: dict[str, list[Entry]] = {}
    for kind, entry in found:
        entries.setdefault(kind, []).append(entry)
    findings = [
        Finding(kind, *KINDS[kind], tuple(entries[kind])) for kind in KINDS if kind in entries
    ]
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.level))


def relative(path: Path, root: Path) -> str:
    """Return a path below the data set's root, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def pair_entries(report: PairReport, bands: Sequence[int] = RGB.numbers) -> Found:
    """Yield what is wrong within one pair; ``bands`` are to be used, numbers from 1."""

    def entry(files: Sequence[FileReport], detail: str = "") -> Entry:
        return Entry(tuple(file.name for file in files), detail, (report.pair.id,))

    for file in report.images + report.labels:
        for kind, detail in _file_faults(file, bands):
            yield kind, entry([file], detail)
    first, *others = report.images + report.labels
    for file in others:
        apart = first.header and file.header and places_apart(first.header.place, file.header.place)
        if apart:
            kind = "label-place" if file.label_format else "places-differ"
            yield kind, entry([first, file], apart)
    decoded = [file for file in report.images + report.labels if not file.error]
    sizes = sorted({file.size for file in decoded})
    if len(sizes) > 1:
        said = ", ".join(f"{width} × {height}" for height, width in sizes)
        yield "size-mismatch", entry(decoded, said)
    if report.same_image:
        said = f"yet {report.changed:.1%} labelled as changed" if report.changed else ""
        yield "same-image", entry(report.images, said)
    counts = report.transitions
    if counts is None or report.all_marked:
        return
    disagreeing, same = counts[0, 1:].sum() + counts[1:, 0].sum(), np.trace(counts[1:, 1:])
    if disagreeing:
        yield "labels-disagree", entry(report.labels, f"{disagreeing} pixels")
    if same and len(report.labels) == 2 and len(counts) > 2:  # change masks name no classes
        yield "same-class", entry(report.labels, f"{same} pixels")


def _file_faults(file: FileReport, bands: Sequence[int]) -> Iterable[tuple[str, str]]:
    """Yield what is wrong with one file, and figures in words."""
    if file.error:
        yield "unreadable", file.error
    if file.header is not None and file.header.orientation != 1:
        yield "orientation", f"tag {file.header.orientation}"
    if file.label_format in LABEL_KINDS:
        yield LABEL_KINDS[file.label_format], file.detail
    if file.label_format or file.header is None:
        return
    if file.header.dtype not in DTYPES:
        yield "bit-depth", file.header.dtype
    elif lacks_bands(file.header, bands):
        yield "band-count", f"{file.header.bands} of {file.bits} bits"
    if file.gaps:
        yield "no-data", f"{file.gaps:.1%} of the pixels"
    if file.thumbnail is not None and np.ptp(file.thumbnail) == 0:
        yield "blank-image", ""


def set_entries(
    reports: Sequence[PairReport], classes: ClassList, bands: Sequence[int] = RGB.numbers
) -> Found:
    """Yield what only shows when many pairs are looked at together; ``bands`` are to be used."""
    for split in dict.fromkeys(report.split for report in reports):
        of_split = [report for report in reports if report.split == split]
        said = _dates_apart(of_split, bands)
        if said:
            files = [report.images[date].folder for date in (0, 1) for report in of_split[:1]]
            yield "dates-differ", Entry(tuple(files), f"{split}: {said}")
    labelled = [report for report in reports if report.transitions is not None]
    full = [report for report in labelled if report.all_marked]
    if labelled and len(full) > MANY * len(labelled):
        kind = "all-marked" if classes.is_binary else "all-changed"
        for report in full:
            yield kind, Entry(tuple(file.name for file in report.labels), "", (report.pair.id,))
    for split in dict.fromkeys(report.split for report in labelled):
        of_split = [report for report in labelled if report.split == split]
        if len(of_split) <= MANY * sum(bool(r.labels) for r in reports if r.split == split):
            continue  # too few could be read to say that something never occurs
        total = sum(report.transitions for report in of_split)
        counts = total.sum(axis=0) + total.sum(axis=1)
        if not counts[1:].any():
            files = tuple(report.labels[0].name for report in of_split)
            yield "all-unchanged", Entry(files, f"{split}, {len(of_split)} pairs")
        elif split == "train":
            for index in np.flatnonzero(counts[1:] == 0) + 1:
                yield "class-missing", Entry((), f"{classes.names[index]}, index {index}")
    if labelled and not classes.is_binary:
        total = sum(report.transitions for report in labelled)
        order = suspect_order(classes, total.sum(axis=0) + total.sum(axis=1))
        if order:
            yield "class-order", Entry((), order)
    yield from _mixtures(reports)


def _dates_apart(reports: Sequence[PairReport], bands: Sequence[int]) -> str:
    """Say in what all images of one date differ from those of the other; "" for nothing."""
    found = [sum_images(report.images[date] for report in reports) for date in (0, 1)]
    if None in found or found[0][1] != found[1][1]:
        return ""  # several kinds in one folder, and several depths, are findings of their own
    sums = [of_date for of_date, _ in found]
    grey = [len({*s.sums[:3]}) == len({*s.squares[:3]}) == 1 for s in sums]
    if grey[0] != grey[1]:
        return "grey at date {}, colour at date {}".format(*((1, 2) if grey[0] else (2, 1)))
    values = [zip(s.mean(), s.std(), strict=True) for s in sums]
    for band, ((mean1, std1), (mean2, std2)) in enumerate(zip(*values, strict=False), start=1):
        low, high = sorted((std1, std2))
        shifted = abs(mean1 - mean2) > DATES_APART * math.sqrt((low**2 + high**2) / 2)
        if band in bands and (shifted or high > DATES_SCALED * low):
            return (
                f"band {band} has mean {mean1:.1f}, deviation {std1:.1f} at date 1, but mean "
                f"{mean2:.1f}, deviation {std2:.1f} at date 2"
            )
    return ""


def _mixtures(reports: Sequence[PairReport]) -> Found:
    """Yield what differs within a split, a folder or the data set, and should not."""
    met: dict[tuple[str, str], dict[str, list[str]]] = {}
    for report in reports:
        for file in report.images + report.labels:
            facts = []
            if file.header is not None and not file.label_format:
                facts.append(("mixed-sizes", report.split, f"{file.size[1]} × {file.size[0]}"))
                facts.append(("mixed-modes", file.folder, file.mode))
                if file.header.dtype in DTYPES:
                    facts.append(("mixed-depth", "this data set", f"{file.bits} bits"))
            elif file.label_format in READABLE:
                facts.append(("mixed-formats", file.folder, file.label_format))
            for kind, place, value in facts:
                met.setdefault((kind, place), {}).setdefault(value, []).append(file.name)
    for (kind, place), files_by_value in met.items():
        usual = max(files_by_value, key=lambda value: len(files_by_value[value]))
        for value, files in files_by_value.items():
            if value != usual:
                said = f"{len(files)} × {value}, but {usual} is usual in {place}"
                yield kind, Entry(tuple(files), said)
