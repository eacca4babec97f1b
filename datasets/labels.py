"""The one decoder of labels: grey and palette indices, class colours, change masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import CLASSES_FILE, ClassList, Preset
from datasets.images import GREY_STEP, open_image
from utils.errors import DataError

WHITE = 255
INDEX, PALETTE, RGB_LABEL = "index", "palette", "RGB in class colours"
GREY_LABEL = "grey in class colours"
CHANGE_MASK = "change mask"  # under a binary class list, 0 and 1 or 0 and 255
NEAR_COLORS, BINARY = "near-colours", "binary 0/255"
FOREIGN_VALUES, FOREIGN_COLORS = "foreign values", "foreign colours"
CONTRADICTING_COLORS, OTHER_MODE = "contradicting colours", "other mode"
# What training reads as it is.
READABLE = frozenset({INDEX, PALETTE, RGB_LABEL, GREY_LABEL, CHANGE_MASK})
COLOR_DISTANCE, LISTED = 30, 5  # LISTED foreign values or colours are named
IDENTITY = np.arange(256, dtype=np.uint8)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelReading:
    """One label file: (H, W) uint8 class indices if it says them, and in words what is wrong."""

    format: str
    mask: np.ndarray | None
    detail: str = ""


def read_label(path: Path, classes: ClassList) -> np.ndarray:
    """Read (H, W) uint8 class indices; a DataError if the file is no label of these classes."""
    reading = inspect_label(open_image(path), classes, color_distance=0)
    if reading.mask is None:
        wrong = f"{reading.detail} ({reading.format}); {_remedy(reading, classes)}"
        raise DataError(f"{path}: label {wrong}")
    return reading.mask


def read_coded(paths: Sequence[Path], preset: Preset) -> dict[str, np.ndarray]:
    """Read labels in the codes of a public set, a file for each of `Preset.coded`.

    Returns (H, W) uint8 class indices by date. A DataError for files that are missing, of several
    sizes, or hold what is no code.
    """
    if len(paths) != len(preset.coded):
        raise DataError(
            f"{paths[0]}: {len(paths)} of {len(preset.coded)} label folders; unpack all of them"
        )
    masks = {}
    for path, (key, (band, codes)) in zip(paths, preset.coded.items(), strict=True):
        values = np.atleast_3d(np.asarray(open_image(path)))  # of a palette the indices
        if values.shape[-1] <= band:
            raise DataError(f"{path}: {values.shape[-1]} bands, but the set is published with more")
        values = values[..., band]
        lookup = np.array(list(map(int, codes)) or range(len(preset.classes.names)), np.uint8)
        foreign = values[~np.isin(values, range(len(lookup)))]
        if foreign.size:
            highest = len(lookup) - 1
            raise DataError(f"{path}: value {foreign[0]}, but codes up to {highest} are published")
        masks[key] = lookup[values.astype(np.uint8)]
    if len({mask.shape for mask in masks.values()}) > 1:
        raise DataError(f"{paths[0]}: the labels of its pair differ in size; leave the pair out")
    changed = masks.pop("change_mask", 1)
    return {key: mask * (changed > 0) for key, mask in masks.items()}


def _remedy(reading: LabelReading, classes: ClassList) -> str:
    if reading.format == OTHER_MODE:
        return "save class indices as an 8-bit grey or palette PNG, or class colours as RGB"
    if reading.format == CONTRADICTING_COLORS:
        return "save the mask as RGB or with plain indices of 8 bits"
    if reading.format in (NEAR_COLORS, FOREIGN_COLORS):
        return f"list the colours in {CLASSES_FILE}, or save them without lossy compression"
    if classes.is_binary:
        return (
            "a change mask holds 0 and 255, or 0 and 1: correct the file, or list the classes in "
            f"{CLASSES_FILE} and put class labels into label1 and label2"
        )
    last = f"{classes.num_classes} ({classes.names[-1]})"
    return f"the class list ends at {last}: correct the file or list the classes in {CLASSES_FILE}"


def inspect_label(
    image: Image.Image, classes: ClassList, color_distance: int = COLOR_DISTANCE
) -> LabelReading:
    """Tell format and classes of a label that `open_image` decoded.

    Grey images hold indices, under a binary list 0 and 255 as well, or else class colours; RGB and
    RGBA images hold colours up to ``color_distance`` from a class's. A palette of class colours, or
    of grey, is read by its entries, whatever their order; else indices count, unless the palette
    contradicts them.
    """
    if image.mode in ("RGB", "RGBA"):
        return _inspect_colors(image, classes, color_distance)
    if image.mode not in ("L", "P", "1"):
        return LabelReading(OTHER_MODE, None, f"mode {image.mode}")
    lookup, wrong = _palette_lookup(image, classes) if image.mode == "P" else (IDENTITY, "")
    if wrong:
        return LabelReading(CONTRADICTING_COLORS, None, wrong)
    values = np.array(image, dtype=np.uint8)
    values = values if lookup is IDENTITY else lookup[values]
    if classes.is_binary:
        reading = _inspect_mask(values)
    elif values.max(initial=0) <= classes.num_classes:
        reading = LabelReading(PALETTE if image.mode == "P" else INDEX, values)
    else:
        reading = _foreign_values(values, classes.num_classes)
    return reading if image.mode == "P" else _compare_greys(image, values, reading, classes)


def grey_levels(image: Image.Image) -> set[int] | None:
    """Return the values of a grey label, be it in 1 bit or a palette of greys; None for others."""
    if image.mode in ("L", "1"):
        return set(np.flatnonzero(image.histogram()).tolist())
    if image.mode == "P":
        greys = _grey_entries(_used_colors(image))
        return set(greys.values()) if len(greys) == len(_used_colors(image)) else None
    return None


def nearest_colors(image: Image.Image, colors: Sequence[Color]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel the nearest colour (uint8), and its RGB distance rounded up (int64)."""
    rgb = np.asarray(image.convert("RGB"), dtype=np.uint32)
    packed = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    found, place = np.unique(packed, return_inverse=True)
    met = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.int64)
    squared = np.stack([np.square(met - color).sum(axis=1) for color in colors])
    nearest = squared.argmin(axis=0)
    distance = np.ceil(np.sqrt(squared.min(axis=0))).astype(np.int64)
    place = place.reshape(packed.shape)
    return nearest.astype(np.uint8)[place], distance[place]


