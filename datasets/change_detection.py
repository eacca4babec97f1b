"""Bi-temporal pairs on disk: index a folder, read one pair, return one dict."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.change_masks import layout_hint
from datasets.classes import ClassList, read_label
from datasets.folders import IMAGE_FOLDERS, label_folders
from datasets.partners import files_by_stem, require_partners
from datasets.transforms import TrainTransform
from utils.bands import RGB, Bands
from utils.errors import DataError
from utils.rasters import ARRAY_SUFFIX, read_bands, read_header

if TYPE_CHECKING:
    from datasets.cache import CachedReader

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})  # masks as well
RASTER_SUFFIXES = IMAGE_SUFFIXES | {ARRAY_SUFFIX}


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


class FileReader:
    """Decodes images and labels at every access; images give the chosen bands."""

    def __init__(self, classes: ClassList, bands: Bands = RGB) -> None:
        self._classes = classes
        self._bands = bands

    def image(self, path: Path) -> np.ndarray:
        """Return (H, W, bands) uint8 or uint16."""
        return read_bands(path, self._bands)

    def label(self, path: Path) -> np.ndarray:
        """Return (H, W) uint8 class indices."""
        return read_label(path, self._classes)


class ChangeDetectionDataset(Dataset):
    """Pairs as dicts: for training, validation, pseudo labelling and testing alike.

    A sample holds ``name`` (str), ``image1/image2`` (bands, H, W) uint8 or uint16 and, where the
    pair has labels, ``label1/label2`` (H, W) uint8 (0 = unlabelled, 1..C) and ``change_mask``
    (H, W) uint8 (1 = changed). A date without labels has no key, under a binary class list neither
    has. ``change_mask`` comes from the ground truth even when ``pseudo_label_root`` replaces the
    semantic labels.

    Args:
        pairs: what `index_pairs` found.
        classes: the class list.
        transform: augmentation; None for evaluation.
        pseudo_label_root: folder with ``im1`` and ``im2`` of masks that replace the labels.
        seed: together with `set_epoch` and the index decides every random draw.
        reader: has ``image(path)`` and ``label(path)``; None decodes the files at every access, as
            RGB of 8 bits.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassList,
        transform: TrainTransform | None = None,
        pseudo_label_root: Path | None = None,
        seed: int = 0,
        reader: "FileReader | CachedReader | None" = None,
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.transform = transform
        self.pseudo_label_root = pseudo_label_root
        self.seed = seed
        self.reader = reader or FileReader(classes)
        if pseudo_label_root is not None:
            _require_pseudo_masks(self.pairs, pseudo_label_root)
        # Shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating over a loader."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        sample: dict[str, Any] = {"name": pair.name, **_read_images(pair, self.reader)}
        if pair.labels:
            sample |= self._read_labels(pair, sample["image1"].shape[:2])
            if self.pseudo_label_root is not None:
                sample |= self._read_pseudo_labels(pair, sample["image1"].shape[:2])
        if self.transform is not None:
            sample = self.transform(sample, (self.seed, int(self._epoch[0]), index))
        for key in ("image1", "image2"):
            sample[key] = torch.from_numpy(sample[key]).permute(2, 0, 1)
        for key in ("label1", "label2", "change_mask"):
            if key in sample:
                sample[key] = torch.from_numpy(sample[key])
        return sample

    def labels(self, index: int) -> dict[str, torch.Tensor]:
        """Return the labels of a pair as `__getitem__` does, without reading its images."""
        pair = self.pairs[index]
        if not pair.labels:
            return {}
        labels = self._read_labels(pair, image_size(pair.image1))
        return {key: torch.from_numpy(label) for key, label in labels.items()}

    def _read_labels(self, pair: Pair, size: tuple[int, int]) -> dict[str, np.ndarray]:
        if pair.change_mask and not self.classes.is_binary:
            raise DataError(
                f"{pair.change_mask}: a change mask, but the class list names "
                f"{self.classes.num_classes} classes; add label1 and label2, or remove classes.json"
            )
        labels = _read_labels(pair, self.reader, size)
        changed = (next(iter(labels.values())) > 0).astype(np.uint8)
        return {**({} if self.classes.is_binary else labels), "change_mask": changed}

    def _read_pseudo_labels(self, pair: Pair, size: tuple[int, int]) -> dict[str, np.ndarray]:
        masks = {}
        for key, folder in (("label1", "im1"), ("label2", "im2")):
            path = pseudo_mask(self.pseudo_label_root, folder, pair)
            masks[key] = self.reader.label(path)
            _require_size(path, masks[key].shape, pair.image1, size)
        return masks


def pseudo_mask(root: Path, folder: str, pair: Pair) -> Path:
    """Return where label.py writes the mask of a pair; ``folder`` is ``im1`` or ``im2``."""
    return root / folder / f"{pair.name}.png"


def _require_pseudo_masks(pairs: Sequence[Pair], root: Path) -> None:
    for path in (pseudo_mask(root, date, pair) for pair in pairs for date in IMAGE_FOLDERS):
        if not path.exists():
            raise DataError(f"{path}: no pseudo mask for this pair; run label.py first")


def _read_images(pair: Pair, reader: "FileReader | CachedReader") -> dict[str, np.ndarray]:
    image1, image2 = reader.image(pair.image1), reader.image(pair.image2)
    _require_size(pair.image2, image2.shape[:2], pair.image1, image1.shape[:2])
    return {"image1": image1, "image2": image2}


def _read_labels(
    pair: Pair, reader: "FileReader | CachedReader", size: tuple[int, int]
) -> dict[str, np.ndarray]:
    labels = {key: reader.label(path) for key, path in pair.labels.items()}
    for key, label in labels.items():
        _require_size(pair.labels[key], label.shape, pair.image1, size)
    masks = [label > 0 for label in labels.values()]
    disagreeing = int((masks[0] != masks[-1]).sum())
    if disagreeing:
        raise DataError(
            f"{pair.label1} and {pair.label2}: disagree on what changed in {disagreeing} pixels "
            "(0 in one, a class in the other); correct the masks or remove the pair"
        )
    return labels


def _require_size(
    path: Path, size: tuple[int, ...], other: Path, expected: tuple[int, ...]
) -> None:
    if tuple(size) != tuple(expected):
        raise DataError(
            f"{path}: {size[1]} × {size[0]} pixels, but {other} has {expected[1]} × {expected[0]}; "
            "co-register the pair to one size"
        )


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from an image file's header, without decoding it.

    Raises:
        DataError: the file is not an image.
    """
    header = read_header(path)
    return header.height, header.width
