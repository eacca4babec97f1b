"""What a training run reads: task, split, bands, and the loaders of both sets."""

import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from datasets.augment import TrainTransform
from datasets.bands import RGB, Bands, Imagery
from datasets.cache import make_reader
from datasets.classes import find_preset
from datasets.dataset import ChangeDetectionDataset
from datasets.loaders import evaluation_loader, fit_shared_memory, training_loader
from datasets.pairs import Pair, split_pairs
from datasets.quick_check import quick_check
from datasets.splits import Split
from datasets.statistics import (
    Changes,
    changed_pairs,
    choose_bands,
    measure_changes,
    read_statistics,
)
from datasets.task import Task, load_task, missing_labels, with_dates
from engine.config import TrainConfig
from engine.ensemble import bands_to_read, choose_ensemble
from engine.predict import MANIFEST, mask_set, unfinished
from models.checkpoint import Checkpoint
from utils import dist
from utils.dist import broadcast, is_main, print0
from utils.errors import OptionError
from utils.locks import LOCK, holder
from utils.text import plural


@dataclass
class TrainingData:
    """What a run reads; the loaders give this process's batches.

    ``statistics`` are those of ``--band-statistics``. With a ``checkpoint``, which is evaluated,
    there is no ``train_loader``.
    """

    task: Task
    split: Split
    bands: Bands
    statistics: Imagery | None
    checkpoint: Checkpoint | None
    val_loader: DataLoader
    train_loader: DataLoader | None = None
    mask_set: str = ""  # of the pseudo masks at the start, as `mask_set` tells

    @property
    def masks(self) -> Path | None:
        """The folder of pseudo masks that are trained on."""
        return self.train_loader.dataset.pseudo_label_root

    @cached_property
    def changes(self) -> Changes:
        """What changed in the visits that epochs are drawn from; every process must ask for it."""
        return measure_changes(self.train_loader.dataset)

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device) -> "TrainingData":
        """Find the pairs, look at a few of them, and make the loaders."""
        preset = find_preset(config.preset, config.data_root)
        task = load_task(config.data_root, preset)
        split, train_pairs, val_pairs = split_pairs(config.data_root, config.split_options, preset)
        task = with_dates(task, train_pairs, val_pairs)
        classes = "change masks" if task.is_binary else plural(task.num_classes, "class")
        print0(
            f"{len(train_pairs)} training and {plural(len(val_pairs), 'validation pair')} "
            f"(split {split.protocol}), {classes}, {dist.size()} × {device.type}"
        )
        for line in missing_labels(task, train_pairs, val_pairs):
            print0(line)
        checkpoint = statistics = None
        if config.load_from:
            [checkpoint] = choose_ensemble([config.load_from], config.load_from.parent, task)
            bands = bands_to_read([checkpoint], val_pairs[0].image1)
        else:
            bands = choose_bands(config.bands, train_pairs[0].image1)
        if config.band_statistics:  # before anything takes long: a mistyped name costs no minutes
            statistics = read_statistics(config.band_statistics, bands)
        if is_main():
            started = time.perf_counter()
            warnings = quick_check(train_pairs, task, bands)
            for warning in warnings:
                print(f"warning: {warning}; see tools/check_data.py", file=sys.stderr)
            print(f"data: {len(warnings)} warnings ({time.perf_counter() - started:.1f} s)")
        # A single pass decodes nothing twice.
        cache = "off" if config.load_from else config.cache
        reader = make_reader(cache, config.outdir, val_pairs, task, bands=bands)
        val_loader = evaluation_loader(
            ChangeDetectionDataset(val_pairs, task, reader=reader),
            config.val_batch_size,
            config.reader_workers(device.type),
            pin_memory=device.type == "cuda",
        )
        data = cls(task, split, bands, statistics, checkpoint, val_loader)
        if not checkpoint:
            data.train_loader = _open_train_loader(config, data, train_pairs, device)
        loaders = [val_loader] if checkpoint else [val_loader, data.train_loader]
        fit_shared_memory(*loaders)
        return data


def _open_train_loader(
    config: TrainConfig, data: TrainingData, pairs: list[Pair], device: torch.device
) -> DataLoader:
    masks = None
    if config.use_pseudo_label:
        masks = _find_pseudo_masks(config, data.task)
        data.mask_set = broadcast(is_main() and _require_finished(masks, pairs))
    visits = pairs * config.crops_per_image  # each has draws of its own
    batch_size = _pairs_per_pass(config, len(visits))
    synchronized = device.type == "cuda"  # batch norm sees the pairs of all processes
    if config.model == "pspnet" and batch_size * (dist.size() if synchronized else 1) == 1:
        raise OptionError(
            "pspnet normalises one value per image and channel: --batch-size ≥ 2, and no more "
            "--accumulate, or processes on a CPU, than leave two pairs a pass"
        )
    reader = make_reader(config.cache, config.outdir, pairs, data.task, masks, data.bands)
    transform = TrainTransform(config.crop_size, is_rgb=data.bands == RGB)
    often = _visit_changed(config, ChangeDetectionDataset(pairs, data.task, reader=reader))
    return training_loader(
        ChangeDetectionDataset(visits + often, data.task, transform, masks, config.seed, reader),
        batch_size,
        config.reader_workers(device.type),
        config.accumulate,
        draws=len(visits),
        pin_memory=device.type == "cuda",
    )


def _visit_changed(config: TrainConfig, once: ChangeDetectionDataset) -> list[Pair]:
    """Return the visits of changed pairs, beside one of each pair, that epochs are drawn from."""
    times = config.change_sampling
    if times == 1:
        return []
    changed = changed_pairs(once)
    found = f"{len(changed)} of {len(once)} training pairs changed"
    if len(changed) in (0, len(once)):  # epochs of copies would lack pairs, to no avail
        print0(f"{found}: --change-sampling {times} does nothing")
        return []
    print0(f"{found}: drawn {times} times as often")
    return changed * (times - 1) * config.crops_per_image


def _find_pseudo_masks(config: TrainConfig, task: Task) -> Path:
    if task.is_binary:
        raise OptionError(
            "--use-pseudo-label: pseudo labels are classes, and these labels are change masks "
            "without any; train without it"
        )
    folder = config.pseudo_label_root or config.outdir / "masks" / "train"
    if not folder.is_dir():
        raise OptionError(f"{folder}: no pseudo masks there; run label.py first")
    return folder


def _require_finished(folder: Path, pairs: list[Pair]) -> str:
    """Return the `mask_set` of a folder, where all masks are of one run of label.py."""
    writer, found = holder(folder / LOCK), mask_set(folder)
    if writer:
        raise OptionError(f"{folder}: {writer} is writing masks there; wait for its end")
    missing = unfinished(folder, pairs)
    if missing:
        raise OptionError(
            f"{folder}: label.py has not come to its end there, the masks of {len(missing)} of "
            f"{len(pairs)} pairs are missing or of other work; run it again, or remove "
            f"{MANIFEST} to take the masks as they are"
        )
    return found


def _pairs_per_pass(config: TrainConfig, pairs: int) -> int:
    """Return how many pairs each process takes per forward pass."""
    parts = config.accumulate * dist.size()
    if config.batch_size % parts:
        raise OptionError(
            f"--batch-size {config.batch_size} cannot be divided among {dist.size()} processes × "
            f"--accumulate {config.accumulate}; use a multiple of {parts}"
        )
    if pairs < parts:
        raise OptionError(f"{pairs} training pairs are too few for {parts} parts of a batch")
    return min(config.batch_size, pairs) // parts
