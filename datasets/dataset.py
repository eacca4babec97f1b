"""One image pair, from its files to a sample."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.cache import CachedReader, FileReader
from datasets.classes import IGNORED
from datasets.images import read_header, valid_in_all
from datasets.pairs import Pair, pseudo_mask
from datasets.task import Task
from utils.errors import DataError

Transform = Callable[[dict[str, Any], Sequence[int]], dict[str, Any]]
Size = tuple[int, ...]


class ChangeDetectionDataset(Dataset):
    """Pairs as dicts: for training, validation, pseudo labelling and testing alike.

    A sample holds ``name`` (str), ``image1/image2`` (bands, H, W) uint8 or uint16 and, where the
    pair has labels, ``label1/label2`` (H, W) uint8 (0 = unlabelled, 1..C) and ``change_mask``
    (H, W) uint8 (1 = changed). A date without labels has no key, of change masks neither has.
    Pixels without data at either date are `IGNORED` in all of them, and True in ``ignored`` (H, W),
    which only untransformed samples with such pixels have; their images are filled.
    Masks under ``pseudo_label_root`` replace the labels, but never ``change_mask``. ``seed``,
    `set_epoch` and the index decide every draw of ``transform``. A DataError for missing pseudo
    masks; when a sample is read, for files that cannot be decoded or do not fit each other.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        task: Task,
        transform: Transform | None = None,
        pseudo_label_root: Path | None = None,
        seed: int = 0,
        reader: FileReader | CachedReader | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.task = task
        self.transform = transform
        self.pseudo_label_root = pseudo_label_root
        self.seed = seed
        self.reader = reader or FileReader(task.classes)
        for path in (path for pair in self.pairs for path in self._pseudo_masks(pair).values()):
            if not path.exists():
                raise DataError(f"{path}: no pseudo mask for this pair; run label.py first")
        # Shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating over a loader."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        (image1, valid1), (image2, valid2) = map(self.reader.image, (pair.image1, pair.image2))
        size = image1.shape[:2]
        require_size(pair.image2, image2.shape[:2], pair.image1, size)
        valid = valid_in_all((valid1, valid2))
        sample = {"name": pair.name, "image1": image1, "image2": image2}
        if pair.labels:
            sample |= self._read_labels(pair, size, valid)
            for key, path in self._pseudo_masks(pair).items():
                mask = self.reader.label(path)
                require_size(path, mask.shape, pair.image1, size)
                sample[key] = _ignore(mask, valid)
        if self.transform is not None:
            sample = self.transform(sample, (self.seed, int(self._epoch[0]), index))
        elif valid is not None:
            sample["ignored"] = ~valid
        tensors = {key: torch.from_numpy(sample[key]) for key in sample if key != "name"}
        for key in ("image1", "image2"):
            tensors[key] = tensors[key].permute(2, 0, 1)
        return {"name": pair.name, **tensors}

    def labels(self, index: int) -> dict[str, torch.Tensor]:
        """Return the labels of a pair as `__getitem__` does, without reading its images."""
        pair = self.pairs[index]
        if not pair.labels:
            return {}
        headers = {path: read_header(path) for path in (pair.image1, pair.image2)}
        masked = [path for path, header in headers.items() if header.masked]
        valid = valid_in_all(self.reader.image(path)[1] for path in masked)
        size = headers[pair.image1].height, headers[pair.image1].width
        labels = self._read_labels(pair, size, valid)
        return {key: torch.from_numpy(label) for key, label in labels.items()}

    def _read_labels(
        self, pair: Pair, size: Size, valid: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        if pair.change_mask and not self.task.is_binary:
            raise DataError(
                f"{pair.change_mask}: a change mask, but the class list names "
                f"{self.task.num_classes} classes; add label1 and label2, or remove classes.json"
            )
        labels = {key: self.reader.label(path) for key, path in pair.labels.items()}
        for key, label in labels.items():
            require_size(pair.labels[key], label.shape, pair.image1, size)
            labels[key] = _ignore(label, valid)
        first, *_, last = [label > 0 for label in labels.values()] * 2
        disagreeing = int((first != last).sum())
        if disagreeing:
            raise DataError(
                f"{pair.label1} and {pair.label2}: disagree on what changed in {disagreeing} "
                "pixels (0 in one, a class in the other); correct the masks or remove the pair"
            )
        change_mask = _ignore(first.astype(np.uint8), valid)
        return {**({} if self.task.is_binary else labels), "change_mask": change_mask}

    def _pseudo_masks(self, pair: Pair) -> dict[str, Path]:
        keys = {} if self.pseudo_label_root is None else {"label1": "im1", "label2": "im2"}
        return {k: pseudo_mask(self.pseudo_label_root, folder, pair) for k, folder in keys.items()}


def _ignore(label: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    return label if valid is None else np.where(valid, label, np.uint8(IGNORED))


def require_size(
    path: Path, size: Size, other: Path, expected: Size, remedy: str = "co-register the pair"
) -> None:
    """Raise a DataError unless two files have the same (height, width)."""
    (height, width), (rows, columns) = size, expected
    if (height, width) != (rows, columns):
        raise DataError(
            f"{path}: {width} × {height} pixels, but {other} has {columns} × {rows}; {remedy}"
        )
