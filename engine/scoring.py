"""Predicting and scoring the pairs of a loader."""

from collections.abc import Callable, Iterable

from datasets.task import Task
from engine.metrics import AnyMetrics, LabelCounts, score_labels
from engine.predictor import Predictor, decode
from utils.dist import all_sum


def evaluate(
    predictor: Predictor,
    batches: Iterable[dict],
    task: Task,
    on_batch: Callable[..., None] | None = None,
    counts: LabelCounts | None = None,
) -> AnyMetrics | None:
    """Predict every pair of a loader and score it where labels exist.

    Each process brings its own share of the pairs; the counts are added up over all of them.

    Args:
        predictor: models and views.
        batches: dicts as `datasets.loaders` makes them; any labels may be absent.
        task: what the labels are.
        on_batch: receives each batch's names and predicted maps, (N, H, W) uint8 on the CPU.
        counts: those of pairs that need no prediction any more.

    Returns:
        The scores, or None when the pairs have no labels.
    """
    counts = counts or LabelCounts(task.num_classes, predictor.device)
    for batch in batches:
        maps = decode(predictor(batch["image1"], batch["image2"]))
        counts.update(maps, batch)
        if on_batch is not None:
            on_batch(batch["name"], *(pred.cpu() for pred in maps))
    return score_labels(all_sum(counts.stack()))
