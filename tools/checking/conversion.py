"""A clean copy of a data set: 8-bit images as PNG, others as they are, labels without doubt."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import CLASSES_FILE, ClassList
from datasets.images import Header, open_image, read_header, read_raster
from datasets.labels import COLOR_DISTANCE, NEAR_COLORS, inspect_label
from datasets.pairs import Pair
from tools.checking.class_map import ClassMap
from tools.checking.findings import Entry, relative
from tools.checking.scan import SplitScan, scan_dataset
from utils.errors import DataError, OptionError
from utils.files import atomic_path, write_json
from utils.parallel import ParallelMap
from utils.pictures import save_change_mask, save_image, save_mask, to_rgb

BROKEN_NAMES = ("no-partner", "partner-case", "same-stem")


@dataclass(frozen=True)
class Rules:
    """How labels are converted.

    Attributes:
        classes: the class list of the copy.
        class_map: meaning of foreign values and colours; None for labels of ``classes``.
        color_distance: Euclidean RGB distance up to which a colour counts as a class's.
        unchanged_where_equal: labels become 0 where both dates have the same class.
        resolve_disagreement: labels become 0 where only one date has a class.
    """

    classes: ClassList
    class_map: ClassMap | None = None
    color_distance: int = COLOR_DISTANCE
    unchanged_where_equal: bool = False
    resolve_disagreement: bool = False


@dataclass(frozen=True)
class Conversion:
    """What `convert_dataset` did: number of pairs written, and what was left out and why."""

    written: int
    left_out: list[Entry]


def check_target(root: Path, out: Path) -> None:
    """Refuse a folder for the copy that could touch the source.

    Raises:
        OptionError: ``out`` is the source, inside it or around it, is a file, or is not empty.
    """
    source, target = Path(root).resolve(), Path(out).resolve()
    if target == source or target.is_relative_to(source) or source.is_relative_to(target):
        raise OptionError(f"{out}: inside or around the source {root}; choose a folder beside it")
    if target.exists() and not target.is_dir():
        raise OptionError(f"{out}: a file; choose a folder that is empty or does not exist")
    if target.is_dir() and any(target.iterdir()):
        raise OptionError(f"{out}: not empty; choose a folder that is empty or does not exist")


def convert_dataset(
    root: Path,
    out: Path,
    rules: Rules,
    workers: int = 1,
    progress: Callable[[Iterable, str], Iterable] = lambda items, _: items,
) -> Conversion:
    """Write train, val and test of a data set, and its ``classes.json``, to an empty folder.

    Images of one or three 8-bit bands become PNGs of the same pixels; PNGs, and images of other
    bands or 16 bits, are copied byte by byte.
    A pair is written whole or left out.

    Raises:
        DataError: there is no pair below ``root``.
        OptionError: ``out`` could touch the source or is not empty.
        UserError: ``out`` cannot be written.
    """
    root, out = Path(root), Path(out)
    check_target(root, out)
    pairs, left_out = [], []
    for scan in scan_dataset(root).values():
        usable, broken = _usable_pairs(scan)
        pairs += usable
        left_out += broken
    entries = zip(rules.classes.names, rules.classes.colors, strict=True)
    write_json(out / CLASSES_FILE, [{"name": n, "color": list(c)} for n, c in entries])
    work = partial(convert_pair, out=out, rules=rules)
    written = 0
    reasons = progress(ParallelMap(work, pairs, workers), "pairs")
    for pair, reason in zip(pairs, reasons, strict=True):
        if reason:
            left_out.append(Entry((relative(pair.image1, root),), reason, (pair.id,)))
        else:
            written += 1
    return Conversion(written, left_out)


def convert_pair(pair: Pair, out: Path, rules: Rules) -> str:
    """Write one pair below ``out``; return why it was left out, or an empty text."""
    try:
        headers = [read_header(path) for path in (pair.image1, pair.image2)]
        images = [read_raster(path) for path in (pair.image1, pair.image2)]
        labels = _convert_labels(pair, rules) if pair.labels else {}
    except (DataError, ValueError) as error:
        return str(error)
    sizes = {image.shape[:2] for image in images} | {label.shape for label in labels.values()}
    if len(sizes) > 1:
        return "its files differ in size"
    folder = out / pair.id.split("/")[0]
    for number, path in enumerate((pair.image1, pair.image2)):
        target = folder / f"im{number + 1}" / pair.name
        _write_image(target, path, headers[number], images[number])
    for key, label in labels.items():
        target = folder / pair.labels[key].parent.name / f"{pair.name}.png"
        if rules.classes.is_binary:
            save_change_mask(target, label)
        else:
            save_mask(target, label, rules.classes.colors)
    return ""


def decode_label(image: Image.Image, rules: Rules) -> np.ndarray:
    """Return a label of any format as (H, W) uint8 indices of ``rules.classes``.

    Raises:
        ValueError: values or colours that say no class.
    """
    if rules.class_map is not None:
        return rules.class_map.apply(image, rules.color_distance)
    reading = inspect_label(image, rules.classes, rules.color_distance)
    if reading.mask is not None:
        return reading.mask
    values, names = np.asarray(image), rules.classes.names
    if image.mode.startswith("I") and values.min() >= 0 and values.max() <= len(names) - 1:
        return values.astype(np.uint8)
    remedy = "raise --color-distance" if reading.format == NEAR_COLORS else "give a --class-map"
    raise ValueError(f"{reading.format}, {reading.detail}; {remedy}")


def _convert_labels(pair: Pair, rules: Rules) -> dict[str, np.ndarray]:
    labels = {}
    for key, path in pair.labels.items():
        try:
            labels[key] = decode_label(open_image(path), rules)
        except ValueError as error:
            raise ValueError(f"{path.parent.name}/{path.name}: {error}") from error
    first, *_, last = list(labels.values()) * 2
    if first.shape != last.shape:
        raise ValueError("its files differ in size")
    unchanged = np.zeros(first.shape, dtype=bool)
    if rules.unchanged_where_equal:
        if len(pair.labelled_dates) < 2 or rules.classes.is_binary:
            raise ValueError("--unchanged-where-equal needs the classes of both dates")
        unchanged |= first == last
    disagreeing = (first > 0) != (last > 0)
    if rules.resolve_disagreement:
        unchanged |= disagreeing
    elif disagreeing.any():
        raise ValueError(
            f"labels disagree on what changed in {int(disagreeing.sum())} pixels; correct them or "
            "use --resolve-disagreement"
        )
    return {key: np.where(unchanged, 0, label).astype(np.uint8) for key, label in labels.items()}


def _write_image(target: Path, source: Path, header: Header, values: np.ndarray) -> None:
    """Write an image below ``target``, a path that lacks the suffix."""
    if header.format != "PNG" and header.bits == 8 and header.bands in (1, 3):
        save_image(target.with_name(f"{target.name}.png"), to_rgb(values))
        return
    suffix = ".png" if header.format == "PNG" else source.suffix.lower()
    with atomic_path(target.with_name(target.name + suffix)) as temporary:
        shutil.copyfile(source, temporary)


def _usable_pairs(scan: SplitScan) -> tuple[list[Pair], list[Entry]]:
    """Pairs whose partners are certain, and the entries of the names that are not."""
    broken = [entry for kind, entry in scan.found if kind in BROKEN_NAMES]
    stems = {Path(file).stem for entry in broken for file in entry.files}
    return [pair for pair in scan.pairs if pair.name not in stems], broken