def _used_colors(image: Image.Image) -> dict[int, Color | None]:
    """Return the colour of each index that a palette image holds; None behind its palette."""
    entries = np.asarray(image.getpalette("RGB")).reshape(-1, 3).tolist()
    used = np.flatnonzero(image.histogram()).tolist()
    return {index: tuple(entries[index]) if index < len(entries) else None for index in used}


def _grey_entries(used: dict[int, Color | None]) -> dict[int, int]:
    return {index: color[0] for index, color in used.items() if color and len(set(color)) == 1}


def _palette_lookup(image: Image.Image, classes: ClassList) -> tuple[np.ndarray, str]:
    """Return what each index of a palette means, and in words what contradicts it, if anything."""
    used, top = _used_colors(image), classes.num_classes
    greys = _grey_entries(used)
    if classes.is_binary:  # 255 is as good as 1
        greys = {index: 1 if value == WHITE else value for index, value in greys.items()}
    numbers = {color: number for number, color in enumerate(classes.colors)}
    known = {index: numbers[color] for index, color in used.items() if color in numbers}
    meaning, claims = known, {}
    if len(known) == len(used):
        if len(greys) == len(used) and max(greys.values()) <= top:
            claims = {i: value for i, value in greys.items() if value != known[i] != i}
    elif len(greys) == len(used):
        meaning = greys
    else:  # a palette of its own, of which only the indices speak
        meaning = {}
        claims = {i: v for i, v in (greys | known).items() if v <= top and v != i}
    for index, value in claims.items():
        meant = classes.names[index] if index <= top else "no class"
        said = f"index {index} ({meant}) has the colour {used[index]} of {classes.names[value]}"
        return IDENTITY, said
    lookup = IDENTITY.copy()
    lookup[list(meaning)] = list(meaning.values())
    return lookup, ""


