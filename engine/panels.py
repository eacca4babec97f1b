"""Where predictions are wrong, and how: one code per pixel; pictures of a few pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from datasets.task import Task
from utils.pictures import contact_sheet, to_rgb

# Okabe and Ito's colours, which hold for all common kinds of colour blindness. The last one is the
# gravest: two maps are combined by their maximum.
ERROR_KINDS = (
    ("right, unchanged", (245, 245, 245)),
    ("right, changed", (0, 158, 115)),
    ("wrong class", (240, 228, 66)),
    ("false change", (86, 180, 233)),
    ("missed change", (213, 94, 0)),
)
WRONG_CLASS, FALSE_CHANGE, MISSED_CHANGE = 2, 3, 4
TITLES = ("image 1", "image 2", "label 1", "label 2", "prediction 1", "prediction 2")
CHANGE_TITLES = ("image 1", "image 2", "label", "prediction")
SHOWN_PAIRS = 6


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Compare the maps of one date, (H, W) uint8, 0 = unchanged; return indices of `ERROR_KINDS`.

    A `ValueError` where the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ")
    kinds = (label > 0).astype(np.uint8)
    kinds[(label > 0) & (prediction > 0) & (label != prediction)] = WRONG_CLASS
    kinds[(label == 0) & (prediction > 0)] = FALSE_CHANGE
    kinds[(label > 0) & (prediction == 0)] = MISSED_CHANGE
    return kinds


def draw_errors(kinds: np.ndarray) -> np.ndarray:
    """Colour a map of error kinds: (H, W) uint8 → (H, W, 3) uint8."""
    return np.asarray([color for _, color in ERROR_KINDS], dtype=np.uint8)[kinds]


def panel(
    predict: Callable[..., Sequence[torch.Tensor]],
    dataset: Sequence[Mapping[str, Any]],
    task: Task,
    cell: int = 160,
) -> np.ndarray:
    """Draw a few pairs, the same at every call: images, labels, predictions, where these are wrong.

    ``predict`` makes the maps of a model of the images of both dates, (1, bands, H, W);
    ``dataset`` holds samples, any labels of which may be absent; ``cell`` is a picture's side.
    Returns (height, width, 3) uint8.
    """
    shown = min(len(dataset), SHOWN_PAIRS)
    samples = [dataset[i * len(dataset) // shown] for i in range(shown)]
    rows = [_row(sample, predict, task) for sample in samples]
    labelled = [key for key in task.label_keys if any(key in sample for sample in samples)]
    titles, errors, kinds = TITLES, "errors, both dates", ERROR_KINDS[1:]
    if task.is_binary:
        titles, errors, kinds = CHANGE_TITLES, "errors", (ERROR_KINDS[1], *ERROR_KINDS[3:])
    elif len(labelled) == 1:
        errors = f"errors, date {labelled[0][-1]}"
    legend = [*zip(task.classes.names, task.classes.colors, strict=True), *kinds]
    return contact_sheet((*titles, errors), rows, cell, legend)


def _row(
    sample: Mapping[str, Any], predict: Callable[..., Sequence[torch.Tensor]], task: Task
) -> list[np.ndarray]:
    images = [sample["image1"], sample["image2"]]
    predictions = [np.asarray(m[0].cpu()) for m in predict(*(i[None] for i in images))]
    labels = [np.asarray(sample[key]) if key in sample else None for key in task.label_keys]
    if "ignored" in sample:
        predictions, labels = (
            [m if m is None else np.where(sample["ignored"], np.uint8(0), m) for m in maps]
            for maps in (predictions, labels)
        )
    errors = [
        error_map(prediction, label)
        for prediction, label in zip(predictions, labels, strict=True)
        if label is not None
    ]
    blank = np.zeros((*predictions[0].shape, 3), dtype=np.uint8)
    return [
        *(to_rgb(np.asarray(image).transpose(1, 2, 0)) for image in images),
        *(blank if label is None else task.classes.to_rgb(label) for label in labels),
        *(task.classes.to_rgb(prediction) for prediction in predictions),
        draw_errors(np.maximum.reduce(errors)) if errors else blank,
    ]
