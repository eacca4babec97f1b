"""One pair looked at closely: what its files are, and what its labels say."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.bands import RGB
from datasets.classes import ClassList
from datasets.images import (
    DTYPES,
    Header,
    fill_gaps,
    open_image,
    read_all,
    read_header,
    valid_in_all,
)
from datasets.labels import BINARY, COLOR_DISTANCE, inspect_label
from datasets.pairs import Pair
from datasets.statistics import BandSums, sum_bands
from utils.errors import DataError
from utils.pictures import to_rgb

THUMBNAIL_SIDE = 32


@dataclass(frozen=True)
class FileReport:
    """One image or label file."""

    path: Path
    error: str = ""  # why it cannot be decoded
    format: str = ""  # PNG, JPEG, …
    mode: str = ""  # Pillow's, such as RGB, P or I;16, or a number of bands
    bits: int = 0  # per channel in the file
    size: tuple[int, int] = (0, 0)  # height, width
    header: Header | None = None
    gaps: float = 0.0  # share of an image's pixels without data
    digest: str = ""  # hash of an image's pixels; empty where they were not read
    thumbnail: np.ndarray | None = None  # (32, 32) uint8, an image in grey
    band_sums: BandSums | None = None  # over an image's pixels with data
    label_format: str = ""  # "unreadable" for a broken label
    detail: str = ""  # what is wrong with a label, in words

    @property
    def name(self) -> str:
        """The file below the data set's root: split, folder and file."""
        return "/".join(self.path.parts[-3:])

    @property
    def folder(self) -> str:
        """The folder that the file is in, below the data set's root."""
        return "/".join(self.path.parts[-3:-1])


@dataclass
class PairReport:
    """What was found in one pair.

    ``transitions`` are (C + 1, C + 1) pixel counts, class at date 1 by class at date 2; None where
    the labels do not tell. A single label stands for both dates.
    """

    pair: Pair
    images: list[FileReport]
    labels: list[FileReport]  # those there are
    transitions: np.ndarray | None = None
    split: str = ""  # `tools.checking.inspection` sets it

    @property
    def same_image(self) -> bool:
        """Whether both dates show the same pixels."""
        return self.images[0].digest == self.images[1].digest != ""

    @property
    def changed(self) -> float | None:
        """Share of the pixels that both labels call changed, 0..1; None without readable labels."""
        if self.transitions is None:
            return None
        return float(self.transitions[1:, 1:].sum() / max(1, self.transitions.sum()))

    @property
    def all_marked(self) -> bool:
        """Whether neither label has a 0 anywhere: full land cover instead of change."""
        counts = self.transitions
        counted = counts is not None and counts.any()
        return counted and not counts[0].any() and not counts[:, 0].any()


def sum_images(files: Iterable[FileReport]) -> tuple[BandSums, int] | None:
    """Return sums and bits of the images that were read; None for none or several kinds."""
    read = [file for file in files if file.band_sums is not None]
    if len({(file.bits, len(file.band_sums.sums)) for file in read}) != 1:
        return None
    return reduce(BandSums.__add__, (file.band_sums for file in read)), read[0].bits


def inspect_pair(
    pair: Pair,
    classes: ClassList,
    color_distance: int = COLOR_DISTANCE,
    bands: Sequence[int] = RGB.numbers,
) -> PairReport:
    """Read the files of a pair, each once; nothing in them raises.

    Pixels without data in the ``bands`` count nowhere.
    """
    read = [_inspect_image(path, bands) for path in (pair.image1, pair.image2)]
    images, valid = [file for file, _ in read], valid_in_all(mask for _, mask in read)
    read = [_inspect_label(path, classes, color_distance) for path in pair.labels.values()]
    if pair.change_mask and not classes.is_binary:
        file = replace(read[0][0], label_format=BINARY, detail="beside a class list")
        read = [(file, None)]
    labels, masks = [file for file, _ in read], [mask for _, mask in read]
    report = PairReport(pair, images, labels)
    if read and all(mask is not None and mask.shape == masks[0].shape for mask in masks):
        number = len(classes.names)
        joint = masks[0].astype(np.uint16 if number > 15 else np.uint8) * np.uint8(number)
        joint += masks[-1]
        if valid is not None and valid.shape == joint.shape:
            joint = joint[valid]
        counts = np.bincount(joint.ravel(), minlength=number**2)
        report.transitions = counts.reshape(number, number)
    return report


def _inspect_image(path: Path, bands: Sequence[int]) -> tuple[FileReport, np.ndarray | None]:
    """Return what a file is, and which of its pixels have data, as `read_masked` does."""
    try:
        header = read_header(path)
        mode, size = header.mode or f"{header.bands} bands", (header.height, header.width)
        file = FileReport(path, "", header.format, mode, header.bits, size, header)
        if header.dtype not in DTYPES:
            return file, None
        values, valid = read_all(path, bands)
    except (DataError, OSError, ValueError) as error:
        return FileReport(path, _reason(error, path)), None
    found = {"band_sums": sum_bands(values, valid)}
    if valid is not None:
        found["gaps"] = 1 - float(valid.mean())
    picture = to_rgb(fill_gaps(values, valid))
    # Alpha does not count; of 8 bits, grey equals RGB of the same grey.
    if values.dtype == np.uint8 and (header.has_alpha or header.bands == 1):
        content = picture
    else:  # alpha is the last band of two or four
        content = values[..., : header.bands - (header.has_alpha and header.bands in (2, 4))]
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    thumbnail = grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    digest = hashlib.sha256(f"{header.width} {header.height} ".encode() + content.tobytes())
    found |= {"thumbnail": np.asarray(thumbnail), "digest": digest.hexdigest()[:32]}
    return replace(file, **found), valid


def _inspect_label(
    path: Path, classes: ClassList, color_distance: int
) -> tuple[FileReport, np.ndarray | None]:
    """Return what a file is, and its (H, W) uint8 class indices where it says them."""
    try:
        image = open_image(path)
        header, size = read_header(path), (image.height, image.width)
        reading = inspect_label(image, classes, color_distance)
    except (DataError, OSError, ValueError) as error:
        reason = _reason(error, path)
        return FileReport(path, reason, label_format="unreadable", detail=reason), None
    file = FileReport(path, "", image.format or "", image.mode, header.bits, size, header)
    return replace(file, label_format=reading.format, detail=reading.detail), reading.mask


def _reason(error: Exception, path: Path) -> str:
    """Return the cause alone: the path and the remedy are said once for all files."""
    text = str(error) or type(error).__name__
    text = text.removeprefix(f"{path}: ").split("; ")[0].splitlines()[0]
    return text.removeprefix("cannot be decoded (").removesuffix(")").replace(str(path), "file")
