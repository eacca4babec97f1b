"""Change masks without classes: how a data set of them is recognised, and how they are read."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.folders import SPLIT_FOLDERS, label_folders
from utils.errors import DataError
from utils.masks import CHANGE_MASKS, open_image

LOOKED_AT, OPENED = 8, 64  # labels of one folder: that show change, and at the most
WHITE = 255


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


def layout_hint(folder: Path) -> str:
    """Return the remedy for images in A and B, as public change sets have them; else nothing."""
    found = [name for name in ("A", "B", "im1", "im2") if (folder / name).is_dir()]
    if found == ["A", "B"]:
        return f"; rename {folder / 'A'} to im1 and {folder / 'B'} to im2, label stays"
    return ""


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
