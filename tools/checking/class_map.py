"""From the values, colours or names of another data set's labels to a class list."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import ClassList
from datasets.labels import COLOR_DISTANCE, nearest_colors
from utils.errors import DataError
from utils.files import read_json

HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
DECIMAL_COLOR = re.compile(r"\(?\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)?")
MAX_VALUE = 65535
UNMAPPED = 255  # no class has this index: a class list has at most 255 entries


@dataclass(frozen=True)
class ClassMap:
    """What each value and each colour of foreign labels stands for."""

    values: dict[int, int]  # class index by grey value or palette index
    colors: dict[tuple[int, int, int], int]  # class index by RGB colour

    def apply(self, image: Image.Image, color_distance: int = COLOR_DISTANCE) -> np.ndarray:
        """Return a label as (H, W) uint8 class indices.

        RGB labels take the nearest mapped colour within ``color_distance`` (Euclidean). Grey and
        palette labels take the mapped values; a palette label with others takes its colours. A
        ValueError says what is not in the map, or which index and colour contradict each other.
        """
        if image.mode in ("RGB", "RGBA"):
            return self._from_colors(image, color_distance)
        values = np.asarray(image)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            raise ValueError(f"mode {image.mode} is no label format; save grey, palette or RGB")
        if image.mode == "P":
            used = np.flatnonzero(np.bincount(values.ravel())).tolist()
            if self.colors and not set(used) <= set(self.values):
                return self._from_colors(image.convert("RGB"), color_distance)
            self._refuse_contradiction(used, image.getpalette("RGB"))
        return self._from_values(values.astype(np.int64))

    def _refuse_contradiction(self, used: list[int], palette: list[int]) -> None:
        shown = {index: tuple(palette[3 * index : 3 * index + 3]) for index in used}
        if not set(shown.values()) <= set(self.colors):
            return  # a palette of its own: only the indices speak
        for index, color in shown.items():
            if self.colors[color] != self.values[index]:
                raise ValueError(
                    f"index {index} is mapped to class {self.values[index]}, but its palette "
                    f"colour {color} to class {self.colors[color]}; map colours alone, or values "
                    "alone"
                )

    def _from_values(self, values: np.ndarray) -> np.ndarray:
        lookup = np.full(MAX_VALUE + 1, UNMAPPED, dtype=np.uint8)
        lookup[list(self.values)] = list(self.values.values())
        mask = lookup[np.clip(values, 0, MAX_VALUE)]
        missing = (mask == UNMAPPED) | (values < 0) | (values > MAX_VALUE)
        if missing.any():
            value = int(values[missing][0])
            fits = 0 <= value <= MAX_VALUE
            raise ValueError(
                f"value {value} ({int((values == value).sum())} pixels) is not in the class map; "
                + ("add it" if fits else f"only 0 to {MAX_VALUE} can be, replace it in the file")
            )
        return mask

    def _from_colors(self, image: Image.Image, color_distance: int) -> np.ndarray:
        if not self.colors:
            raise ValueError("the label has colours, but the class map has none; add them")
        nearest, distance = nearest_colors(image, tuple(self.colors))
        far = distance > color_distance
        if far.any():
            color = tuple(np.asarray(image.convert("RGB"))[far][0].tolist())
            raise ValueError(
                f"colour {color} is {int(distance[far][0])} from the nearest colour in the class "
                f"map, and {int(far.sum())} pixels are beyond {color_distance}; add their colours"
            )
        return np.array(list(self.colors.values()), dtype=np.uint8)[nearest]


def load_class_map(path: Path, source: ClassList, target: ClassList) -> ClassMap:
    """Read a JSON object from foreign values, colours or names to classes.

    ``{"7": "tree", "#ff8000": 5, "255,0,0": "water", "road": "ground"}``: a key is a value, a
    colour, or a name in ``source`` (which stands for that class's index and colour); what it maps
    to is a name or an index in ``target``. Everything else is a DataError.
    """
    path = Path(path)
    try:
        entries = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(entries, dict) or not entries:
        raise DataError(f'{path}: expected an object like {{"7": "tree", "#ff8000": "building"}}')
    return parse_class_map(path, entries, source, target)


def parse_class_map(
    path: Path | str, entries: dict, source: ClassList, target: ClassList
) -> ClassMap:
    """Return what entries of the form of `load_class_map` say; messages name ``path``."""
    values: dict[int, int] = {}
    colors: dict[tuple[int, int, int], int] = {}
    for key, name in entries.items():
        index = _target_index(path, name, target)
        color = _parse_color(key)
        if key in source.names:
            values[source.names.index(key)] = index
            colors[source.colors[source.names.index(key)]] = index
        elif color is not None:
            colors[color] = index
        elif key.isascii() and key.isdigit() and int(key) <= MAX_VALUE:
            values[int(key)] = index
        else:
            raise DataError(
                f"{path}: {key!r} is no value (0 to {MAX_VALUE}), no colour (#rrggbb or r,g,b) and "
                f"no class of the source ({', '.join(source.names)})"
            )
    if len(colors) > UNMAPPED:
        raise DataError(f"{path}: {len(colors)} colours, but {UNMAPPED} are the most")
    return ClassMap(values, colors)


def _target_index(path: Path, name: object, target: ClassList) -> int:
    if name in target.names:
        return target.names.index(name)
    if type(name) is int and 0 <= name <= target.num_classes:
        return name
    raise DataError(
        f"{path}: {name!r} is no class; choose an index from 0 to {target.num_classes} or one of "
        f"{', '.join(target.names)}"
    )


def _parse_color(key: str) -> tuple[int, int, int] | None:
    if HEX_COLOR.fullmatch(key):
        return tuple(bytes.fromhex(key[1:]))
    match = DECIMAL_COLOR.fullmatch(key)
    color = tuple(map(int, match.groups())) if match else (256,)
    return color if max(color) <= 255 else None
