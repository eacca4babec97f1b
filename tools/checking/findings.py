"""Everything that can be wrong with a data set, and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.bands import RGB
from datasets.classes import ClassList
from datasets.images import DTYPES, lacks_bands
from datasets.labels import (
    BINARY,
    CONTRADICTING_PALETTE,
    FOREIGN_COLORS,
    FOREIGN_VALUES,
    NEAR_COLORS,
    OTHER_MODE,
    READABLE,
)
from tools.checking.duplicates import Copies
from tools.checking.pair_report import FileReport, PairReport

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
        "save them as uint8 or uint16 with the range that suits the sensor"),
    "mixed-depth": (ERROR, "images of 8 and of 16 bits in one data set",
        "save all of one depth, with one scale"),
    "band-count": (ERROR, "images without some of the chosen bands (1, 2, 3 without --bands)",
        "choose with --bands, here and in train.py, what all images have; or save them alike"),
    "mixed-modes": (WARNING, "images of several modes in one folder",
        "nothing if intended: 8-bit images are read as RGB; else save them alike"),
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
    "label-palette": (ERROR, "palette labels whose colours contradict their indices",
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
    "leak-exact": (ERROR, "the same image in two splits: scores on it are worthless",
        "remove the pairs from one of the splits"),
    "leak-near": (WARNING, "almost the same image in two splits",
        "look at them in suspicious.png; remove the pairs from one split if they show one place"),
    "duplicate-exact": (WARNING, "the same image in several pairs of a split",
        "remove the surplus pairs, unless one image belongs to several dates on purpose"),
    "duplicate-near": (WARNING, "almost the same image in several pairs of a split",
        "look at them in suspicious.png; keep a place with all its copies in one split"),
}  # fmt: skip

SHOWN = 4  # entries in the text; the JSON has all

MANY = 0.5  # share of the pairs from which something is said of the whole set

LABEL_KINDS = {
    NEAR_COLORS: "label-near-colours",
    BINARY: "label-binary",
    FOREIGN_VALUES: "label-values",
    FOREIGN_COLORS: "label-colours",
    CONTRADICTING_PALETTE: "label-palette",
    OTHER_MODE: "label-mode",
}


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
    """Something wrong, everywhere it occurs."""

    kind: str
    entries: tuple[Entry, ...]

    @property
    def level(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.kind][0]

    def __str__(self) -> str:
        _, what, remedy = KINDS[self.kind]
        shown = ", ".join(str(entry) for entry in self.entries[:SHOWN])
        more = f" and {len(self.entries) - SHOWN} more" if len(self.entries) > SHOWN else ""
        return f"{what}: {shown}{more}; {remedy}"

    def lines(self) -> list[str]:
        """Return the finding for reading: what, one line per entry, remedy."""
        level, what, remedy = KINDS[self.kind]
        more = len(self.entries) - SHOWN
        return [
            f"{level.upper()} {self.kind}, {len(self.entries)} ×: {what}",
            *(f"    {entry}" for entry in self.entries[:SHOWN]),
            *([f"    and {more} more"] if more > 0 else []),
            f"  → {remedy}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, all entries included."""
        level, what, remedy = KINDS[self.kind]
        entries = [{"files": list(e.files), "detail": e.detail} for e in self.entries]
        return {
            "kind": self.kind, "level": level, "what": what, "remedy": remedy,
            "count": len(entries), "entries": entries,
        }  # fmt: skip


def collect(found: Iterable[tuple[str, Entry]]) -> list[Finding]:
    """Group (kind, entry) by kind, errors first and notes last, in the order of `KINDS`."""
    by_kind: dict[str, list[Entry]] = {}
    for kind, entry in found:
        by_kind.setdefault(kind, []).append(entry)
    order = list(KINDS)
    kinds = sorted(
        by_kind,
        key=lambda kind: (KINDS[kind][0] != ERROR, KINDS[kind][0] == NOTE, order.index(kind)),
    )
    return [Finding(kind, tuple(by_kind[kind])) for kind in kinds]


def pair_entries(
    report: PairReport, root: Path, bands: Sequence[int] = RGB.numbers
) -> Iterable[tuple[str, Entry]]:
    """Yield what is wrong within one pair; file names are relative to ``root``.

    Args:
        report: of the pair.
        root: the data set.
        bands: numbers of the bands that are to be used, from 1.
    """

    def entry(files: Sequence[FileReport], detail: str = "") -> Entry:
        return Entry(tuple(relative(file.path, root) for file in files), detail, (report.pair.id,))

    files = report.images + report.labels
    for file in files:
        if file.error:
            yield "unreadable", entry([file], file.error)
    sizes = {file.size for file in files if not file.error}
    if len(sizes) > 1:
        said = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
        yield "size-mismatch", entry([file for file in files if not file.error], said)
    for file, fingerprint in zip(report.images, report.fingerprints, strict=True):
        if file.header is not None and file.header.dtype not in DTYPES:
            yield "bit-depth", entry([file], file.header.dtype)
        elif file.header is not None and lacks_bands(file.header, bands):
            yield "band-count", entry([file], f"{file.header.bands} of {file.bits} bits")
        if fingerprint is not None and np.ptp(fingerprint.thumbnail) == 0:
            yield "blank-image", entry([file])
    if report.same_image:
        said = f"yet {report.changed:.1%} labelled as changed" if report.changed else ""
        yield "same-image", entry(report.images, said)
    for file, name, detail in zip(report.labels, report.formats, report.details, strict=True):
        if name in LABEL_KINDS:
            yield LABEL_KINDS[name], entry([file], detail)
    if report.disagreeing and not every_pixel_has_a_class(report):
        yield "labels-disagree", entry(report.labels, f"{report.disagreeing} pixels")
    if report.same_class and not every_pixel_has_a_class(report):
        yield "same-class", entry(report.labels, f"{report.same_class} pixels")


