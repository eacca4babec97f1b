"""Change masks without classes: how a data set of them is recognised, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.classes import CLASSES_FILE, ClassList
from datasets.images import open_image
from utils.errors import DataError

WHITE = 255


def mask_values(mask: np.ndarray) -> np.ndarray | None:
    """Return a grey mask of 0 and 1, or of 0 and 255, as (H, W) uint8 0/1; None for others.

    Args:
        mask: (H, W) uint8.
    """
    highest = int(mask.max(initial=0))
    changed = mask == highest if highest else np.zeros(mask.shape, dtype=bool)
    if highest not in (0, 1, WHITE) or (mask[~changed] != 0).any():
        return None
    return changed.astype(np.uint8)


def read_mask_values(path: Path, image: Image.Image) -> np.ndarray:
    """Read a decoded grey, palette or 1-bit change mask as (H, W) uint8, 1 = changed.

    Raises:
        DataError: there are values other than 0 and 255, or 0 and 1.
    """
    values = np.array(image, dtype=np.uint8)
    mask = mask_values(values)
    if mask is None:
        found = ", ".join(str(value) for value in np.unique(values)[:6])
        raise DataError(
            f"{path}: values {found}; a change mask holds 0 and 255, or 0 and 1: correct the file, "
            "or list the classes in classes.json and put class labels into label1 and label2"
        )
    return mask


def read_label(path: Path, classes: ClassList) -> np.ndarray:
    """Read a label file as (H, W) uint8 class indices.

    Grey and palette images hold indices; RGB (and RGBA) images hold class colours. Under a binary
    list grey images may hold 0 and 255 as well.

    Raises:
        DataError: the file cannot be decoded, has another mode, holds a value or colour that is
            not in the class list, or is a palette image whose colours contradict its indices.
    """
    image = open_image(path)
    if image.mode in ("RGB", "RGBA"):
        return _label_from_colors(path, image, classes)
    if image.mode not in ("L", "P", "1"):
        raise DataError(
            f"{path}: mode {image.mode} is no label format; save class indices as an 8-bit grey or "
            "palette PNG, or class colours as RGB"
        )
    if classes.is_binary:
        mask = read_mask_values(path, image)
    else:
        mask = _read_indices(path, image, classes)
    if image.mode == "P":
        wrong = palette_contradiction(image, np.array(image, dtype=np.uint8), classes)
        if wrong is not None:
            raise DataError(
                f"{path}: index {wrong.index} means {wrong.meant!r}, but its palette colour "
                f"{wrong.color} is that of {wrong.shown!r}; save the mask as RGB or with plain "
                "indices"
            )
    return mask


def _read_indices(path: Path, image: Image.Image, classes: ClassList) -> np.ndarray:
    mask = np.array(image, dtype=np.uint8)
    highest = int(mask.max(initial=0))
    if highest > classes.num_classes:
        raise DataError(
            f"{path}: label value {highest}, but the class list ends at {classes.num_classes} "
            f"({classes.names[-1]}); correct the file or list the classes in {CLASSES_FILE}"
        )
    return mask


def _label_from_colors(path: Path, image: Image.Image, classes: ClassList) -> np.ndarray:
    try:
        return classes.to_index(np.asarray(image)[..., :3])
    except ValueError as error:
        raise DataError(
            f"{path}: {error}; list the colours in {CLASSES_FILE}, or save the mask without lossy "
            "compression or smoothing"
        ) from error


class WrongColor(NamedTuple):
    """An index of a palette image, the class it means, and its colour, which is another's."""

    index: int
    meant: str
    color: tuple[int, int, int]
    shown: str


