"""Data sets: from a root folder to loaders of bi-temporal pairs."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import DataLoader, DistributedSampler

from datasets import splits
from datasets.change_detection import (
    LABEL_FOLDERS,
    ChangeDetectionDataset,
    Pair,
    SameSizeBatches,
    collate,
    image_size,
    index_pairs,
)
from datasets.classes import ClassList, load_classes
from datasets.splits import Split
from datasets.transforms import TrainTransform
from utils.errors import DataError, OptionError

__all__ = [
    "ChangeDetectionDataset",
    "ClassList",
    "Pair",
    "Split",
    "TrainTransform",
    "evaluation_loader",
    "index_pairs",
    "is_one_size",
    "load_classes",
    "set_epoch",
    "split_pairs",
    "training_loader",
]


def split_pairs(
    root: Path, train_list: Path | None = None, val_list: Path | None = None
) -> tuple[Split, list[Pair], list[Pair]]:
    """Return the split of a data set, its training pairs and its validation pairs.

    Lists of names win; else a labelled ``root/val`` is the validation set; else every 10th name.

    Raises:
        DataError: the folders are not a labelled data set, or a list does not fit them.
        OptionError: a training list without a validation list.
    """
    root = Path(root)
    pairs = {pair.id: pair for pair in index_pairs(root / "train")}
    if any(pair.label1 is None for pair in pairs.values()):
        raise DataError(f"{root / 'train'}: no label1 and label2 folders; training needs labels")
    if train_list is not None and val_list is None:
        raise OptionError("--train-list needs --val-list beside it")
    if val_list is not None:
        split = splits.from_lists(list(pairs), train_list, val_list)
    elif any((root / "val" / name).is_dir() for name in LABEL_FOLDERS):
        val_pairs = index_pairs(root / "val")
        split = splits.folders(list(pairs), [pair.id for pair in val_pairs])
        pairs |= {pair.id: pair for pair in val_pairs}
    else:
        split = splits.every_10th(list(pairs))
    return split, [pairs[name] for name in split.train], [pairs[name] for name in split.val]


def training_loader(
    dataset: ChangeDetectionDataset, batch_size: int, workers: int, seed: int, pin_memory: bool
) -> DataLoader:
    """Return shuffled batches; a last incomplete one is dropped where there are others.

    The order of an epoch follows from ``seed`` and the epoch's number alone; call `set_epoch`.

    Raises:
        DataError: pairs of several sizes without a crop, or smaller than the crop.
    """
    _check_training_sizes(dataset)
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=DistributedSampler(dataset, num_replicas=1, rank=0, seed=seed),
        drop_last=True,
        **_worker_options(workers, pin_memory),
    )


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Choose order and augmentation of the epoch that is iterated next."""
    loader.sampler.set_epoch(epoch)
    loader.dataset.set_epoch(epoch)


def evaluation_loader(
    dataset: ChangeDetectionDataset, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader:
    """Return batches of pairs of one size each, every pair once, in file order per size."""
    sizes = [image_size(pair.image1) for pair in dataset.pairs]
    return DataLoader(
        dataset,
        batch_sampler=SameSizeBatches(sizes, batch_size),
        **_worker_options(workers, pin_memory),
    )


def is_one_size(loader: DataLoader) -> bool:
    """Tell whether all pairs of an evaluation loader have the same height and width."""
    return len(loader.batch_sampler.sizes) == 1


def _worker_options(workers: int, pin_memory: bool) -> dict:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
    }


def _check_training_sizes(dataset: ChangeDetectionDataset) -> None:
    pairs: Sequence[Pair] = dataset.pairs
    crop = dataset.transform.crop_size if dataset.transform else None
    first = image_size(pairs[0].image1)
    for pair in pairs:
        size = image_size(pair.image1)
        if crop and min(size) < crop:
            raise DataError(
                f"{pair.image1}: {size[1]} × {size[0]} pixels, smaller than --crop-size {crop}; "
                f"use --crop-size {min(size)} or less"
            )
        if not crop and size != first:
            raise DataError(
                f"{pair.image1}: {size[1]} × {size[0]} pixels, but {pairs[0].image1} has "
                f"{first[1]} × {first[0]}; train on pairs of several sizes with --crop-size N"
            )
