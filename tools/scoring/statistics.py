"""Scores of many pairs of masks under either convention, with bootstrap intervals over images.

Nothing here reads files: label and prediction maps come in as arrays, values go out. Two
conventions are in use (``docs/metrics.md``):

- ``dates``: the maps of both dates in one (C+1)×(C+1) confusion matrix;
- ``transitions``: one map of from→to entries, 0 for unchanged, else (from − 1)·C + to, in a
  (C²+1)×(C²+1) matrix.

Every score depends on a matrix's row sums, column sums and diagonal alone, so only these are kept
per image, as *tallies*: (3, n, K) int64 pixels of n images that the label gives each of K entries,
that the prediction gives it, and where both agree; *unchanged* first. A bootstrap resample is then
a weighted sum of them. Two entries are change masks, and have the scores of change alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.metrics import change_scores, compute_scores

CONFIDENCE = 0.95
CHUNK_ENTRIES = 1 << 22  # of the sums of resamples held at a time: 32 MiB

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class PairCounts:
    """Pixel counts of one pair, enough for both conventions. K = C + 1.

    ``confusion``, (K, K), is over both dates, row = label, column = prediction; of change masks it
    is (2, 2) and has each pixel once. ``transitions``, (3, K, K), row = class at date 1, column =
    class at date 2, has the label's, the prediction's, and those that are in both at once.
    """

    confusion: np.ndarray
    transitions: np.ndarray

    @property
    def one_sided(self) -> list[int]:
        """Pixels changed at one date alone: in the label, in the prediction, in both at once."""
        return [int(table[0, 1:].sum() + table[1:, 0].sum()) for table in self.transitions]

    @property
    def changed(self) -> list[int]:
        """Pixels changed in the label, in the prediction, and as the same transition in both."""
        return [int(table.sum() - table[0, 0]) for table in self.transitions]


def count_pair(
    prediction1: np.ndarray,
    prediction2: np.ndarray,
    label1: np.ndarray,
    label2: np.ndarray,
    num_classes: int,
) -> PairCounts:
    """Count one pair: maps of any equal shape, uint8 values 0..C, C at most 255."""
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

    def count(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        cells = row.astype(np.uint16) * np.uint16(size) + column  # below 2¹⁶
        return np.bincount(cells, minlength=size * size).reshape(size, size)

    both = (first == true1) & (second == true2)
    confusion = count(true1, first) + count(true2, second)
    confusion[0, 0] += 2 * unchanged
    pairs = ((true1, true2), (first, second), (true1[both], true2[both]))
    transitions = np.stack([count(*pair) for pair in pairs])
    transitions[:, 0, 0] += unchanged
    return PairCounts(confusion, transitions)


def count_change(prediction: np.ndarray, label: np.ndarray) -> PairCounts:
    """Count one pair of change masks: any equal shape, uint8 values 0 and 1."""
    twice = count_pair(prediction, prediction, label, label, 1)
    return PairCounts(twice.confusion // 2, twice.transitions)


def drop_one_sided(mask1: np.ndarray, mask2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps with 0 wherever only one of them names a class."""
    changed = (mask1 > 0) & (mask2 > 0)
    return mask1 * changed, mask2 * changed


def tally(counts: Sequence[PairCounts], matrix: str) -> np.ndarray:
    """Bring the counts of all pairs under a convention: the (3, n, K) tallies of n pairs.

    Raises:
        ValueError: a pixel changed at one date alone, which is no transition.
    """
    if matrix == "dates":
        confusion = np.stack([pair.confusion for pair in counts])
        diagonal = confusion.diagonal(axis1=1, axis2=2)
        return np.stack([confusion.sum(2), confusion.sum(1), diagonal])
    if any(any(pair.one_sided) for pair in counts):
        raise ValueError("a pixel changed at one date alone is no transition; drop these first")
    tables = np.stack([pair.transitions for pair in counts], axis=1)
    changed = tables[:, :, 1:, 1:].reshape(*tables.shape[:2], -1)
    return np.concatenate([tables[:, :, 0, :1], changed], axis=2)


def image_scores(tallies: np.ndarray) -> Scores:
    """Score each row of (3, n, K) tallies by itself.

    Returns the fields of `engine.metrics.Metrics` as (n,), ``class_iou`` as (n, K); of two entries
    those of `engine.metrics.ChangeMetrics`.
    """
    scores = compute_scores(*torch.from_numpy(tallies.astype(np.float64)))
    if tallies.shape[-1] == 2:
        scores = change_scores(scores)
    return {name: value.numpy() for name, value in scores.items()}


def weighted_scores(tallies: np.ndarray, weights: np.ndarray) -> Scores:
    """Score B resamples of the images in (3, n, K) tallies.

    ``weights``, (B, n), say how often each resample holds each image. Returns `image_scores` of the
    resamples, and ``oa_image_mean``, the mean accuracy of an image.
    """
    weights = weights.astype(np.float64)
    labelled, _, right = tallies
    pixels = labelled.sum(1)
    image_oa = right.sum(1) / np.maximum(1, pixels)
    scores = image_scores(weights @ tallies.astype(np.float64))  # whole numbers: exact
    images = np.maximum(1, weights @ (pixels > 0))  # all but those without any data
    return scores | {"oa_image_mean": weights @ image_oa / images}


def pooled_scores(tallies: np.ndarray) -> Scores:
    """Score all images as one: `weighted_scores` with every image once, () and (K,)."""
    scores = weighted_scores(tallies, np.ones((1, tallies.shape[1])))
    return {name: value[0] for name, value in scores.items()}


def bootstrap(stacks: Sequence[np.ndarray], resamples: int, seed: int = 0) -> list[Scores]:
    """Score resamples of the images, drawn with replacement (Efron, 1979).

    ``stacks`` are tallies per set of predictions, of the same images in the same order; all see the
    same resamples, which makes their differences paired. Returns `weighted_scores` of each.
    """
    rng = np.random.default_rng(seed)
    images = stacks[0].shape[1]
    chunk = max(1, CHUNK_ENTRIES // max(images, *(3 * tallies.shape[2] for tallies in stacks)))
    parts: list[list[Scores]] = [[] for _ in stacks]
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


def compare(values: Sequence[Scores], samples: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """Compare two sets of predictions of the same images, in every score that is one number.

    Of A and B, ``values`` are `pooled_scores` and ``samples`` what one `bootstrap` gave. Returns
    per score the ``value`` A − B, its interval from ``low`` to ``high``, and ``share_better``, the
    share of the resamples in which A is strictly better.
    """
    differences = {}
    for name, value in values[0].items():
        if value.ndim == 0:
            drawn = samples[0][name] - samples[1][name]
            figures = (value - values[1][name], *interval(drawn), (drawn > 0).mean())
            keys = ("value", "low", "high", "share_better")
            differences[name] = dict(zip(keys, map(float, figures), strict=True))
    return differences
