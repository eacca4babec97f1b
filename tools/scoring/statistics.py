"""Scores of many pairs of masks under either convention, with bootstrap intervals over images.

Nothing here reads files: label and prediction maps come in as arrays, values go out. Two
conventions are in use (``docs/metrics.md``):

- ``dates``: the maps of both dates in one (C+1)×(C+1) confusion matrix;
- ``transitions``: one map of from→to entries, 0 for unchanged, else (from − 1)·C + to, in a
  (C²+1)×(C²+1) matrix.

Every score depends on a matrix's row sums, column sums and diagonal alone, so only these are kept
per image; a bootstrap resample is then a weighted sum of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datasets.classes import is_binary
from engine.metrics import compute_change_scores, compute_scores

MATRICES = ("dates", "transitions")

CONFIDENCE = 0.95

CHUNK_ENTRIES = 1 << 22  # of the sums of resamples held at a time: 32 MiB


@dataclass(frozen=True)
class PairCounts:
    """Pixel counts of one pair, enough for both conventions. K = C + 1.

    Attributes:
        confusion: (K, K) int64 over both dates, row = label, column = prediction; (2, 2) and each
            pixel once where there are change masks alone.
        transitions: (3, K, K) int64, row = class at date 1, column = class at date 2; pixels of
            that transition in the label, in the prediction, and in both at once.
    """

    confusion: np.ndarray
    transitions: np.ndarray

    @property
    def one_sided_label(self) -> int:
        """Pixels that the label calls changed at one date alone."""
        return _one_sided(self.transitions[0])

    @property
    def one_sided_prediction(self) -> int:
        """Pixels that the prediction calls changed at one date alone."""
        return _one_sided(self.transitions[1])


def _one_sided(table: np.ndarray) -> int:
    return int(table[0, 1:].sum() + table[1:, 0].sum())


def count_pair(
    prediction1: np.ndarray,
    prediction2: np.ndarray,
    label1: np.ndarray,
    label2: np.ndarray,
    num_classes: int,
) -> PairCounts:
    """Count one pair.

    Args:
        prediction1, prediction2: maps of any equal shape, uint8 values 0..C.
        label1, label2: the same for the labels.
        num_classes: C, *unchanged* not counted; at most 255.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = {mask.shape for mask in (prediction1, prediction2, label1, label2)}
    if len(shapes) > 1:
        raise ValueError(f"maps of one pair have several shapes: {sorted(shapes)}")
    size = num_classes + 1
    # Most pixels are unchanged in all four maps: they are counted, the others compared.
    changed = np.flatnonzero(label1 | label2 | prediction1 | prediction2)
    unchanged = label1.size - len(changed)
    first, second, true1, true2 = (
        mask.ravel()[changed] for mask in (prediction1, prediction2, label1, label2)
    )
    labelled = _cells(true1, true2, size)
    predicted = _cells(first, second, size)
    confusion = _count(_cells(true1, first, size), size) + _count(_cells(true2, second, size), size)
    confusion[0, 0] += 2 * unchanged
    cells = (labelled, predicted, labelled[labelled == predicted])
    transitions = np.stack([_count(part, size) for part in cells])
    transitions[:, 0, 0] += unchanged
    return PairCounts(confusion, transitions)


