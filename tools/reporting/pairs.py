"""The pairs that a report scores and shows: which they are, their counts, the worst of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.classes import ClassList
from datasets.images import read_picture
from datasets.labels import read_label
from datasets.pairs import Pair, and_more, index_pairs
from tools.reporting.gallery import GalleryPair, encode_pair
from tools.scoring.folders import MaskCounter, MaskJob, PairPaths, count_all
from tools.scoring.statistics import PairCounts, image_scores, tally
from utils.errors import DataError
from utils.text import progress


def find_recorded_pairs(root: Path, ids: Sequence[str], run: Path) -> list[Pair]:
    """Return the pairs that a run has recorded.

    Args:
        root: data set.
        ids: ``train/<stem>`` or ``val/<stem>``.
        run: its log folder, for messages.

    Raises:
        DataError: the data set has not all of them.
    """
    folders = dict.fromkeys(name.split("/")[0] for name in ids)
    by_id = {pair.id: pair for folder in folders for pair in index_pairs(root / folder)}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DataError(
            f"{root}: no pair {missing[0]}{and_more(missing)}, but {run} was validated on it; name "
            "the data of that run with --data-root"
        )
    return [by_id[name] for name in ids]


def count_pairs(
    pairs: Sequence[Pair], masks: dict[str, PairPaths], classes: ClassList, workers: int
) -> list[PairCounts]:
    """Count the masks of every pair against its labels; nothing where there are no labels."""
    if any(not has_all_labels(pair, classes) for pair in pairs):
        return []
    jobs = [MaskJob(p.name, tuple(p.labels.values()), (masks[p.name],)) for p in pairs]
    return count_all(jobs, MaskCounter(classes, one_sided="keep"), workers)[0]


def has_all_labels(pair: Pair, classes: ClassList) -> bool:
    """Tell whether a pair can be scored: labels of both dates, or a change mask."""
    return bool(pair.labels) if classes.is_binary else len(pair.labelled_dates) == 2


def choose_pairs(
    number: int,
    pairs: Sequence[Pair],
    masks: dict[str, PairPaths],
    counts: Sequence[PairCounts],
    classes: ClassList,
    bands: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Embed the pairs with the largest share of wrong pixels, else of predicted change.

    Returns:
        What `encode_pair` makes of each; one is held in full size at a time.
    """
    if counts:
        scores = image_scores(tally(counts, "dates"))
        f_scores = scores["f1" if classes.is_binary else "f_scd"].tolist()
        errors = (1 - scores["oa"]).tolist()
        changed = [changed_share(pair.transitions[0]) for pair in counts]
        order = sorted(range(len(pairs)), key=lambda i: (-errors[i], pairs[i].name))
    else:
        errors = f_scores = [None] * len(pairs)
        predicted = (read_label(masks[pair.name][0], classes) for pair in progress(pairs, "read"))
        changed = [float((mask > 0).mean()) for mask in predicted]
        order = sorted(range(len(pairs)), key=lambda i: (-changed[i], pairs[i].name))
    shown = (
        read_pair(
            *(pairs[i], masks[pairs[i].name], classes, errors[i], f_scores[i], changed[i]), bands
        )
        for i in progress(order[:number], "embed", unit="pair")
    )
    return [encode_pair(pair, len(classes.names)) for pair in shown]


def changed_share(transitions: Sequence) -> float:
    """Return the share of the pixels of a from→to table that change."""
    return float(1 - transitions[0, 0] / transitions.sum())


def read_pair(
    pair: Pair,
    masks: PairPaths,
    classes: ClassList,
    error: float | None,
    f_score: float | None,
    changed: float,
    bands: tuple[int, ...],
) -> GalleryPair:
    """Read the images, of which the first three of some bands are shown, and masks of one pair.

    Raises:
        DataError: a file cannot be decoded, or sizes differ.
    """
    images = (read_picture(pair.image1, bands), read_picture(pair.image2, bands))
    predictions = tuple(read_label(path, classes) for path in masks)
    labels = None
    if has_all_labels(pair, classes):
        paths = list(pair.labels.values())[: len(predictions)]
        labels = tuple(read_label(path, classes) for path in paths)
    for path, array in zip((pair.image2, *masks), (images[1], *predictions), strict=True):
        if array.shape[:2] != images[0].shape[:2]:
            height, width = array.shape[:2]
            raise DataError(
                f"{path}: {width} × {height} pixels, but {pair.image1} has "
                f"{images[0].shape[1]} × {images[0].shape[0]}; write masks of the images' size"
            )
    return GalleryPair(pair.name, images, predictions, labels, error, f_score, changed)
