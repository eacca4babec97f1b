"""One pair looked at closely: what its four files are, and what its labels say."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import ClassList, is_binary
from datasets.images import DTYPES, Header, open_image, read_header, read_raster
from datasets.labels import BINARY, COLOR_DISTANCE, LabelReading, inspect_label
from datasets.pairs import Pair
from datasets.statistics import BandSums, sum_bands
from utils.errors import DataError
from utils.pictures import to_rgb

THUMBNAIL_SIDE = 32


@dataclass(frozen=True)
class FileReport:
    """One image or label file.

    Attributes:
        path: the file.
        format: ``PNG``, ``JPEG``, …; empty where the file cannot be decoded.
        mode: Pillow's mode, such as ``RGB``, ``P`` or ``I;16``, or a number of bands.
        bits: bits per channel in the file.
        size: (height, width).
        header: of an image; None for a label.
        error: why the file cannot be decoded; empty where it can.
    """

    path: Path
    format: str = ""
    mode: str = ""
    bits: int = 0
    size: tuple[int, int] = (0, 0)
    header: Header | None = None
    error: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """The content of an image: a hash of its pixels, and a (32, 32) uint8 grey thumbnail."""

    digest: str
    thumbnail: np.ndarray


@dataclass
class PairReport:
    """What was found in one pair.

    Attributes:
        pair: its files.
        split: the split it belongs to; `tools.checking.inspection` sets it.
        images: reports of the two images.
        labels: reports of the labels there are; empty for an unlabelled pair.
        fingerprints: of the two images; None where one cannot be decoded or was not read.
        band_sums: sums over the pixels of the two images; None likewise.
        same_image: whether both dates show the same pixels.
        formats: label format per date, ``unreadable`` for a broken file.
        details: what is wrong with each label, in words.
        transitions: (C + 1, C + 1) pixel counts, class at date 1 by class at date 2; None where
            the labels do not tell. A single label stands for both dates.
    """

    pair: Pair
    split: str = ""
    images: list[FileReport] = field(default_factory=list)
    labels: list[FileReport] = field(default_factory=list)
    fingerprints: list[Fingerprint | None] = field(default_factory=list)
    band_sums: list[BandSums | None] = field(default_factory=list)
    same_image: bool = False
    formats: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    transitions: np.ndarray | None = None

    @property
    def disagreeing(self) -> int:
        """Pixels that are 0 in one label and a class in the other."""
        if self.transitions is None:
            return 0
        return int(self.transitions[0, 1:].sum() + self.transitions[1:, 0].sum())

    @property
    def same_class(self) -> int:
        """Pixels labelled as changed, from a class to the same class; 0 where one label is all.

        Change masks name no classes.
        """
        if self.transitions is None or len(self.labels) < 2 or is_binary(len(self.transitions) - 1):
            return 0
        return int(np.trace(self.transitions[1:, 1:]))

    @property
    def changed(self) -> float | None:
        """Share of the pixels that both labels call changed, 0..1; None without readable labels."""
        if self.transitions is None:
            return None
        return float(self.transitions[1:, 1:].sum() / max(1, self.transitions.sum()))


def inspect_pair(
    pair: Pair,
    classes: ClassList,
    color_distance: int = COLOR_DISTANCE,
    decode_images: bool = True,
) -> PairReport:
    """Read the files of a pair, each once; nothing in them raises.

    Args:
        pair: its files; the labels may be None.
        classes: what label values and colours mean.
        color_distance: Euclidean RGB distance up to which a colour counts as a class's.
        decode_images: False reads only the headers of the images and compares their bytes.
    """
    report = PairReport(pair)
    for path in (pair.image1, pair.image2):
        file, values = _inspect_image(path, decode_images)
        report.images.append(file)
        report.fingerprints.append(None if values is None else _fingerprint(values, file.header))
        report.band_sums.append(None if values is None else sum_bands(values))
    if decode_images:
        first, second = report.fingerprints
        report.same_image = first is not None and second is not None
        report.same_image = report.same_image and first.digest == second.digest
    else:
        report.same_image = _same_bytes(pair.image1, pair.image2)
    if pair.labels:
        readings = [
            _inspect_label_file(report, path, classes, color_distance)
            for path in pair.labels.values()
        ]
        dates = (readings[0], readings[-1])
        if pair.change_mask and not classes.is_binary:
            report.formats, report.details = [BINARY], ["beside a class list"]
            return report
        report.transitions = _count_transitions(dates, len(classes.names))
    return report


def _inspect_image(path: Path, decode: bool) -> tuple[FileReport, np.ndarray | None]:
    """Return what a file is, and its (H, W, bands) values where they are wanted and supported."""
    try:
        header = read_header(path)
        size = (header.height, header.width)
        mode = header.mode or f"{header.bands} bands"
        file = FileReport(path, header.format, mode, header.bits, size, header)
        return file, read_raster(path) if decode and header.dtype in DTYPES else None
    except (DataError, OSError, ValueError) as error:
        return FileReport(path, error=_reason(error, path)), None


def _inspect_label_file(
    report: PairReport, path: Path, classes: ClassList, color_distance: int
) -> LabelReading | None:
    try:
        image = open_image(path)
        file, reading = _describe(path, image), inspect_label(image, classes, color_distance)
    except (DataError, OSError, ValueError) as error:
        file, reading = FileReport(path, error=_reason(error, path)), None
    report.labels.append(file)
    report.formats.append(reading.format if reading else "unreadable")
    report.details.append(reading.detail if reading else file.error)
    return reading


def _describe(path: Path, image: Image.Image) -> FileReport:
    size = (image.height, image.width)
    return FileReport(path, image.format or "", image.mode, read_header(path).bits, size)


def _fingerprint(values: np.ndarray, header: Header) -> Fingerprint:
    picture = to_rgb(values)
    # Alpha does not count; of 8 bits, grey equals RGB of the same grey.
    as_rgb = values.dtype == np.uint8 and (header.has_alpha or header.bands == 1)
    content = picture if as_rgb else values[..., : _colors(header)]
    height, width = values.shape[:2]
    digest = hashlib.sha256(f"{width} {height} ".encode() + content.tobytes()).hexdigest()[:32]
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return Fingerprint(digest, np.asarray(grey.resize(side, Image.Resampling.BOX)))


def _colors(header: Header) -> int:
    """Return how many bands there are before alpha, which is the last of two or four."""
    return header.bands - int(header.has_alpha and header.bands in (2, 4))


def _count_transitions(readings: Sequence[LabelReading | None], number: int) -> np.ndarray | None:
    masks = [reading.mask if reading else None for reading in readings]
    if any(mask is None for mask in masks) or masks[0].shape != masks[1].shape:
        return None
    joint = masks[0].astype(np.uint16 if number > 15 else np.uint8)
    joint *= number
    joint += masks[1]
    return np.bincount(joint.ravel(), minlength=number**2).reshape(number, number)


def _same_bytes(path1: Path, path2: Path) -> bool:
    try:
        if path1.stat().st_size != path2.stat().st_size:
            return False
        return path1.read_bytes() == path2.read_bytes()
    except OSError:
        return False


def _reason(error: Exception, path: Path) -> str:
    """Return the cause alone: the path and the remedy are said once for all files."""
    text = str(error) or type(error).__name__
    text = text.removeprefix(f"{path}: ").split("; ")[0].splitlines()[0]
    return text.removeprefix("cannot be decoded (").removesuffix(")").replace(str(path), "file")