def set_entries(
    reports: Sequence[PairReport], classes: ClassList, root: Path
) -> Iterable[tuple[str, Entry]]:
    """Yield what only shows when many pairs are looked at together."""
    labelled = [report for report in reports if report.transitions is not None]
    full = [report for report in labelled if every_pixel_has_a_class(report)]
    if labelled and len(full) > MANY * len(labelled):
        kind = "all-marked" if classes.is_binary else "all-changed"
        for report in full:
            files = tuple(relative(file.path, root) for file in report.labels)
            yield kind, Entry(files, "", (report.pair.id,))
    for split in dict.fromkeys(report.split for report in labelled):
        if not _mostly_readable(reports, split):
            continue
        of_split = [report for report in labelled if report.split == split]
        if not any(report.transitions[1:].any() or report.transitions[:, 1:].any()
                   for report in of_split):  # fmt: skip
            files = tuple(relative(r.labels[0].path, root) for r in of_split)
            yield "all-unchanged", Entry(files, f"{split}, {len(of_split)} pairs")
    if _mostly_readable(reports, "train"):
        yield from _missing_classes(labelled, classes)
    yield from _mixtures(reports, root)


def every_pixel_has_a_class(report: PairReport) -> bool:
    """Whether neither label has a 0 anywhere: full land cover instead of change."""
    counts = report.transitions
    return counts is not None and not counts[0].any() and not counts[:, 0].any()


def copy_entries(copies: Iterable[Copies], ids: Sequence[str]) -> Iterable[tuple[str, Entry]]:
    """Yield leakage between splits and duplicates within one; ``ids`` name the pairs by number."""
    for copy in copies:
        reach = "leak" if len(copy.splits) > 1 else "duplicate"
        pairs = tuple(dict.fromkeys(ids[number] for number in copy.pairs))
        said = ", ".join(part for part in (" and ".join(copy.splits), copy.detail) if part)
        yield f"{reach}-{'exact' if copy.exact else 'near'}", Entry(copy.paths, said, pairs)


def relative(path: Path, root: Path) -> str:
    """Return a path below the data set's root, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _mostly_readable(reports: Sequence[PairReport], split: str) -> bool:
    """Whether enough labels could be read to say that something never occurs."""
    readable = [r.transitions is not None for r in reports if r.split == split and r.labels]
    return sum(readable) > MANY * len(readable)


def _missing_classes(
    labelled: Sequence[PairReport], classes: ClassList
) -> Iterable[tuple[str, Entry]]:
    training = [report.transitions for report in labelled if report.split == "train"]
    total = sum(training, np.zeros((len(classes.names),) * 2, dtype=np.int64))
    counts = total.sum(axis=0) + total.sum(axis=1)
    if counts[1:].any():  # else all-unchanged says it
        for index in np.flatnonzero(counts[1:] == 0) + 1:
            yield "class-missing", Entry((), f"{classes.names[index]}, index {index}")


def _mixtures(reports: Sequence[PairReport], root: Path) -> Iterable[tuple[str, Entry]]:
    """Several sizes in a split; several image modes or readable label formats in a folder."""
    sizes: dict[str, dict[str, list[Path]]] = {}
    modes: dict[str, dict[str, list[Path]]] = {}
    formats: dict[str, dict[str, list[Path]]] = {}
    depths: dict[str, dict[str, list[Path]]] = {}
    for report in reports:
        for file in report.images:
            if not file.error:
                folder = relative(file.path.parent, root)
                size = f"{file.size[1]} × {file.size[0]}"
                sizes.setdefault(report.split, {}).setdefault(size, []).append(file.path)
                modes.setdefault(folder, {}).setdefault(file.mode, []).append(file.path)
                if file.header.dtype in DTYPES:
                    depth = f"{file.bits} bits"
                    depths.setdefault("this data set", {}).setdefault(depth, []).append(file.path)
        for file, name in zip(report.labels, report.formats, strict=True):
            if name in READABLE:
                folder = relative(file.path.parent, root)
                formats.setdefault(folder, {}).setdefault(name, []).append(file.path)
    mixtures = {"mixed-sizes": sizes, "mixed-modes": modes, "mixed-formats": formats}
    mixtures["mixed-depth"] = depths
    for kind, groups in mixtures.items():
        for place, files_by_value in groups.items():
            if len(files_by_value) > 1:
                usual = max(files_by_value, key=lambda value: len(files_by_value[value]))
                for value, paths in files_by_value.items():
                    if value != usual:
                        files = tuple(relative(path, root) for path in paths)
                        said = f"{len(files)} × {value}, but {usual} is usual in {place}"
                        yield kind, Entry(files, said)
