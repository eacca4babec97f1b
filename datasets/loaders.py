"""Loaders: batches of a process's share, in an order that a resumed run takes up again."""

import shutil
import signal
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler, get_worker_info

from datasets.cache import SHARED_MEMORY
from datasets.dataset import ChangeDetectionDataset, require_size
from datasets.images import common_size
from utils import dist
from utils.errors import DataError
from utils.machine import processes_here
from utils.signals import STOP_SIGNALS

PREFETCHED = 2  # batches that wait, per reader
SPARE = 0.1  # of shared memory, for what else is there
READER_LIMIT_S = 600  # one that fork left locked (CPython issue 112275) would never answer


class ResumableSampler(DistributedSampler):
    """Shuffled indices of this process's share, from ``start`` on, as many as make whole steps.

    An epoch takes ``draws`` of all samples; its order follows from the dataset's seed and its
    number alone.
    Step by step, the shares of all processes, ``step`` samples each, are what a single process
    would take.
    """

    def __init__(self, dataset: ChangeDetectionDataset, step: int, draws: int) -> None:
        super().__init__(dataset, dist.size(), dist.rank(), seed=dataset.seed, drop_last=True)
        self.start = 0
        self._end = draws // self.num_replicas // step * step

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start : self._end])

    def __len__(self) -> int:
        return self._end - self.start


class SameSizeBatches(Sampler[list[int]]):
    """Batches in file order, of one size each; every ``world_size``-th is this process's.

    A batch of nothing but indices in ``skip`` is left out, the others stay as they are, so that
    their results do too; ``skipped`` are the indices left out of this process's share.
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
        needless, done, batches = set(skip), [], []
        for indices in by_size.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                (done if needless.issuperset(batch) else batches).append(batch)
        self.skipped = [index for batch in done[rank::world_size] for index in batch]
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def training_loader(
    dataset: ChangeDetectionDataset,
    batch_size: int,
    workers: int,
    accumulate: int = 1,
    draws: int | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Return whole steps of shuffled batches; a DataError for several or too small sizes.

    The order follows from the dataset's seed. An epoch is ``draws`` of the samples; None for all.
    """
    _check_training_sizes(dataset)
    draws = len(dataset) if draws is None else draws
    batch_size = min(batch_size, max(1, draws // dist.size()))
    sampler = ResumableSampler(dataset, batch_size * accumulate, draws)
    options = _worker_options(workers, pin_memory)
    return DataLoader(dataset, batch_size, sampler=sampler, drop_last=True, **options)


def evaluation_loader(
    dataset: ChangeDetectionDataset,
    batch_size: int,
    workers: int,
    skip: Collection[int] = (),
    pin_memory: bool = False,
) -> DataLoader:
    """Return `SameSizeBatches`, each pair once over all processes: every batch is what a single one
    would make of it, so that results do not depend on their number.
    """
    sizes = [common_size(pair.image1, pair.image2) for pair in dataset.pairs]
    batches = SameSizeBatches(sizes, batch_size, skip, dist.rank(), dist.size())
    return DataLoader(dataset, batch_sampler=batches, **_worker_options(workers, pin_memory))


def fit_shared_memory(*loaders: DataLoader) -> None:
    """Take readers away where their batches have no room in shared memory, and say so.

    Call it when caches are built and no batch has been read. Each reader may hold the batches that
    wait and one more, the program one of each loader; so do all processes of this machine.
    """
    wanted = max(loader.num_workers for loader in loaders)
    if not wanted or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    batches = sum(map(_batch_bytes, loaders)) * processes_here()
    readers = wanted
    while readers and (readers * (PREFETCHED + 1) + 1) * batches > free * (1 - SPARE):
        readers -= 1
    if readers == wanted:
        return
    dist.print0(
        f"warning: {SHARED_MEMORY} has {free / 1e6:.0f} MB free, too little for the batches of "
        f"{wanted} reader processes: starting {readers}; give a container more, as docker run "
        "--shm-size 8g or --ipc=host does"
    )
    for loader in loaders:
        loader.num_workers = readers
        loader.timeout = READER_LIMIT_S if readers else 0


def _batch_bytes(loader: DataLoader) -> int:
    """Return the size of a loader's largest batch."""
    dataset, sampler = loader.dataset, loader.batch_sampler
    image, _ = dataset.reader.image(dataset.pairs[0].image1)
    sizes, pairs = [image.shape[:2]], loader.batch_size
    if isinstance(sampler, SameSizeBatches):
        sizes, pairs = sampler.sizes, max(map(len, sampler.batches), default=0)
    elif dataset.transform and dataset.transform.crop_size:
        sizes = [(dataset.transform.crop_size,) * 2]
    of_pixel = 2 * image.shape[2] * image.itemsize + 4  # images, labels, what changed, gaps
    return pairs * max(height * width for height, width in sizes) * of_pixel


def set_epoch(loader: DataLoader, epoch: int, skip_batches: int = 0) -> None:
    """Choose order and augmentation of the epoch that is iterated next, and where it starts."""
    loader.sampler.set_epoch(epoch)
    loader.sampler.start = skip_batches * loader.batch_size
    loader.dataset.set_epoch(epoch)


def is_one_size(loader: DataLoader) -> bool:
    """Tell whether all pairs of an evaluation loader have the same height and width."""
    return len(loader.batch_sampler.sizes) == 1


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; images become (N, bands, H, W) in channels-last memory, names a list."""
    if any("ignored" in sample for sample in samples):
        all_valid = torch.zeros(samples[0]["image1"].shape[1:], dtype=torch.bool)
        samples = [{"ignored": all_valid, **sample} for sample in samples]
    batch: dict[str, Any] = {"name": [sample["name"] for sample in samples]}
    for key in samples[0]:
        if key in ("image1", "image2"):
            stacked = torch.stack([sample[key].permute(1, 2, 0) for sample in samples])
            batch[key] = stacked.permute(0, 3, 1, 2)
        elif key != "name":
            batch[key] = torch.stack([sample[key] for sample in samples])
        # In a queue's thread, as torch does it, full shared memory would lose the batch silently.
        if key != "name" and get_worker_info() is not None:
            batch[key].share_memory_()
    return batch


def _worker_options(workers: int, pin_memory: bool) -> dict:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "prefetch_factor": PREFETCHED if workers else None,
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
    crop = dataset.transform.crop_size if dataset.transform else None
    pairs = dict.fromkeys((pair.image1, pair.image2) for pair in dataset.pairs)
    sizes = {paths[0]: common_size(*paths) for paths in pairs}
    first, expected = next(iter(sizes.items()))
    for path, size in sizes.items():
        if crop and min(size) < crop:
            raise DataError(
                f"{path}: {size[1]} × {size[0]} pixels, smaller than --crop-size {crop}; use "
                f"--crop-size {min(size)} or less"
            )
        if not crop:
            require_size(path, size, first, expected, "several sizes need --crop-size N")
