"""Scores of change masks without classes, from one 2 × 2 confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.metrics import compute_scores


@dataclass(frozen=True)
class ChangeMetrics:
    """Scores of change masks without classes, as fractions (1 = perfect).

    Attributes:
        f1: F1 of *changed*, by which the best epoch is chosen.
        precision: share of the pixels predicted as changed that are.
        recall: share of the changed pixels that are predicted so.
        miou: mean IoU of *unchanged* and *changed*.
        iou_unchanged: IoU of *unchanged*.
        iou_changed: IoU of *changed*.
        oa: overall accuracy.
        kappa: Cohen's kappa.
    """

    f1: float
    precision: float
    recall: float
    miou: float
    iou_unchanged: float
    iou_changed: float
    oa: float
    kappa: float

    @property
    def rank(self) -> float:
        """The score by which the best epoch is chosen: F1."""
        return self.f1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as checkpoints and logs store them."""
        return dict(self.__dict__)

    def to_row(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return one number per name; there is none per class."""
        return self.to_dict()


def compute_change_metrics(counts: torch.Tensor) -> ChangeMetrics:
    """Compute the scores of change masks from a (2, 2) confusion matrix, row = label."""
    counts = counts.detach().cpu().double()
    scores = compute_change_scores(counts.sum(1), counts.sum(0), counts.diagonal())
    return ChangeMetrics(**{name: value.item() for name, value in scores.items()})


def compute_change_scores(
    labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compute the scores of change masks without classes; arguments as `compute_scores`, K = 2.

    Returns:
        The fields of `ChangeMetrics`, each (...).
    """
    scores = compute_scores(labelled, predicted, right)
    # With one class, naming a changed pixel with its class is finding it.
    return {
        "f1": scores["f_scd"],
        "precision": scores["f_scd_precision"],
        "recall": scores["f_scd_recall"],
        **{name: scores[name] for name in ("miou", "iou_unchanged", "iou_changed", "oa", "kappa")},
    }
