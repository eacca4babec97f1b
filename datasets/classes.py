"""Class lists: names and colours by index."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import DataError
from utils.files import read_text

CLASSES_FILE = "classes.json"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
IGNORED = 255  # in label maps, a pixel without data: it counts nowhere, and is 0 in masks
MAX_CLASSES = 255  # index 255 stays free, and a palette PNG holds 256 colours


@dataclass(frozen=True)
class ClassList:
    """Names and colours by index; index 0 is *unchanged* (or unlabelled), 1.. are the classes.

    A list of a single class is *binary*. Impossible or repeated entries are a ValueError.
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
        if any(_CONTROL.search(name) for name in self.names):
            raise ValueError("class names hold no line breaks or other control characters")
        if len(set(self.colors)) < len(self.colors):
            raise ValueError("class colours repeat")
        if any(not 0 <= channel <= 255 for color in self.colors for channel in color):
            raise ValueError("colour channels are 0 to 255")

    @property
    def num_classes(self) -> int:
        """Number of classes, *unchanged* not counted."""
        return len(self.names) - 1

    @property
    def is_binary(self) -> bool:
        """Whether labels say what changed and nothing else."""
        return self.num_classes == 1

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
        """Decode (H, W, 3) uint8 in the class colours to (H, W) uint8; a ValueError for others."""
        red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
        found = self._index_of_color[red << 16 | green << 8 | blue]
        if not found.all():
            color = tuple(int(channel) for channel in rgb[found == 0][0])
            raise ValueError(f"colour {color} is in {int((found == 0).sum())} pixels, but no class")
        return found - 1


SECOND_CLASSES = ClassList(
    ("unchanged", "water", "ground", "low vegetation", "tree", "building", "playground"),
    ((255,) * 3, (0, 0, 255), (128,) * 3, (0, 128, 0), (0, 255, 0), (128, 0, 0), (255, 0, 0)),
)
CHANGE_CLASSES = ClassList(("unchanged", "changed"), ((0, 0, 0), (255, 255, 255)))


def classes_file(path: Path) -> Path:
    """Return the file that ``--classes`` names: any file, or the ``classes.json`` of a folder."""
    path = Path(path)
    return path / CLASSES_FILE if path.is_dir() else path


def read_classes(path: Path) -> ClassList:
    """Read a JSON list of ``{"name": "tree", "color": [0, 255, 0]}`` by index; else a DataError."""
    path = Path(path)
    try:
        entries = json.loads(read_text(path))
        colors = tuple((int(r), int(g), int(b)) for r, g, b in (e["color"] for e in entries))
        return ClassList(tuple(str(entry["name"]) for entry in entries), colors)
    except FileNotFoundError as error:
        remedy = f"name a JSON file of classes, or a folder with a {CLASSES_FILE}"
        raise DataError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        example = '[{"name": "unchanged", "color": [255, 255, 255]}, …], unchanged first'
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: {reason}; expected a list like {example}") from error
