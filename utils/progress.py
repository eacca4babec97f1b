"""Progress bars and the one-line summary of scores."""

from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

from utils.metrics import Metrics


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


def summary(metrics: Metrics) -> str:
    """Return the scores people compare, in percent."""
    names = (
        ("Score", "score"),
        ("mIoU", "miou"),
        ("SeK", "sek"),
        ("F_scd", "f_scd"),
        ("OA", "oa"),
    )
    return "  ".join(f"{label} {100 * getattr(metrics, name):.2f}" for label, name in names)


def details(metrics: Metrics, class_names: Iterable[str]) -> str:
    """Return all scores on several lines, in percent."""
    ious = ", ".join(
        f"{name} {100 * iou:.1f}" for name, iou in zip(class_names, metrics.class_iou, strict=True)
    )
    return (
        f"{summary(metrics)}\n"
        f"precision {100 * metrics.f_scd_precision:.2f}  recall {100 * metrics.f_scd_recall:.2f}  "
        f"kappa {100 * metrics.kappa:.2f}\nIoU: changed {100 * metrics.iou_changed:.1f}; {ious}"
    )
