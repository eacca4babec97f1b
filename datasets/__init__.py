"""Data sets: from a root folder to loaders of bi-temporal pairs."""

import os
import signal
import socket
from collections.abc import Collection, Iterator, Sequence, Sized
from pathlib import Path

import torch
from torch.utils.data import DataLoader, DistributedSampler

from datasets import splits
from datasets.batches import SameSizeBatches, collate
from datasets.cache import CachedReader, build_cache
from datasets.cache_folders import cache_folder
from datasets.change_detection import (
    ChangeDetectionDataset,
    FileReader,
    Pair,
    image_size,
    index_pairs,
)
from datasets.classes import ClassList, load_classes
from datasets.folders import differing_labels, label_folders
from datasets.splits import Split
from datasets.transforms import TrainTransform
from utils.bands import RGB, Bands
from utils.distributed import World
from utils.errors import DataError
from utils.progress import progress
from utils.split_options import AS_THE_DATA_SUGGESTS, SplitOptions
from utils.stop import STOP_SIGNALS

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
    "make_reader",
    "remaining_loader",
    "set_epoch",
    "split_pairs",
    "training_loader",
]


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
        split = splits.folders(list(pairs), [pair.id for pair in val_pairs])
        pairs |= {pair.id: pair for pair in val_pairs}
    else:
        split = splits.divide(list(pairs), options, protocol)
    return split, [pairs[name] for name in split.train], [pairs[name] for name in split.val]


# A reader that Python's fork left locked (CPython issue 112275, before 3.11.10) would be waited for
# without end; no readable batch takes this long.
READER_LIMIT_S = 600


class ResumableSampler(DistributedSampler):
    """Shuffled indices of one process's share, from any position on, as many as make whole steps.

    The order of an epoch follows from the seed and the epoch's number alone. Step by step, the
    shares of all processes together are what a single process would take.

    Args:
        dataset: what the indices are of.
        rank: number of this process.
        world_size: number of processes.
        seed: decides the order, together with the epoch.
        step: samples of this process's share that make an optimiser step.

    Attributes:
        start: samples of this process's share that are done already.
    """

    def __init__(self, dataset: Sized, rank: int, world_size: int, seed: int, step: int) -> None:
        super().__init__(dataset, world_size, rank, seed=seed, drop_last=True)
        self.start = 0
        self._end = self.num_samples // step * step

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start : self._end])

    def __len__(self) -> int:
        return self._end - self.start


def training_loader(
    dataset: ChangeDetectionDataset,
    batch_size: int,
    workers: int,
    seed: int,
    pin_memory: bool,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
) -> DataLoader:
    """Return shuffled batches of one process; what is left over of a step is dropped.

    Args:
        dataset: all training pairs; every process has the same.
        batch_size: pairs per batch of this process.
        workers: reader processes.
        seed: decides the order, together with the epoch; see `set_epoch`.
        pin_memory: whether batches go to a GPU.
        rank: number of this process.
        world_size: number of processes.
        accumulate: batches that make an optimiser step.

    Raises:
        DataError: pairs of several sizes without a crop, or smaller than the crop.
    """
    _check_training_sizes(dataset)
    batch_size = min(batch_size, max(1, len(dataset) // world_size))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=ResumableSampler(dataset, rank, world_size, seed, batch_size * accumulate),
        drop_last=True,
        **_worker_options(workers, pin_memory),
    )


def set_epoch(loader: DataLoader, epoch: int, skip_batches: int = 0) -> None:
    """Choose order and augmentation of the epoch that is iterated next, and where it starts."""
    loader.sampler.set_epoch(epoch)
    loader.sampler.start = skip_batches * loader.batch_size
    loader.dataset.set_epoch(epoch)


def evaluation_loader(
    dataset: ChangeDetectionDataset,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    rank: int = 0,
    world_size: int = 1,
    skip: Collection[int] = (),
) -> DataLoader:
    """Return batches of pairs of one size each, in file order per size.

    Several processes share the batches, each pair once; every batch is what a single process would
    make of it, so that results do not depend on the number of processes. Batches of nothing but
    pairs of ``skip`` (indices) are left out.
    """
    sizes = [image_size(pair.image1) for pair in dataset.pairs]
    return DataLoader(
        dataset,
        batch_sampler=SameSizeBatches(sizes, batch_size, skip, rank, world_size),
        **_worker_options(workers, pin_memory),
    )


def remaining_loader(
    pairs: Sequence[Pair],
    classes: ClassList,
    finished: Collection[str],
    batch_size: int,
    workers: int,
    world: World,
    bands: Bands = RGB,
) -> DataLoader:
    """Return the evaluation batches that hold a pair whose name is not ``finished``."""
    return evaluation_loader(
        ChangeDetectionDataset(pairs, classes, reader=FileReader(classes, bands)),
        batch_size,
        workers,
        world.device.type == "cuda",
        world.rank,
        world.size,
        skip={index for index, pair in enumerate(pairs) if pair.name in finished},
    )


def is_one_size(loader: DataLoader) -> bool:
    """Tell whether all pairs of an evaluation loader have the same height and width."""
    return len(loader.batch_sampler.sizes) == 1


def make_reader(
    mode: str,
    outdir: Path,
    pairs: Sequence[Pair],
    classes: ClassList,
    world: World,
    pseudo_label_root: Path | None = None,
    bands: Bands = RGB,
) -> CachedReader | FileReader:
    """Return what reads some pairs: their decoded cache, or for ``off`` the files themselves.

    One process per node builds it, the others of that node open the same file.

    Args:
        mode: ``ram``, ``disk`` or ``off``.
        outdir: holds the cache of ``disk``.
        pairs: whose files are cached.
        classes: decodes the labels.
        world: the processes that share it.
        pseudo_label_root: folder of pseudo masks to cache as well.
        bands: what is read from the images.
    """
    if mode == "off":
        return FileReader(classes, bands)
    leads_node = os.environ.get("LOCAL_RANK", "0") == "0"
    host, own = socket.gethostname(), cache_folder(mode, outdir) if leads_node else None
    folder = next(path for node, path in world.gather((host, own)) if node == host and path)
    reader = None
    # The leading process first, then one of each node where the file is not seen, then the others.
    for turn, shown in ((world.leads, progress), (leads_node, None), (True, None)):
        if turn and reader is None:
            reader = build_cache(
                pairs, classes, folder, pseudo_label_root, progress=shown, bands=bands
            )
        world.wait()
    return reader


def _worker_options(workers: int, pin_memory: bool) -> dict:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "timeout": READER_LIMIT_S if workers else 0,
        "worker_init_fn": _leave_signals_to_main,
        # Without one of its own, a loader draws from the generator that dropout draws from, and a
        # resumed run would draw once more than an uninterrupted one.
        "generator": torch.Generator(),
    }


def _leave_signals_to_main(_worker: int) -> None:
    # Schedulers and launchers signal the whole process group. A worker that died of it would take
    # the main process down before it has saved; orphaned workers end by themselves.
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


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