def _compare_greys(
    image: Image.Image, values: np.ndarray, by_index: LabelReading, classes: ClassList
) -> LabelReading:
    """Return what values (H, W) uint8 mean as indices, or as colours where they are no indices.

    Optimisers of files turn RGB and palettes to grey, in the fewest bits that its levels need.
    """
    numbers = {color[0]: n for n, color in enumerate(classes.colors) if len(set(color)) == 1}
    step = WHITE if image.mode == "1" else image.info.get(GREY_STEP, 1)
    levels = {int(step * value) for value in np.flatnonzero(np.bincount(values.ravel()))}
    needed = next(s for s in (WHITE, 85, 17, 1) if not any(level % s for level in levels))
    if not levels <= numbers.keys() or (by_index.mask is not None and needed > step):
        return by_index
    lookup = np.zeros(256, dtype=np.uint8)
    lookup[[level // step for level in levels]] = [numbers[level] for level in levels]
    mask = lookup[values]
    if by_index.mask is None:  # a change mask may be meant
        return by_index if levels == {0, WHITE} else LabelReading(GREY_LABEL, mask)
    if np.array_equal(mask, by_index.mask):
        return by_index
    first = np.flatnonzero((mask != by_index.mask).ravel())[0]
    index, number = by_index.mask.ravel()[first], mask.ravel()[first]
    said = f"index {index} ({classes.names[index]}) may be the colour of {classes.names[number]}"
    return LabelReading(CONTRADICTING_COLORS, None, said)


def _inspect_mask(values: np.ndarray) -> LabelReading:
    changed = values == max(1, int(values.max(initial=0)))
    white = (1, 3, 15, WHITE)  # of 1, 2, 4 and 8 bits
    if values[~changed].any() or not np.isin(values[changed][:1], white).all():
        return _foreign_values(values, -1)
    return LabelReading(CHANGE_MASK, changed.astype(np.uint8))


def _foreign_values(values: np.ndarray, known: int) -> LabelReading:
    """Name the values above ``known`` that occur most."""
    if known >= 0 and np.isin(values, (0, WHITE)).all():
        return LabelReading(BINARY, None, "only 0 and 255")
    counts = np.bincount(values.ravel(), minlength=256)
    counts[: known + 1] = 0
    order = np.argsort(-counts, kind="stable")[:LISTED]
    listed = ", ".join(f"{value}: {counts[value]} pixels" for value in order if counts[value])
    return LabelReading(FOREIGN_VALUES, None, f"value {listed}")


def _inspect_colors(image: Image.Image, classes: ClassList, color_distance: int) -> LabelReading:
    rgb = np.asarray(image)[..., :3]
    try:
        return LabelReading(RGB_LABEL, classes.to_index(rgb))
    except ValueError:
        index, distance = nearest_colors(image, classes.colors)
    far = distance > color_distance
    near_pixels, far_pixels = int(((distance > 0) & ~far).sum()), int(far.sum())
    colors, counts = np.unique(rgb[far], axis=0, return_counts=True)
    # Lossy files smear few classes over very many colours; another class list has a few of its own.
    if near_pixels or len(colors) > 2 * len(classes.colors):
        rest = f", {far_pixels} of them beyond {color_distance}" if far_pixels else ""
        said = f"{near_pixels + far_pixels} pixels up to {distance.max()} from a class colour{rest}"
        return LabelReading(NEAR_COLORS, None if far_pixels else index, said)
    if colors.tolist() == [[0, 0, 0]] and (rgb[~far] == WHITE).all():
        return LabelReading(BINARY, None, "only black and white")
    order = np.argsort(-counts, kind="stable")[:LISTED]
    listed = ", ".join(f"{tuple(colors[i].tolist())}: {counts[i]} pixels" for i in order)
    return LabelReading(FOREIGN_COLORS, None, f"colour {listed}")
