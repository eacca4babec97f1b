"""test.py: an ensemble predicts the test set or validation pairs, and is scored where it can be."""

import filecmp
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.classes import Preset, find_preset
from datasets.pairs import (
    Pair,
    differing_labels,
    index_pairs,
    scan_folder,
    split_pairs,
    test_split,
)
from datasets.task import load_task, says_classes
from engine.config import TestConfig
from engine.ensemble import task_of_ensemble
from engine.metrics import AnyMetrics, LabelCounts, details, named_ious
from engine.predict import Job, open_work
from engine.predictor import evaluate, within_time_limit
from engine.runtime import in_words
from utils.dist import gather, is_main, print0, start_time
from utils.files import write_json
from utils.text import progress

OPTIONS = ("tta", "compile", "time_limit")  # that decide the masks


def test(config: TestConfig, device: torch.device) -> AnyMetrics | None:
    """Write submission masks as one of the processes; return the scores, or None without labels."""
    started = start_time()
    deadline = started + config.time_limit if config.time_limit else None
    job = _find_pairs(config)
    task, folder = job.task, job.folder
    with open_work(config, device, job) as (loader, predictor, writer, made_with):
        counts = LabelCounts(task.num_classes, predictor.device)
        for index in loader.batch_sampler.skipped:
            counts.update(job.read_masks(index), loader.dataset.labels(index))
        own_pairs = sum(map(len, loader.batch_sampler.batches))
        batches = progress(loader, "predict")
        if deadline:
            batches = within_time_limit(batches, predictor, own_pairs, deadline)
        metrics = evaluate(predictor, batches, task, writer.write, counts)
        predicted = sum(gather(own_pairs))
        made_with |= {"views": len(predictor.views), "pairs": len(job.unseen)}
        if metrics and is_main():
            ious = {"iou": named_ious(metrics, task.classes.names)}
            write_json(folder / "metrics.json", metrics.to_dict() | ious | made_with)
    ended = time.time()
    if metrics:
        print0(details(metrics, task.classes.names))
        print0(f"scored with {in_words(made_with)}; {made_with['epoch_choice']}")
    seconds = ended - started
    print0(f"masks: {folder}  ({seconds:.1f} s, {predicted / seconds:.1f} pairs/s)")
    if deadline and ended > deadline:
        print0(
            f"time limit missed by {ended - deadline:.1f} s, views in the last batch: "
            f"{len(predictor.views)}"
        )
    return metrics


def _find_pairs(config: TestConfig) -> Job:
    """Return whom to predict, and where; labels of another kind than those trained on are left."""
    root, masks = config.data_root, config.outdir / "masks"
    preset = find_preset(config.preset, root)
    task = load_task(root, preset)
    if not says_classes(root, preset):
        task = task_of_ensemble(config.checkpoints, config.outdir / "models", task)
    if config.split_options:
        folder, doing = masks / "val", "predicting"
        _, _, pairs = split_pairs(root, config.split_options, preset)
    else:
        split = test_split(root, preset)
        folder, doing = masks / "test", f"predicting {root / split}:"
        pairs = index_pairs(root / split, preset)
        differing = differing_labels(root, split, preset)
        if differing:
            print0(f"{differing}: predicting without scores")
            pairs = [pair.without_labels() for pair in pairs]
    scored = _ids_in_training(root, [pair for pair in pairs if pair.labels], preset)
    return Job(doing, task, pairs, scored, folder, OPTIONS, by_students=True)


def _ids_in_training(root: Path, pairs: Sequence[Pair], preset: Preset) -> list[str]:
    """Return the ids by which models may know pairs: of the same files in ``train``, if any."""
    train = {pair.name: pair for pair in scan_folder(root / "train", preset).pairs if pairs}
    found = [(pair, train.get(pair.name)) for pair in pairs]
    return [
        other.id if other and filecmp.cmp(pair.image1, other.image1, shallow=False) else pair.id
        for pair, other in found
    ]
