"""Progress bars and the one-line summary of scores."""

from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

from utils.change_metrics import ChangeMetrics
from utils.label_counts import AnyMetrics

SUMMARY = {"score": "Score", "miou": "mIoU", "sek": "SeK", "f_scd": "F_scd", "oa": "OA"}
CHANGE_SUMMARY = {"f1": "F1", "miou": "mIoU", "iou_changed": "IoU changed", "oa": "OA"}


def progress(
    items: Iterable[Any],
    description: str,
    show: bool = True,
    unit: str = "batch",
    total: int | None = None,
) -> Iterable[Any]:
    """Wrap an iterable in a bar that disappears when it ends; no bar where stderr is a file.

    Args:
        items: what to iterate over.
        description: stands before the bar.
        show: False for no bar at all.
        unit: what an item is.
        total: number of items, where ``items`` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        leave=False,
        disable=None if show else True,
    )


def summary(metrics: AnyMetrics) -> str:
    """Return the scores people compare, in percent."""
    if isinstance(metrics, ChangeMetrics):
        return _percent(metrics, CHANGE_SUMMARY)
    note = f"labels of date {metrics.date} only:  " if metrics.date else ""
    return note + _percent(metrics, SUMMARY)


def _percent(metrics: AnyMetrics, titles: dict[str, str]) -> str:
    return "  ".join(
        f"{title} {100 * getattr(metrics, name):.2f}" for name, title in titles.items()
    )


def details(metrics: AnyMetrics, class_names: Iterable[str]) -> str:
    """Return all scores on several lines, in percent."""
    if isinstance(metrics, ChangeMetrics):
        rest = {"precision": "precision", "recall": "recall", "kappa": "kappa"}
        rest |= {"iou_unchanged": "IoU unchanged"}
        return f"{summary(metrics)}\n{_percent(metrics, rest)}"
    ious = ", ".join(
        f"{name} {100 * iou:.1f}" for name, iou in zip(class_names, metrics.class_iou, strict=True)
    )
    return (
        f"{summary(metrics)}\n"
        f"precision {100 * metrics.f_scd_precision:.2f}  recall {100 * metrics.f_scd_recall:.2f}  "
        f"kappa {100 * metrics.kappa:.2f}\nIoU: changed {100 * metrics.iou_changed:.1f}; {ious}"
    )
