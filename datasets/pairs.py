"""Bi-temporal pairs on disk: index a folder, read one pair, return one dict."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.classes import ClassList
from datasets.images import ARRAY_SUFFIX
from datasets.splits import AS_THE_DATA_SUGGESTS, Split, SplitOptions, by_folders, divide
from utils.errors import DataError


@dataclass(frozen=True)
class Pair:
    """One place at two dates.

    Attributes:
        id: ``<folder>/<stem>``, such as ``train/00001``.
        image1, image2: image files.
        label1, label2: label files, or None where a date has no label.
        change_mask: file that says what changed and no classes; None where there is none.
    """

    id: str
    image1: Path
    image2: Path
    label1: Path | None = None
    label2: Path | None = None
    change_mask: Path | None = None

    @property
    def labels(self) -> dict[str, Path]:
        """The label files there are, by their key in a sample."""
        files = {"label1": self.label1, "label2": self.label2, "change_mask": self.change_mask}
        return {key: path for key, path in files.items() if path is not None}

    @property
    def labelled_dates(self) -> tuple[int, ...]:
        """The dates whose classes are labelled, of 1 and 2."""
        return tuple(date for date in (1, 2) if f"label{date}" in self.labels)

    @property
    def files(self) -> tuple[Path | None, ...]:
        """All files of the pair; None for a label there is not."""
        change_mask = () if self.change_mask is None else (self.change_mask,)
        return self.image1, self.image2, self.label1, self.label2, *change_mask

    def without_labels(self) -> "Pair":
        """Return the pair's images alone."""
        return replace(self, label1=None, label2=None, change_mask=None)

    @property
    def name(self) -> str:
        """The file stem, which names the masks written for this pair."""
        return self.image1.stem


def split_pairs(
    root: Path, options: SplitOptions = AS_THE_DATA_SUGGESTS
) -> tuple[Split, list[Pair], list[Pair]]:
    """Return the split of a data set, its training pairs and its validation pairs.

    Raises:
        DataError: the folders are not a labelled data set, the split does not fit them, or the
            labels of ``train`` and ``val`` are of different kinds.
        OptionError: labels in ``root/val`` are asked for and missing.
    """
    root = Path(root)
    pairs = {pair.id: pair for pair in index_pairs(root / "train")}
    if not all(pair.labels for pair in pairs.values()):
        raise DataError(f"{root / 'train'}: no label1 and label2, nor label; training needs labels")
    protocol = options.choose(bool(label_folders(root / "val")))
    if protocol == "folders":
        if differing_labels(root):
            raise DataError(
                f"{differing_labels(root)}; use the same folders in both, or leave val out with "
                "--split every-10th, random or k-fold"
            )
        val_pairs = index_pairs(root / "val")
        split = by_folders(list(pairs), [pair.id for pair in val_pairs])
        pairs |= {pair.id: pair for pair in val_pairs}
    else:
        split = divide(list(pairs), options, protocol)
    return split, [pairs[name] for name in split.train], [pairs[name] for name in split.val]


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})  # masks as well

RASTER_SUFFIXES = IMAGE_SUFFIXES | {ARRAY_SUFFIX}


def index_pairs(folder: Path) -> list[Pair]:
    """List the pairs of ``folder/{im1,im2}``, with the labels of all `label_folders`.

    Raises:
        DataError: a folder is missing or empty, or a file has no partner.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; it needs im1 and im2, and --data-root names its parent"
        )
    images1, images2 = (_find_files(folder / name, RASTER_SUFFIXES) for name in IMAGE_FOLDERS)
    require_partners(images1, images2, folder / "im1", folder / "im2")
    if not images1:
        raise DataError(f"{folder}/im1: no images in it; expected {', '.join(_suffixes())} files")
    labels = {}
    for key, name in label_folders(folder).items():
        labels[key] = _find_files(folder / name)
        require_partners(images1, labels[key], folder / "im1", folder / name)
    return [
        Pair(
            f"{folder.name}/{stem}",
            images1[stem],
            images2[stem],
            **{key: files[stem] for key, files in labels.items()},
        )
        for stem in sorted(images1)
    ]


def index_voted_pairs(root: Path, classes: ClassList) -> list[Pair]:
    """List the pairs of ``root/train``, whose labels must leave something to vote on.

    Raises:
        DataError: as `index_pairs`, or the labels name no classes, or those of one date alone.
    """
    if classes.is_binary:
        raise DataError(
            f"{root}: change masks without classes: there is nothing to vote; pseudo labels need "
            "classes"
        )
    pairs = index_pairs(root / "train")
    missing = [f"label{date}" for date in (1, 2) if date not in pairs[0].labelled_dates]
    if missing:
        raise DataError(
            f"{root / 'train'}: no {' and '.join(missing)}; a vote fills in what the labels of "
            "both dates leave out"
        )
    return pairs


def _suffixes() -> list[str]:
    return sorted(suffix[1:] for suffix in RASTER_SUFFIXES)


def _find_files(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    if not folder.is_dir():
        expected = layout_hint(folder.parent) or "; a data set has im1, im2, label1 and label2"
        raise DataError(f"{folder}: no such folder{expected}")
    return files_by_stem(folder, suffixes)


def pseudo_mask(root: Path, folder: str, pair: Pair) -> Path:
    """Return where label.py writes the mask of a pair; ``folder`` is ``im1`` or ``im2``."""
    return root / folder / f"{pair.name}.png"


def layout_hint(folder: Path) -> str:
    """Return the remedy for images in A and B, as public change sets have them; else nothing."""
    found = [name for name in ("A", "B", "im1", "im2") if (folder / name).is_dir()]
    if found == ["A", "B"]:
        return f"; rename {folder / 'A'} to im1 and {folder / 'B'} to im2, label stays"
    return ""


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


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Return the visible files of a folder that have one of some suffixes, by stem, sorted.

    Args:
        folder: is there.
        suffixes: such as ``.png``, in lower case.

    Raises:
        DataError: two files have the same stem.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in files:
            raise DataError(f"{path} and {files[path.stem].name}: same name twice; remove one")
        files[path.stem] = path
    return files


def require_partners(
    files1: Mapping[str, Path], files2: Mapping[str, Path], folder1: Path, folder2: Path
) -> None:
    """Refuse files that are in one of two folders only.

    Args:
        files1: files of ``folder1`` by stem.
        files2: files of ``folder2`` by stem.
        folder1: for messages.
        folder2: for messages.

    Raises:
        DataError: names the first file alone, and the folder in which its partner is missing.
    """
    alone = sorted(set(files1) ^ set(files2))
    if not alone:
        return
    stem = alone[0]
    there, missing_in = (files1, folder2) if stem in files1 else (files2, folder1)
    raise DataError(
        f"{there[stem]}: no partner in {missing_in}{and_more(alone)}; add the file or remove this "
        f"one (a partner is called {stem}.*)"
    )


def and_more(names: Collection[str]) -> str:
    """Return ``(and 2 more)`` behind the first of three names, nothing behind a single one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
