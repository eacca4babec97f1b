"""Class lists, names and colours by index, and the public data sets that have them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import DataError, OptionError
from utils.files import read_json

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


@dataclass(frozen=True)
class Preset:
    """How a data set is published: its classes, folders and codes.

    ``forms`` are the folders of a split by role, ``im1``, ``im2`` and the keys of a pair's labels,
    in each form there is; ``*`` stands for any folder. ``coded`` tells by key the band of a label
    file and the class of each value in it, a digit each, or nothing if they are the same;
    ``change_mask`` says where these classes count. Files are partners by stem, or by the groups of
    ``partners``.
    """

    classes: ClassList | None
    forms: Sequence[Mapping[str, str]]
    coded: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    partners: re.Pattern | None = None

    def stem(self, path: Path) -> str:
        """Return what the files of one pair have in common."""
        match = self.partners and self.partners.match(path.stem)
        return "-".join(match.groups()) if match else path.stem


def _classes(text: str) -> ClassList:
    entries = [entry.rpartition(" ") for entry in text.split(", ")]
    return ClassList(
        tuple(name for name, _, _ in entries),
        tuple(tuple(bytes.fromhex(color)) for _, _, color in entries),
    )


def _form(text: str) -> dict[str, str]:
    image1, image2, *labels = text.split()
    keys = ("change_mask",) if len(labels) == 1 else ("label1", "label2", "change_mask")
    return {"im1": image1, "im2": image2, **dict(zip(keys, labels, strict=False))}


STANDARD = Preset(None, [_form("im1 im2 label1 label2 label")])
# ChangeMamba's README @b834b2a. Others have put its index labels into im1, im2, label1, label2.
_SECOND_FORMS = (*STANDARD.forms, _form("T1 T2 GT_T1 GT_T2"))
_MASK_FORMS = (_form("A B label"), _form("T1 T2 GT"))
_HI_UCD_MASKS = ("mask_merge/2017_2018/9 ", "mask_merge/2018_2019/9 ", "mask/2018_2019 ")
PRESETS = {
    # captain-whu.github.io/SCD: colours; open-cd @3de2b63 opencd/datasets/second.py has this order
    "second": Preset(SECOND_CLASSES, _SECOND_FORMS),
    # The order in which those list the classes who use ChangeMamba's index labels.
    "second-changemamba-order": Preset(
        _classes(
            "unchanged ffffff, low vegetation 008000, ground 808080, tree 00ff00, water 0000ff, "
            "building 800000, playground ff0000"
        ),
        _SECOND_FORMS,
    ),
    # figshare 19946135; codes and colours: SCanNet @5de0d57 datasets/LandsatSCD
    "landsat-scd": Preset(
        _classes("unchanged ffffff, farmland 009b00, desert ffa500, building e61e64, water 00aaf0"),
        [_form("A B label label")],
        {"label1": (0, "0112223344"), "label2": (0, "0231341212")},
    ),
    # github.com/Daisy-7/Hi-UCD-S; channels as csf-mamba reads them: date 1, date 2, and change with
    # 1 unchanged, 2 changed. The mini release (…/9) tests on other years. Colours are our own.
    "hi-ucd": Preset(
        _classes(
            "unchanged ffffff, water 0000ff, grass 00ff00, building 800000, greenhouse ff00ff, "
            "road 808080, bridge ff8000, others 000000, bare land a0825a, woodland 008000"
        ),
        [
            _form("image/2017/9 image/2018/9 " + 3 * _HI_UCD_MASKS[0]),
            _form("image/2018/9 image/2019/9 " + 3 * _HI_UCD_MASKS[1]),
            _form("image/2018 image/2019 " + 3 * _HI_UCD_MASKS[2]),
        ],
        {"label1": (0, ""), "label2": (1, ""), "change_mask": (2, "001")},
    ),
    # ieee-dataport.org, as dataset-ninja/hrscd unpacks it; names of the dates differ. Own colours.
    "hrscd": Preset(
        _classes(
            "unchanged ffffff, artificial c80000, agricultural e6c850, forest 006e00, "
            "wetland 9650c8, water 0000ff"
        ),
        [
            _form(
                "images_2006/2006/* images_2012/2012/* labels_land_cover_2006/2006/* "
                "labels_land_cover_2012/2012/* labels_change/change/*"
            )
        ],
        {"label1": (0, ""), "label2": (0, ""), "change_mask": (0, "01")},
        re.compile(r"(\d+)-\d+-(\d+-\d+)-"),
    ),
    # justchenhao.github.io/LEVIR; both also cut to 256², one folder and list/{train,val,test}.txt
    "levir-cd": Preset(CHANGE_CLASSES, _MASK_FORMS),
    "whu-cd": Preset(CHANGE_CLASSES, _MASK_FORMS),
    # github.com/S2Looking/Dataset: label1 (built) and label2 (demolished) are parts of label
    "s2looking": Preset(CHANGE_CLASSES, [_form("Image1 Image2 label")]),
}

# Percent of SECOND's changed pixels in the training set, both dates.
_SECOND_SHARES = {
    **{"water": 1.0, "ground": 37.1, "low vegetation": 21.5},
    **{"tree": 4.5, "building": 35.1, "playground": 0.7},
}
_LIKELY, _LIKELIER = 0.15, 0.25  # nats: the most from shares of the other order, the least gained


def find_preset(name: str | None, root: Path, coded: bool = False) -> Preset:
    """Return a preset, or the standard layout for None, or where a coded set has been converted.

    A DataError for a set that has to be converted first, unless ``coded`` ones are wanted.
    """
    if name is None:
        return STANDARD
    if name not in PRESETS:
        raise OptionError(f"--preset {name}: choose from {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if preset.coded and (root / "train" / "im1").is_dir():
        return STANDARD
    if preset.coded and not coded:
        raise DataError(
            f"{root}: {name} codes its labels otherwise; write a copy to train on with python "
            f"tools/check_data.py {root} --preset {name} --convert OUT"
        )
    return preset


def suspect_order(classes: ClassList, counts: np.ndarray) -> str:
    """Say that labels seem to be in the other of SECOND's two orders; else nothing.

    ``counts`` are (C + 1,) changed pixels by index. Shares of the classes are evidence, no proof.
    """
    orders = {name: PRESETS[name].classes.names for name in ("second", "second-changemamba-order")}
    if classes.names not in orders.values() or not counts[1:].any():
        return ""
    [other] = (name for name, names in orders.items() if names != classes.names)
    shares = counts[1:] / counts[1:].sum()
    met = shares > 0

    def divergence(names: Sequence[str]) -> float:  # Kullback and Leibler's
        expected = np.array([_SECOND_SHARES[name] for name in names[1:]]) / 100
        return float((shares[met] * np.log(shares[met] / expected[met])).sum())

    fit = divergence(orders[other])
    if fit > _LIKELY or divergence(classes.names) < fit + _LIKELIER:
        return ""
    return (
        f"the changed area has the classes that SECOND has if the labels are of --preset {other}; "
        "if they are, name it here, or convert with it (tools/check_data.py)"
    )


def classes_file(path: Path) -> Path:
    """Return the file that ``--classes`` names: any file, or the ``classes.json`` of a folder."""
    path = Path(path)
    return path / CLASSES_FILE if path.is_dir() else path


def read_classes(path: Path) -> ClassList:
    """Read a JSON list of ``{"name": "tree", "color": [0, 255, 0]}`` by index; else a DataError."""
    path = Path(path)
    try:
        entries = read_json(path)
        colors = tuple((int(r), int(g), int(b)) for r, g, b in (e["color"] for e in entries))
        return ClassList(tuple(str(entry["name"]) for entry in entries), colors)
    except FileNotFoundError as error:
        remedy = f"name a JSON file of classes, or a folder with a {CLASSES_FILE}"
        raise DataError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        example = '[{"name": "unchanged", "color": [255, 255, 255]}, …], unchanged first'
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: {reason}; expected a list like {example}") from error