def palette_contradiction(
    image: Image.Image, indices: np.ndarray, classes: ClassList
) -> WrongColor | None:
    """Return the first index that a palette shows in another class's colour.

    Args:
        image: of mode P.
        indices: its values, (H, W) uint8, all of them in the class list, or 255 for *changed*.
        classes: the class list.
    """
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if len(used) < 2 or used[-1] >= len(palette):
        return None
    colors = [tuple(int(channel) for channel in palette[index]) for index in used]
    if not set(colors) <= set(classes.colors):
        return None  # a palette of its own: only the indices speak
    for index, color in zip(used.tolist(), colors, strict=True):
        meant = min(index, classes.num_classes)  # 255 of a change mask
        if color != classes.colors[meant]:
            shown = classes.names[classes.colors.index(color)]
            return WrongColor(index, classes.names[meant], color, shown)
    return None


INDEX, PALETTE, RGB_LABEL = "index", "palette", "RGB in class colours"

CHANGE_MASK = "change mask"  # under a binary class list, 0 and 1 or 0 and 255

NEAR_COLORS, BINARY = "near-colours", "binary 0/255"

FOREIGN_VALUES, FOREIGN_COLORS = "foreign values", "foreign colours"

CONTRADICTING_PALETTE, OTHER_MODE = "contradicting palette", "other mode"

READABLE = frozenset({INDEX, PALETTE, RGB_LABEL, CHANGE_MASK})  # what training reads as it is

COLOR_DISTANCE = 30

LISTED = 5  # foreign values or colours that are named

BLACK_PIXEL, WHITE_PIXEL = 0, 0xFFFFFF


@dataclass(frozen=True)
class LabelReading:
    """One label file as it is.

    Attributes:
        format: ``index``, ``palette``, ``RGB in class colours``, ``near-colours``, …
        mask: (H, W) uint8 class indices; None where the file does not say them.
        detail: what is wrong in words; empty for a readable format.
        near_pixels: pixels whose colour is near a class colour, but not equal to it.
        largest_distance: Euclidean RGB distance of the worst pixel from a class colour.
    """

    format: str
    mask: np.ndarray | None
    detail: str = ""
    near_pixels: int = 0
    largest_distance: int = 0


