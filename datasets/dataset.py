"""Bi-temporal pairs on disk: index a folder, read one pair, return one dict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.augment import TrainTransform
from datasets.cache import CachedReader, FileReader
from datasets.classes import ClassList
from datasets.images import image_size
from datasets.pairs import IMAGE_FOLDERS, Pair, pseudo_mask
from utils.errors import DataError


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
