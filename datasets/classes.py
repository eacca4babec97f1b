"""The class list of a data set: names, colours, and the way between RGB masks and indices."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.masks import open_image

CLASSES_FILE = "classes.json"
MAX_CLASSES = 255  # index 255 stays free, and a palette PNG holds 256 colours


@dataclass(frozen=True)
class ClassList:
    """Names and colours by index; index 0 is *unchanged* (or unlabelled), 1.. are the classes.

    Raises:
        ValueError: fewer than two entries, more than 255, or names or colours that repeat.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ValueError("a class list needs one colour per name")
        if not 2 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"a class list has 2 to {MAX_CLASSES} entries, unchanged first")
        if len(set(self.names)) < len(self.names):
            raise ValueError("class names repeat")
        if len(set(self.colors)) < len(self.colors):
            raise ValueError("class colours repeat")
        if any(not 0 <= channel <= 255 for color in self.colors for channel in color):
            raise ValueError("colour channels are 0 to 255")

    @property
    def num_classes(self) -> int:
        """Number of semantic classes, *unchanged* not counted."""
        return len(self.names) - 1

    def to_dict(self) -> dict:
        """Return plain lists, as checkpoints store them."""
        return {"names": list(self.names), "colors": [list(color) for color in self.colors]}

    @cached_property
    def _index_of_color(self) -> np.ndarray:
        # One byte per 24-bit colour, 0 for a colour of no class: a single gather decodes a mask.
        table = np.zeros(1 << 24, dtype=np.uint8)
        for index, (red, green, blue) in enumerate(self.colors):
            table[red << 16 | green << 8 | blue] = index + 1
        return table

    def to_rgb(self, mask: np.ndarray) -> np.ndarray:
        """Colour a map of indices: (H, W) uint8 → (H, W, 3) uint8."""
        return np.asarray(self.colors, dtype=np.uint8)[mask]

    def to_index(self, rgb: np.ndarray) -> np.ndarray:
        """Decode an RGB mask in the class colours: (H, W, 3) uint8 → (H, W) uint8.

        Raises:
            ValueError: a pixel has a colour that is not in the class list.
        """
        packed = (
            rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
        )
        found = self._index_of_color[packed]
        if not found.all():
            color = tuple(int(channel) for channel in rgb[found == 0][0])
            raise ValueError(f"colour {color} is in {int((found == 0).sum())} pixels, but no class")
        return found - 1


SECOND_CLASSES = ClassList(
    names=("unchanged", "water", "ground", "low vegetation", "tree", "building", "playground"),
    colors=(
        (255, 255, 255),
        (0, 0, 255),
        (128, 128, 128),
        (0, 128, 0),
        (0, 255, 0),
        (128, 0, 0),
        (255, 0, 0),
    ),
)


def load_classes(root: Path) -> ClassList:
    """Return the class list of ``root/classes.json``, or SECOND's where there is no such file.

    Raises:
        DataError: as `read_classes`.
    """
    path = Path(root) / CLASSES_FILE
    return read_classes(path) if path.exists() else SECOND_CLASSES


def classes_file(path: Path) -> Path:
    """Return the file that ``--classes`` names: any file, or the ``classes.json`` of a folder."""
    path = Path(path)
    return path / CLASSES_FILE if path.is_dir() else path


def read_classes(path: Path) -> ClassList:
    """Read a class list.

    The file is a JSON list ``[{"name": "unchanged", "color": [255, 255, 255]}, …]`` in index
    order.

    Raises:
        DataError: there is no such file, or it is not of that form.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        return ClassList(
            names=tuple(str(entry["name"]) for entry in entries),
            colors=tuple((int(r), int(g), int(b)) for r, g, b in (e["color"] for e in entries)),
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; name a JSON file of classes, or a folder with a {CLASSES_FILE}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; expected a list like "
            '[{"name": "unchanged", "color": [255, 255, 255]}, …], unchanged first'
        ) from error


def read_label(path: Path, classes: ClassList) -> np.ndarray:
    """Read a label file as (H, W) uint8 class indices.

    Grey and palette images hold indices; RGB (and RGBA) images hold class colours.

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
    mask = np.array(image, dtype=np.uint8)
    highest = int(mask.max(initial=0))
    if highest > classes.num_classes:
        raise DataError(
            f"{path}: label value {highest}, but the class list ends at {classes.num_classes} "
            f"({classes.names[-1]}); correct the file or list the classes in {CLASSES_FILE}"
        )
    wrong = palette_contradiction(image, mask, classes) if image.mode == "P" else None
    if wrong is not None:
        index, color = wrong
        shown = classes.names[classes.colors.index(color)]
        raise DataError(
            f"{path}: index {index} means {classes.names[index]!r}, but its palette colour "
            f"{color} is that of {shown!r}; save the mask as RGB or with plain indices"
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


def palette_contradiction(
    image: Image.Image, mask: np.ndarray, classes: ClassList
) -> tuple[int, tuple[int, int, int]] | None:
    """Return the first index that a palette shows in another class's colour, and that colour.

    Args:
        image: of mode P.
        mask: its indices, (H, W) uint8, all of them in the class list.
        classes: the class list.
    """
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if len(used) < 2 or used[-1] >= len(palette):
        return None
    colors = [tuple(int(channel) for channel in palette[index]) for index in used]
    if not set(colors) <= set(classes.colors):
        return None  # a palette of its own: only the indices speak
    pairs = zip(used.tolist(), colors, strict=True)
    return next((pair for pair in pairs if pair[1] != classes.colors[pair[0]]), None)
