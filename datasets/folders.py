"""The folders of a split by name, and which of them holds its labels."""

from pathlib import Path

SPLIT_FOLDERS = ("train", "val", "test")
IMAGE_FOLDERS = ("im1", "im2")
LABEL_FOLDERS = ("label1", "label2")
CHANGE_FOLDER = "label"  # change masks, as public sets name it


def label_folders(folder: Path) -> dict[str, str]:
    """Return a split's label folders by the key of their labels in a sample.

    ``label1`` and ``label2``, or one of them; without both the change masks in ``label``.
    """
    dates = {name: name for name in LABEL_FOLDERS if (folder / name).is_dir()}
    return dates or ({"change_mask": CHANGE_FOLDER} if (folder / CHANGE_FOLDER).is_dir() else {})


def differing_labels(root: Path) -> str:
    """Say that ``train`` and ``val`` have labels of different kinds; empty where they have not.

    One kind is change masks in ``label``, the other labels of each date.
    """
    train, val = (label_folders(root / name) for name in ("train", "val"))
    if not train or not val or ("change_mask" in train) == ("change_mask" in val):
        return ""
    said = [" and ".join(folders.values()) for folders in (val, train)]
    return f"{root / 'val'}: labels in {said[0]}, but {root / 'train'} has them in {said[1]}"
