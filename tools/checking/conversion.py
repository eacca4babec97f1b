"""A clean copy of a data set: 8-bit images as PNG, others as they are, labels without doubt."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.classes import CLASSES_FILE, STANDARD, ClassList, Preset
from datasets.images import open_image, read_all, read_header
from datasets.labels import COLOR_DISTANCE, NEAR_COLORS, inspect_label, read_coded
from datasets.pairs import CHANGE_FOLDER, SPLIT_FOLDERS, Pair
from tools.checking.class_map import ClassMap
from tools.checking.findings import Entry
from tools.checking.inspection import scan_names
from tools.scenes.folders import digest_files, goes_on, unfinished
from utils.errors import DataError, OptionError
from utils.files import atomic_path, write_json
from utils.parallel import ParallelMap
from utils.pictures import save_change_mask, save_image, save_mask, to_rgb
from utils.text import progress

BROKEN_NAMES = ("no-partner", "partner-case", "partner-form", "same-stem", "unread-pair")
OTHER_SIZE = "its files differ in size"


@dataclass(frozen=True)
class Rules:
    """How labels are converted, as the options of that name of tools/check_data.py say.

    ``classes`` is the list of the copy. Without a ``class_map`` it has all classes of the source,
    whose list is ``source`` where that is another one.
    """

    classes: ClassList
    class_map: ClassMap | None = None
    color_distance: int = COLOR_DISTANCE
    unchanged_where_equal: bool = False
    resolve_disagreement: bool = False
    preset: Preset = STANDARD  # of the source
    source: ClassList | None = None


def convert_dataset(
    root: Path, out: Path, rules: Rules, workers: int = 1
) -> tuple[int, list[Entry]]:
    """Write train, val and test of a data set, and its ``classes.json``, to an empty folder, or go
    on where the same work was ended there.

    Images of one or three 8-bit bands become PNGs of the same pixels; PNGs, and images of other
    bands or 16 bits, are copied byte by byte. A pair is written whole or left out. Returns the
    number of pairs written, and what was left out and why.

    Raises:
        DataError: there is no pair below ``root``.
        OptionError: ``out`` could touch the source, or holds something else.
    """
    root, out = Path(root), Path(out)
    _require_apart(root, out)
    pairs, _, found = scan_names(root, preset=rules.preset)
    left_out = [entry for kind, entry in found if kind in BROKEN_NAMES]
    uncertain = set()
    for file in (file for entry in left_out for file in entry.files):
        first, stem = file.split("/")[0], rules.preset.stem(Path(file))
        # Without split folders any split may have it.
        places = (first,) if first in SPLIT_FOLDERS else SPLIT_FOLDERS
        uncertain |= {f"{place}/{stem}" for place in places}
    pairs = [pair for pair in pairs if pair.id not in uncertain]
    files = digest_files(file for pair in pairs for file in pair.files)
    record = {"tool": "check_data.py", "source": f"{root.resolve()} {files}", **vars(rules)}
    if not goes_on(out, record):
        _require_empty(out)
    with unfinished(out, record):
        entries = zip(rules.classes.names, rules.classes.colors, strict=True)
        write_json(out / CLASSES_FILE, [{"name": n, "color": list(c)} for n, c in entries])
        work = ParallelMap(partial(convert_pair, out=out, rules=rules), pairs, workers)
        reasons = list(progress(work, "converting", unit="pairs"))
    left_out += [
        Entry((f"{Path(pair.id).parent}/im1/{pair.image1.name}",), reason, (pair.id,))
        for pair, reason in zip(pairs, reasons, strict=True)
        if reason
    ]
    return reasons.count(""), left_out


def convert_pair(pair: Pair, out: Path, rules: Rules) -> str:
    """Write one pair below ``out``; return why it was left out, or an empty text."""
    folder = out / pair.id.split("/")[0]
    images = {"im1": pair.image1, "im2": pair.image2}
    names = {key: CHANGE_FOLDER if key == "change_mask" else key for key in pair.labels}
    labels = {key: folder / name / f"{pair.name}.png" for key, name in names.items()}
    try:
        plain, copies = {}, {}
        for name, path in images.items():
            header = read_header(path)
            is_png = header.format == "PNG"
            is_plain = header.bits == 8 and header.bands in (1, 3)
            is_plain = is_plain and not (header.masked or is_png)
            suffix = ".png" if is_plain or is_png else path.suffix.lower()
            (plain if is_plain else copies)[folder / name / f"{pair.name}{suffix}"] = path
        if all(path.exists() for path in (*plain, *copies, *labels.values())):
            return ""
        arrays = {path: read_all(path)[0] for path in images.values()}
        masks = _convert_labels(pair, rules) if labels else {}
    except (DataError, ValueError) as error:
        return str(error)
    if len({array.shape[:2] for array in (*arrays.values(), *masks.values())}) > 1:
        return OTHER_SIZE
    for target, path in plain.items():
        save_image(target, to_rgb(arrays[path]))
    for target, path in copies.items():
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
    for key, label in masks.items():
        if rules.classes.is_binary:
            save_change_mask(labels[key], label)
        else:
            save_mask(labels[key], label, rules.classes.colors)
    return ""


def _require_apart(root: Path, out: Path) -> None:
    source, target = root.resolve(), out.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise OptionError(f"{out}: inside or around the source {root}; choose a folder beside it")


def _require_empty(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.glob("[!.]*"))):
        wrong = "not empty" if out.is_dir() else "a file"
        raise OptionError(f"{out}: {wrong}; choose a folder that is empty or does not exist")


def _convert_labels(pair: Pair, rules: Rules) -> dict[str, np.ndarray]:
    coded = rules.preset.coded
    labels = read_coded(list(pair.labels.values()), rules.preset) if coded else {}
    for key, path in () if coded else pair.labels.items():
        try:
            labels[key] = _decode_label(open_image(path), rules)
        except ValueError as error:
            raise ValueError(f"{path.parent.name}/{path.name}: {error}") from error
    if len({label.shape for label in labels.values()}) > 1:
        raise ValueError(OTHER_SIZE)
    if rules.source and not rules.class_map:
        order = np.array([rules.classes.names.index(name) for name in rules.source.names])
        labels = {key: order[label] for key, label in labels.items()}
    first, *_, last = list(labels.values()) * 2
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


def _decode_label(image: Image.Image, rules: Rules) -> np.ndarray:
    """Return a label of any format as (H, W) uint8 indices, or raise ValueError."""
    if rules.class_map is not None:
        return rules.class_map.apply(image, rules.color_distance)
    reading = inspect_label(image, rules.source or rules.classes, rules.color_distance)
    if reading.mask is not None:
        return reading.mask
    values = np.asarray(image)
    if image.mode.startswith("I") and ((values >= 0) & (values <= rules.classes.num_classes)).all():
        return values.astype(np.uint8)
    remedy = "raise --color-distance" if reading.format == NEAR_COLORS else "give a --class-map"
    raise ValueError(f"{reading.format}, {reading.detail}; {remedy}")
