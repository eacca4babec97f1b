"""What label.py and test.py share: an ensemble at work on pairs, and a folder of its masks."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.cache import FileReader
from datasets.dataset import ChangeDetectionDataset
from datasets.labels import read_label
from datasets.loaders import evaluation_loader
from datasets.pairs import IMAGE_FOLDERS, Pair
from datasets.task import Task
from engine.config import LabelConfig, TestConfig
from engine.ensemble import (
    bands_to_read,
    choose_ensemble,
    describe_all,
    epochs_chosen,
    warn_of_leakage,
)
from engine.predictor import Predictor
from engine.runtime import build_predictor, choose_precision, compile_if_asked, set_backend_options
from utils import dist
from utils.dist import broadcast, gather, is_main, print0
from utils.errors import UserError
from utils.files import remove_leftovers, write_json
from utils.pictures import save_change_mask, save_mask
from utils.text import plural

MANIFEST = "manifest.json"
LEFTOVER_AGE_S = 60  # a mask is written within a fraction of a second
MAX_PENDING = 32  # pairs that wait in memory before the caller has to wait


@dataclass(frozen=True)
class Job:
    """What an ensemble is to do."""

    doing: str  # in a word, for the first line
    task: Task
    pairs: Sequence[Pair]
    unseen: Sequence[str]  # ids of pairs that no model should have been trained on
    folder: Path  # of the masks
    options: Sequence[str]  # names of those that decide the masks, beside the number format

    def read_masks(self, index: int) -> list[torch.Tensor]:
        """Return the masks of a finished pair, (H, W) uint8, in the order of a model's maps."""
        name, classes = self.pairs[index].name, self.task.classes
        paths = [self.folder / date / f"{name}.png" for date in self.task.mask_folders]
        return [torch.from_numpy(read_label(path, classes)) for path in paths]


def open_work(
    config: LabelConfig | TestConfig, device: torch.device, job: Job
) -> tuple[DataLoader, Predictor, str]:
    """Open the ensemble and the folder of its masks; every process must call it.

    The loader has this process's batches of the pairs that are not finished, and as
    ``batch_sampler.skipped`` its share of those that are. The text is that of `epochs_chosen`.
    """
    set_backend_options()
    task, pairs = job.task, job.pairs
    checkpoints = choose_ensemble(config.checkpoints, config.outdir / "models", task)
    print0(
        f"{job.doing} {plural(len(pairs), 'pair')} with {plural(len(checkpoints), 'model')}, "
        f"{dist.size()} × {device.type}:\n{describe_all(checkpoints)}"
    )
    warn_of_leakage(checkpoints, job.unseen)
    bands = bands_to_read(checkpoints, pairs[0].image1)
    precision = choose_precision(config.amp, device)
    key = {name: getattr(config, name) for name in job.options} | {
        "precision": precision.name,
        "classes": task.classes.to_dict(),
        "checkpoints": [hashlib.sha256(c.path.read_bytes()).hexdigest() for c in checkpoints],
        "data": sorted({str(pair.image1.parents[1].resolve()) for pair in pairs}),
    }
    finished = begin_work(job.folder, task, key, config.overwrite, pairs)
    loader = evaluation_loader(
        ChangeDetectionDataset(pairs, task, reader=FileReader(task.classes, bands)),
        config.test_batch_size,
        config.reader_workers(device.type),
        skip=finished,
        pin_memory=device.type == "cuda",
    )
    skipped = sum(gather(len(loader.batch_sampler.skipped)))
    if skipped:
        print0(f"{skipped} pairs were finished already (--overwrite makes them again)")
    predictor = build_predictor(checkpoints, device, precision, config.tta)
    compile_if_asked(predictor, config.compile, loader)
    return loader, predictor, epochs_chosen(checkpoints, [pair.id for pair in pairs])


def begin_work(
    folder: Path, task: Task, key: Mapping[str, Any], overwrite: bool, pairs: Sequence[Pair] = ()
) -> list[int]:
    """Go on with the work that a folder holds, or begin another; every process must call it.

    The manifest holds the ``key``, plain values that decide all masks alike, and is as old as the
    work: masks that are older are of earlier work, and those of a pair whose files have changed
    since are outdated. Process 0 decides for all, as nodes may see another state of a shared
    folder. Half-written masks of a killed program are removed. Returns indices of finished pairs.
    """
    finished: list[int] = []
    if is_main():
        for each in (folder, *(folder / date for date in task.mask_folders)):
            remove_leftovers(each, LEFTOVER_AGE_S)
        found = None
        with suppress(FileNotFoundError, ValueError):  # ValueError: somebody's hand
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if overwrite or found != key:
            write_json(folder / MANIFEST, key)
        else:
            start = _started(folder)
            for index, pair in enumerate(pairs):
                newest = max(path.stat().st_mtime_ns for path in pair.files)
                if _finished(folder, task.mask_folders, pair) >= max(start, newest):
                    finished.append(index)
    return broadcast(finished)


def unfinished(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose masks of both dates are missing or older than the manifest.

    Without a manifest the masks were made elsewhere and are taken as they are: returns nothing.
    """
    start = _started(folder)
    return [pair for pair in pairs if start and _finished(folder, IMAGE_FOLDERS, pair) < start]


def _started(folder: Path) -> int:
    return _oldest([folder / MANIFEST])


def _finished(folder: Path, dates: Sequence[str], pair: Pair) -> int:
    return _oldest([folder / date / f"{pair.name}.png" for date in dates])


def _oldest(paths: Sequence[Path]) -> int:
    """Return when the first of some files was written, in ns; 0 where one is missing."""
    try:
        return min(path.stat().st_mtime_ns for path in paths)
    except FileNotFoundError:
        return 0


class MaskWriter:
    """A context that writes PNGs in threads, while the next batch is predicted.

    The folder gets ``{im1,im2}/<name>.png`` in the class colours, or ``change/<name>.png`` of 0 and
    255; no other work may begin there meanwhile. Leaving the context waits for all of them.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = Path(folder), task
        self._start = _started(self._folder)
        self._pool = ThreadPoolExecutor(2)  # zlib leaves the interpreter lock free
        self._pending: deque[Future] = deque()

    def write(self, names: Sequence[str], *maps: torch.Tensor) -> None:
        """Queue a batch's maps, of both dates or of change: (N, H, W) uint8, on the CPU.

        A `UserError` of an earlier mask that could not be written is raised here.
        """
        for name, *masks in zip(names, *(pred.numpy() for pred in maps), strict=True):
            self._pending.append(self._pool.submit(self._write_pair, name, masks))
        while len(self._pending) > MAX_PENDING or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def _write_pair(self, name: str, masks: Sequence[np.ndarray]) -> None:
        if _started(self._folder) != self._start:
            raise UserError(
                f"{self._folder}: another program has begun to write its masks there; use another "
                "--outdir"
            )
        for folder, mask in zip(self._task.mask_folders, masks, strict=True):
            path = self._folder / folder / f"{name}.png"
            if self._task.palette is None:
                save_change_mask(path, mask)
            else:
                save_mask(path, mask, self._task.palette)

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()