class ColorTable:
    """The nearest of a few colours for any 24-bit colour, remembered once it was met."""

    def __init__(self, colors: Sequence[tuple[int, int, int]]) -> None:
        self._colors = np.asarray(colors, dtype=np.int32)
        # 0: not met yet; else 1 + (distance << 8 | index). Pages not touched cost no memory.
        self._table = np.zeros(1 << 24, dtype=np.uint32)
        self._learn(np.array([r | g << 8 | b << 16 for r, g, b in colors], dtype=np.uint32))

    def nearest(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return index (uint8) and Euclidean distance rounded up (uint32) of `pack_colors`."""
        codes = self._table[packed]
        if not codes.all():
            self._learn(np.unique(packed[codes == 0]))
            codes = self._table[packed]
        codes -= 1
        return codes.astype(np.uint8), codes >> 8  # the cast keeps the low byte

    def _learn(self, packed: np.ndarray) -> None:
        rgb = np.stack([packed & 255, packed >> 8 & 255, packed >> 16], axis=1).astype(np.int32)
        best = np.full(len(packed), np.iinfo(np.int32).max, dtype=np.int32)
        index = np.zeros(len(packed), dtype=np.uint32)
        for number, color in enumerate(self._colors):
            squared = np.square(rgb - color).sum(axis=1)
            closer = squared < best
            best[closer], index[closer] = squared[closer], number
        distance = np.ceil(np.sqrt(best)).astype(np.uint32)
        self._table[packed] = 1 + (distance << 8 | index)


@lru_cache(maxsize=4)
def color_table(colors: tuple[tuple[int, int, int], ...]) -> ColorTable:
    """Return this process's table for a list of colours."""
    return ColorTable(colors)


def pack_colors(image: Image.Image) -> np.ndarray:
    """Return the colours of an RGB(A) image as (H, W) uint32, red in the lowest byte."""
    four_bytes = image if image.mode == "RGBA" else image.convert("RGBX")
    packed = np.frombuffer(four_bytes.tobytes(), dtype="<u4") & 0xFFFFFF
    return packed.reshape(image.height, image.width)


def inspect_label(
    image: Image.Image, classes: ClassList, color_distance: int = COLOR_DISTANCE
) -> LabelReading:
    """Tell format and classes of a decoded label file.

    Args:
        image: the label.
        classes: what its values should mean.
        color_distance: Euclidean RGB distance up to which a colour still counts as a class's.
    """
    if image.mode in ("RGB", "RGBA"):
        return _inspect_colors(image, classes, color_distance)
    if image.mode not in ("L", "P", "1"):
        return LabelReading(OTHER_MODE, None, f"mode {image.mode}")
    mask = np.array(image, dtype=np.uint8)
    if classes.is_binary:
        reading = _inspect_mask_values(mask)
    elif int(mask.max(initial=0)) > classes.num_classes:
        reading = _inspect_values(mask, classes)
    else:
        reading = LabelReading(PALETTE if image.mode == "P" else INDEX, mask)
    if image.mode == "P" and reading.mask is not None:
        wrong = palette_contradiction(image, mask, classes)
        if wrong is not None:
            detail = f"index {wrong.index} ({wrong.meant}) has the colour of {wrong.shown}"
            return LabelReading(CONTRADICTING_PALETTE, None, detail)
    return reading


def _inspect_mask_values(mask: np.ndarray) -> LabelReading:
    changed = mask_values(mask)
    if changed is None:
        counts = np.bincount(mask.ravel(), minlength=256)
        listed = ", ".join(f"{v}: {counts[v]} pixels" for v in np.flatnonzero(counts)[:LISTED])
        return LabelReading(FOREIGN_VALUES, None, f"value {listed}")
    return LabelReading(CHANGE_MASK, changed)


def _inspect_values(mask: np.ndarray, classes: ClassList) -> LabelReading:
    counts = np.bincount(mask.ravel(), minlength=256)
    if counts[1:255].sum() == 0:
        return LabelReading(BINARY, None, "only 0 and 255")
    foreign = counts.copy()
    foreign[: classes.num_classes + 1] = 0
    order = np.argsort(-foreign, kind="stable")[:LISTED]
    listed = ", ".join(f"{value}: {foreign[value]} pixels" for value in order if foreign[value])
    return LabelReading(FOREIGN_VALUES, None, f"value {listed}")


def _inspect_colors(image: Image.Image, classes: ClassList, color_distance: int) -> LabelReading:
    packed = pack_colors(image)
    index, distance = color_table(classes.colors).nearest(packed)
    largest = int(distance.max(initial=0))
    if largest == 0:
        return LabelReading(RGB_LABEL, index)
    off = distance > 0
    far = distance > color_distance
    near_pixels, far_pixels = int((off & ~far).sum()), int(far.sum())
    colors, counts = np.unique(packed[far], return_counts=True)
    # Lossy files smear few classes over very many colours; another class list has a few of its own.
    smeared = len(colors) > 2 * len(classes.colors)
    if near_pixels or smeared:
        rest = f", {far_pixels} of them beyond {color_distance}" if far_pixels else ""
        return LabelReading(
            NEAR_COLORS,
            None if far_pixels else index,
            f"{near_pixels + far_pixels} pixels up to {largest} from a class colour{rest}",
            near_pixels,
            largest,
        )
    if colors.tolist() == [BLACK_PIXEL] and (packed[~far] == WHITE_PIXEL).all():
        return LabelReading(BINARY, None, "only black and white")
    listed = ", ".join(
        f"{(int(c & 255), int(c >> 8 & 255), int(c >> 16))}: {counts[i]} pixels"
        for i, c in sorted(enumerate(colors), key=lambda item: -counts[item[0]])[:LISTED]
    )
    return LabelReading(FOREIGN_COLORS, None, f"colour {listed}", 0, largest)