def count_change(prediction: np.ndarray, label: np.ndarray) -> PairCounts:
    """Count one pair of change masks: any equal shape, uint8 values 0 and 1.

    Raises:
        ValueError: the shapes differ.
    """
    twice = count_pair(prediction, prediction, label, label, 1)
    return PairCounts(twice.confusion // 2, twice.transitions)


def _cells(row: np.ndarray, column: np.ndarray, size: int) -> np.ndarray:
    return row.astype(np.uint16) * np.uint16(size) + column  # below 2¹⁶


def _count(cells: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def drop_one_sided(mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps with 0 wherever only one of them names a class."""
    changed = (mask1 > 0) & (mask2 > 0)
    return mask1 * changed, mask2 * changed


@dataclass(frozen=True)
class Tallies:
    """What the scores of n images need under one convention; K entries, *unchanged* first.

    Two entries are *unchanged* and *changed*, and have the scores of change alone.

    Attributes:
        labelled: (n, K) int64, pixels the label gives each entry.
        predicted: (n, K), pixels the prediction gives each entry.
        right: (n, K), pixels where both agree.
    """

    labelled: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.labelled)


def tally(counts: Sequence[PairCounts], matrix: str) -> Tallies:
    """Bring the counts of all pairs under a convention, a key of `MATRICES`.

    Raises:
        ValueError: unknown convention, no pairs, or a pixel that changed at one date alone, which
            is no transition.
    """
    if matrix not in MATRICES:
        raise ValueError(f"unknown matrix {matrix!r}; choose from {MATRICES}")
    if not counts:
        raise ValueError("no pairs to score")
    if matrix == "dates":
        confusion = np.stack([pair.confusion for pair in counts])
        diagonal = confusion.diagonal(axis1=1, axis2=2)
        return Tallies(confusion.sum(2), confusion.sum(1), diagonal.copy())
    tables = np.stack([pair.transitions for pair in counts])
    if tables[:, :, 0, 1:].any() or tables[:, :, 1:, 0].any():
        raise ValueError("a pixel changed at one date alone is no transition; drop these first")
    changed = tables[:, :, 1:, 1:].reshape(*tables.shape[:2], -1)
    entries = np.concatenate([tables[:, :, 0, :1], changed], axis=2)
    return Tallies(entries[:, 0], entries[:, 1], entries[:, 2])


def _scores(*sums: torch.Tensor) -> dict[str, torch.Tensor]:
    """Score (…, K) sums: labelled, predicted, right."""
    binary = is_binary(sums[0].shape[-1] - 1)
    return compute_change_scores(*sums) if binary else compute_scores(*sums)


def image_scores(tallies: Tallies) -> dict[str, np.ndarray]:
    """Score each image by itself: the fields of `engine.metrics.Metrics` as (n,) and (n, K).

    Change masks have the fields of `engine.metrics.ChangeMetrics`.
    """
    stack = (tallies.labelled, tallies.predicted, tallies.right)
    scores = _scores(*(torch.from_numpy(part.astype(np.float64)) for part in stack))
    return {name: value.numpy() for name, value in scores.items()}


def weighted_scores(tallies: Tallies, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Score resamples of the images.

    Args:
        tallies: n images.
        weights: (B, n), how often each resample holds each image.

    Returns:
        The fields of `engine.metrics.Metrics`, or of `engine.metrics.ChangeMetrics`, and
        ``oa_image_mean``, the mean accuracy of an image: ``class_iou`` (B, K), the others (B,).
    """
    weights = weights.astype(np.float64)
    parts = [tallies.labelled, tallies.predicted, tallies.right]
    sums = weights @ np.concatenate(parts, axis=1).astype(np.float64)  # whole numbers: exact
    labelled, predicted, right = (torch.from_numpy(part) for part in np.split(sums, 3, axis=1))
    scores = {k: v.numpy() for k, v in _scores(labelled, predicted, right).items()}
    image_oa = tallies.right.sum(1) / np.maximum(1, tallies.labelled.sum(1))
    return scores | {"oa_image_mean": weights @ image_oa / weights.sum(1)}


def pooled_scores(tallies: Tallies) -> dict[str, np.ndarray]:
    """Score all images as one: `weighted_scores` with every image once, () and (K,)."""
    scores = weighted_scores(tallies, np.ones((1, len(tallies))))
    return {name: value[0] for name, value in scores.items()}


def bootstrap(
    stacks: Sequence[Tallies], resamples: int, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Score resamples of the images, drawn with replacement (Efron, 1979).

    Args:
        stacks: one set of tallies per set of predictions, of the same images in the same order;
            all see the same resamples, which makes their differences paired.
        resamples: how many.
        seed: decides the draws.

    Returns:
        Per stack what `weighted_scores` gives, with B = ``resamples``.

    Raises:
        ValueError: the stacks have different numbers of images, or no resamples are asked for.
    """
    lengths = {len(tallies) for tallies in stacks}
    if len(lengths) != 1 or resamples < 1:
        raise ValueError(f"bootstrap of {sorted(lengths)} images with {resamples} resamples")
    rng = np.random.default_rng(seed)
    images = lengths.pop()
    entries = max(images, *(3 * tallies.labelled.shape[1] for tallies in stacks))
    chunk = max(1, CHUNK_ENTRIES // entries)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in stacks]
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=draws)
        for scores, tallies in zip(parts, stacks, strict=True):
            scores.append(weighted_scores(tallies, weights))
    return [{k: np.concatenate([part[k] for part in s]) for k in s[0]} for s in parts]


def interval(samples: np.ndarray) -> np.ndarray:
    """Return the percentile interval of resampled values: (B, …) → (2, …), low and high."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(samples, (tail, 1 - tail), axis=0)


@dataclass(frozen=True)
class Difference:
    """By how much A is better than B in one score.

    Attributes:
        value: A − B.
        low, high: interval of the difference.
        share_better: share of the resamples in which A is strictly better.
    """

    value: float
    low: float
    high: float
    share_better: float


def compare(
    a: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
    b: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> dict[str, Difference]:
    """Compare two sets of predictions of the same images, in every score that is one number.

    Args:
        a, b: `pooled_scores`, and what one call of `bootstrap` gave for both.
    """
    differences = {}
    for name, value in a[0].items():
        if value.ndim == 0:
            samples = a[1][name] - b[1][name]
            low, high = interval(samples)
            differences[name] = Difference(
                float(value - b[0][name]), float(low), float(high), float((samples > 0).mean())
            )
    return differences
