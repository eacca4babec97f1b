"""Where a prediction is wrong, and how: one code per pixel, with names and colours."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from engine.predictor import Predictor, decode
from engine.run import RunLog
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


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Compare the maps of one date.

    Args:
        prediction, label: (H, W) uint8 class indices, 0 = unchanged.

    Returns:
        (H, W) uint8, indices of `ERROR_KINDS`.

    Raises:
        ValueError: the shapes differ.
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


TITLES = (
    *("image 1", "image 2", "label 1", "label 2"),
    *("prediction 1", "prediction 2", "errors, both dates"),
)

CHANGE_TITLES = ("image 1", "image 2", "label", "prediction", "errors")

SHOWN_PAIRS = 6


class Classes(Protocol):
    """Names and colours by index, *unchanged* first."""

    names: Sequence[str]
    colors: Sequence[tuple[int, int, int]]


def fixed_pairs(pairs: int, shown: int = SHOWN_PAIRS) -> list[int]:
    """Return the same few indices each epoch, evenly spread over a validation set."""
    shown = min(pairs, shown)
    return [i * pairs // shown for i in range(shown)]


def panel_writer(
    log: RunLog | None,
    predictor: Predictor,
    dataset: Sequence[Mapping[str, Any]],
    classes: Classes,
) -> Callable[[int], None]:
    """Return what draws a handful of validation pairs after each epoch, whose number it takes.

    Args:
        log: shows the panels; None, or one without TensorBoard, for nothing to be drawn.
        predictor: of the model that is trained.
        dataset: samples as `validation_panels` takes them.
        classes: the class list.
    """
    if log is None or not log.shows_images:
        return lambda epoch: None
    samples = [dataset[i] for i in fixed_pairs(len(dataset))]

    def write(epoch: int) -> None:
        maps = [decode(predictor(s["image1"][None], s["image2"][None])) for s in samples]
        pred1, *pred2 = ([date[0].cpu() for date in dates] for dates in zip(*maps, strict=True))
        picture = validation_panels(samples, pred1, pred2[0] if pred2 else None, classes)
        log.add_image("validation", picture, epoch)

    return write


def validation_panels(
    samples: Sequence[Mapping[str, Any]],
    pred1: Sequence[Any],
    pred2: Sequence[Any] | None,
    classes: Classes,
    cell: int = 160,
) -> np.ndarray:
    """Draw a row per pair: images, labels, predictions, and where any of these is wrong.

    Args:
        samples: dicts as the dataset gives them: ``image1/image2`` (bands, H, W), tensors or
            arrays; ``label1/label2``, or ``change_mask`` (H, W), absent where there is none.
        pred1: predicted maps of date 1, (H, W), in the samples' order; of change without ``pred2``.
        pred2: those of date 2; None for models without classes.
        classes: the class list.
        cell: side of a picture in pixels.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: there are not as many predictions as samples.
    """
    palette = np.asarray(classes.colors, dtype=np.uint8)
    keys = ("change_mask",) if pred2 is None else ("label1", "label2")
    rows = []
    for sample, *masks in zip(samples, *([pred1, pred2][: len(keys)]), strict=True):
        predictions = [np.asarray(mask) for mask in masks]
        labels = [_label(sample, key, predictions[0]) for key in keys]
        both = [
            error_map(mask, label)
            for mask, label in zip(predictions, labels, strict=True)
            if label is not None
        ]
        blank = np.zeros((*predictions[0].shape, 3), dtype=np.uint8)
        rows.append(
            [
                *(to_picture(sample[key]) for key in ("image1", "image2")),
                *(blank if label is None else palette[label] for label in labels),
                *(palette[mask] for mask in predictions),
                draw_errors(np.maximum.reduce(both)) if both else blank,
            ]
        )
    errors = list(ERROR_KINDS[1:])
    if pred2 is None:
        errors.remove(ERROR_KINDS[WRONG_CLASS])
    legend = [*zip(classes.names, classes.colors, strict=True), *errors]
    titles = CHANGE_TITLES if pred2 is None else TITLES
    dates = [key for key in keys if any(key in sample for sample in samples)]
    if dates in (["label1"], ["label2"]):
        titles = (*TITLES[:-1], f"errors, date {dates[0][-1]}")
    return contact_sheet(titles, rows, cell, legend)


def _label(sample: Mapping[str, Any], key: str, like: np.ndarray) -> np.ndarray | None:
    label = sample.get(key)
    return None if label is None else np.asarray(label).astype(like.dtype)


def to_picture(image: Any) -> np.ndarray:
    """Show (bands, H, W) as `utils.pictures.to_rgb` does: (H, W, 3) uint8."""
    return to_rgb(np.asarray(image).transpose(1, 2, 0))
