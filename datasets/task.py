"""Change masks without classes: how a data set of them is recognised, and how they are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.classes import CHANGE_CLASSES, CLASSES_FILE, SECOND_CLASSES, ClassList, read_classes
from datasets.images import open_image
from datasets.labels import WHITE
from datasets.pairs import SPLIT_FOLDERS, Pair, label_folders
from utils.errors import DataError
from utils.pictures import CHANGE_MASKS

LOOKED_AT, OPENED = 8, 64  # labels of one folder: that show change, and at the most


def find_change_masks(root: Path) -> str:
    """Say by what a data set shows that its labels name no classes; empty where they may.

    The first split with labels decides: either ``label`` stands alone there, or label1 and label2
    are grey and hold 0 and 255 only. 255 is no index of any class list, so no semantic set is
    taken for a binary one.

    Args:
        root: data set, or one of its split folders.
    """
    for folder in (*(root / name for name in SPLIT_FOLDERS), root):
        labels = label_folders(folder)
        if "change_mask" not in labels and labels:
            masks = _holds_masks(folder / next(iter(labels.values())))
            return "the labels looked at hold 0 and 255 only" if masks else ""
        # A folder of that name beside the splits may be anything.
        if labels and (folder / "im1").is_dir():
            return f"from {folder.name}/{labels['change_mask']}"
    return ""


def is_mask_folder(folder: Path) -> bool:
    """Tell whether a folder holds change masks: as a split (`find_change_masks`), or by itself.

    By itself it has image files, all that are looked at grey with 0 and 255 alone. As everywhere,
    ``label1`` and ``label2`` count before ``label``, and labels before masks in ``change``.
    """
    labels = label_folders(folder)
    if labels:
        return "change_mask" in labels or bool(find_change_masks(folder))
    if (folder / CHANGE_MASKS).is_dir() or find_change_masks(folder):
        return True
    return folder.is_dir() and not (folder / "im1").is_dir() and _holds_masks(folder)


def _holds_masks(folder: Path) -> bool:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    count = min(OPENED, len(files))
    spread = [files[i * len(files) // count] for i in range(count)]
    certain = 0
    # Every 8th first: labels may be blank for long stretches of names.
    for path in (path for first in range(LOOKED_AT) for path in spread[first::LOOKED_AT]):
        try:
            image = open_image(path)
        except DataError:
            continue
        # Colours do not tell: white may be unchanged, as in SECOND, or changed.
        values = set(np.flatnonzero(image.histogram())) if image.mode in ("L", "P") else {1}
        if not values <= {0, WHITE}:
            return False
        certain += WHITE in values
        if certain == LOOKED_AT:
            break
    return certain > 0


def load_classes(root: Path) -> ClassList:
    """Return the class list of ``root/classes.json``; without that file the data speaks.

    Labels that are change masks (`find_change_masks`) have the binary list, all others SECOND's.

    Raises:
        DataError: as `read_classes`.
    """
    path = Path(root) / CLASSES_FILE
    if path.exists():
        return read_classes(path)
    return CHANGE_CLASSES if find_change_masks(Path(root)) else SECOND_CLASSES


def missing_labels(
    root: Path, classes: ClassList, train_pairs: Sequence[Pair], val_pairs: Sequence[Pair]
) -> list[str]:
    """Say in a line each what a data set's labels leave out: classes, or a date.

    Args:
        root: of the data set.
        classes: its class list.
        train_pairs: labelled pairs to train on, one at least.
        val_pairs: labelled pairs to validate on, one at least.
    """
    if classes.is_binary:
        reason = find_change_masks(root) or "the class list names one class"
        return [f"binary change labels ({reason}): the change branch is trained alone"]
    differ = train_pairs[0].labelled_dates != val_pairs[0].labelled_dates
    # One split alone is likelier to be a folder that was forgotten than a choice.
    prefix = "warning: training and validation differ, is a folder missing? " if differ else ""
    return [
        f"{prefix}{name}: labels of date {pairs[0].labelled_dates[0]} only; {consequence}"
        for name, pairs, consequence in (
            ("training", train_pairs, "the other date's semantics are learnt from the shared head"),
            ("validation", val_pairs, "scores that need classes are of that date and say so"),
        )
        if len(pairs[0].labelled_dates) == 1
    ]


def labelled_dates(
    classes: ClassList, train_pairs: Sequence[Pair], val_pairs: Sequence[Pair]
) -> dict[str, list[int]]:
    """Return the dates whose classes a run learns and is scored on; none of a binary list.

    Args:
        classes: the class list.
        train_pairs: as for `missing_labels`.
        val_pairs: as for `missing_labels`.
    """
    return {
        name: [] if classes.is_binary else list(pairs[0].labelled_dates)
        for name, pairs in (("training", train_pairs), ("validation", val_pairs))
    }
