"""Pairs looked at before training: what is wrong with a few of them."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from datasets.bands import Bands
from datasets.cache import FileReader
from datasets.classes import IGNORED, suspect_order
from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import Pair
from datasets.task import Task
from utils.errors import DataError

SECONDS, SAMPLE, MANY = 0.6, 16, 4


def quick_check(pairs: Sequence[Pair], task: Task, bands: Bands) -> list[str]:
    """Read evenly spread pairs for half a second, as training will; return one-line warnings."""
    dataset = ChangeDetectionDataset(pairs, task, reader=FileReader(task.classes, bands))
    deadline = time.perf_counter() + SECONDS
    faults: dict[str, list[str]] = {}
    changed, copies = [], []
    counts = np.zeros(256, dtype=np.int64)
    looked_at = range(0, len(pairs), max(1, len(pairs) // SAMPLE))[:SAMPLE]
    for number, index in enumerate(looked_at):
        if number and time.perf_counter() > deadline:
            looked_at = looked_at[:number]
            break
        try:
            sample = dataset[index]
        except DataError as error:
            faults.setdefault(str(error).rpartition("; ")[2], []).append(str(error))
            continue
        if np.array_equal(sample["image1"], sample["image2"]):
            copies.append(f"{pairs[index].image1} and {pairs[index].image2}")
        if "ignored" in sample and sample["ignored"].all():
            faults.setdefault("ignored", []).append(
                f"{pairs[index].image1} and {pairs[index].image2}: no pixel has data at both dates"
            )
        elif "change_mask" in sample:
            changed.append(_changed_share(sample["change_mask"]))
        for label in (sample[key] for key in ("label1", "label2") if key in sample):
            counts += np.bincount(label.ravel(), minlength=256)
    found = [(len(errors), errors[0]) for errors in faults.values()]
    if copies:
        found.append((len(copies), f"{copies[0]}: the same pixels; remove the pair"))
    if changed and (max(changed) == 0 or min(changed) == 1):
        said = "no pixel is" if max(changed) == 0 else "all pixels are"
        found.append((len(changed), f"{said} labelled as changed; look at the labels"))
    order = suspect_order(task.classes, counts[: task.num_classes + 1])
    if order and len(looked_at) >= MANY:
        found.append((len(looked_at), order))
    return [f"{count} of {len(looked_at)} pairs looked at: {text}" for count, text in found]


def _changed_share(change_mask: torch.Tensor) -> float:
    known = change_mask[change_mask != IGNORED]
    return float(known.float().mean()) if len(known) else 0.0
