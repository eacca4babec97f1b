"""What has labels is counted: both dates, one date, or change masks; and scored as what it is."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from utils.binary import is_binary
from utils.change_metrics import ChangeMetrics, compute_change_metrics
from utils.metrics import ConfusionMatrix, Metrics, compute_metrics, date_suffix

AnyMetrics = Metrics | ChangeMetrics
# The score by which the best epoch is chosen, and its title; a run has one of them.
RANKS = {
    "score": "Score",
    **{f"score{date_suffix(date)}": f"Score of date {date} only" for date in (1, 2)},
    "f1": "F1 of change",
}


class LabelCounts:
    """Confusion matrices of all that has labels: of each date, or of the change masks.

    Args:
        num_classes: C, *unchanged* not counted; 1 stands for change masks without classes.
        device: where the pixels are counted.

    Attributes:
        matrices: by the key of the labels in a batch, in the order of a model's maps.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        keys = ("change_mask",) if is_binary(num_classes) else ("label1", "label2")
        self.matrices = {key: ConfusionMatrix(num_classes + 1, device) for key in keys}

    def update(self, maps: Iterable[torch.Tensor], labels: Mapping[str, Any]) -> None:
        """Add predicted maps, one per matrix, where ``labels`` holds the same key."""
        for (key, matrix), prediction in zip(self.matrices.items(), maps, strict=True):
            if key in labels:
                matrix.update(prediction, labels[key])

    def stack(self) -> torch.Tensor:
        """Return all counts on the CPU, (matrices, K, K), for adding up over processes."""
        return torch.stack([matrix.counts.cpu() for matrix in self.matrices.values()])


def score_labels(stack: torch.Tensor) -> AnyMetrics | None:
    """Compute the scores of `LabelCounts.stack`; None where nothing has labels.

    Where one date alone has labels, the scores are of that date and say so.
    """
    labelled = stack.flatten(1).any(1).tolist()
    if not any(labelled):
        return None
    if len(stack) == 1:
        return compute_change_metrics(stack[0])
    return compute_metrics(stack.sum(0), None if all(labelled) else labelled.index(True) + 1)


def metrics_from_dict(values: Mapping[str, Any]) -> AnyMetrics:
    """Rebuild what ``to_dict`` returned."""
    if "f1" in values:
        return ChangeMetrics(**values)
    date = next((date for date in (1, 2) if f"score{date_suffix(date)}" in values), None)
    plain = {name.removesuffix(date_suffix(date)): value for name, value in values.items()}
    return Metrics(**{**plain, "class_iou": tuple(plain["class_iou"])}, date=date)
