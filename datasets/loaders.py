"""Data sets: from a root folder to loaders of bi-temporal pairs."""

import os
import signal
import socket
from collections.abc import Collection, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from datasets.bands import RGB, Bands
from datasets.cache import CachedReader, FileReader, build_cache, cache_folder
from datasets.classes import ClassList
from datasets.dataset import ChangeDetectionDataset
from datasets.images import image_size
from datasets.pairs import Pair
from utils.dist import World
from utils.errors import DataError
from utils.signals import STOP_SIGNALS
from utils.text import progress

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


class SameSizeBatches(Sampler[list[int]]):
    """Batches in file order whose pairs have one size, so that any mix of sizes can be evaluated.

    Args:
        sizes: (height, width) of every pair.
        batch_size: pairs per batch at the most.
        skip: indices that need no work; a batch of nothing else is left out, the others stay as
            they are, so that their results do too.
        rank: number of this process; it takes every ``world_size``-th batch.
        world_size: number of processes.

    Attributes:
        batches: indices of this process's batches.
        skipped: indices in the batches that were left out, this process's share of them.
        sizes: the sizes there are.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        skip: Collection[int] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            by_size.setdefault(size, []).append(index)
        self.sizes = tuple(by_size)
        batches = [
            indices[start : start + batch_size]
            for indices in by_size.values()
            for start in range(0, len(indices), batch_size)
        ]
        needless = set(skip)
        done = [batch for batch in batches if needless.issuperset(batch)]
        batches = [batch for batch in batches if not needless.issuperset(batch)]
        self.skipped = [index for batch in done[rank::world_size] for index in batch]
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; images become (N, bands, H, W) in channels-last memory, names a list."""
    batch: dict[str, Any] = {"name": [sample["name"] for sample in samples]}
    for key in samples[0]:
        if key in ("image1", "image2"):
            stacked = torch.stack([sample[key].permute(1, 2, 0) for sample in samples])
            batch[key] = stacked.permute(0, 3, 1, 2)
        elif key != "name":
            batch[key] = torch.stack([sample[key] for sample in samples])
    return batch
