"""Scores of semantic change detection, all from one confusion matrix over both dates.

Index 0 is *unchanged*, 1..C are the classes; rows are labels, columns predictions. This is the
convention of SenseEarth 2020 and of the Bi-SRNet/SCanNet lineage: the (C+1)-class maps of both
dates are counted into one (C+1)×(C+1) matrix. `utils.scoring` knows the other convention.
"""

from dataclasses import dataclass

import torch


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, accumulated on a device.

    Attributes:
        counts: (K, K) int64, row = label, column = prediction.
    """

    def __init__(self, num_entries: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_entries, num_entries, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Add maps of any equal shape, with values 0..K-1.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ")
        size = self.counts.shape[0]
        cells = label.to(self.counts.device).long() * size + prediction.to(self.counts.device)
        self.counts += torch.bincount(cells.flatten(), minlength=size * size).view(size, size)


@dataclass(frozen=True)
class Metrics:
    """All scores of one confusion matrix, as fractions (1 = perfect) unless said otherwise.

    Attributes:
        score: 0.3·mIoU + 0.7·SeK, the challenge's ranking.
        miou: mean IoU of *unchanged* and *changed*.
        sek: separated kappa; may be negative.
        f_scd: F1 of naming changed pixels with their class.
        f_scd_precision: its precision.
        f_scd_recall: its recall.
        oa: overall accuracy over all pixels of both dates.
        kappa: Cohen's kappa with the unchanged cell kept.
        iou_unchanged: IoU of *unchanged*.
        iou_changed: IoU of *changed*.
        class_iou: IoU per class, *unchanged* first; 0 for a class that is nowhere.
    """

    score: float
    miou: float
    sek: float
    f_scd: float
    f_scd_precision: float
    f_scd_recall: float
    oa: float
    kappa: float
    iou_unchanged: float
    iou_changed: float
    class_iou: tuple[float, ...]

    def to_dict(self) -> dict:
        """Return plain values, as checkpoints and logs store them."""
        return {**self.__dict__, "class_iou": list(self.class_iou)}


def compute_metrics(counts: torch.Tensor) -> Metrics:
    """Compute all scores from a confusion matrix.

    Args:
        counts: (K, K) non-negative, row = label, column = prediction, index 0 = unchanged.
    """
    counts = counts.detach().cpu().double()
    scores = compute_scores(counts.sum(1), counts.sum(0), counts.diagonal())
    class_iou = tuple(scores.pop("class_iou").tolist())
    return Metrics(**{name: value.item() for name, value in scores.items()}, class_iou=class_iou)


def compute_scores(
    labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compute all scores of any stack of confusion matrices; no score needs more than these sums.

    Every ratio with an empty denominator is defined as 0, so that nothing is NaN; a set without
    any change in labels and predictions therefore has SeK 0 and IoU of *changed* 0.

    Formulas: mIoU and SeK after Yang et al., "Asymmetric Siamese Networks for Semantic Change
    Detection in Aerial Images" (TGRS 2021, section V.A) and the SenseEarth 2020 rules; F_scd after
    Ding et al., "Bi-Temporal Semantic Reasoning for the SCD of HR RS Images" (TGRS 2022).
    ``docs/metrics.md`` writes them out.

    Args:
        labelled: (..., K) float64, pixels the label gives each entry (sums of the matrix's rows).
        predicted: (..., K), pixels the prediction gives each entry (sums of its columns).
        right: (..., K), pixels where both agree (its diagonal). Index 0 = unchanged.

    Returns:
        The fields of `Metrics`: ``class_iou`` (..., K), the others (...).
    """
    total = labelled.sum(-1)
    both_unchanged = right[..., 0]
    label_unchanged, predicted_unchanged = labelled[..., 0], predicted[..., 0]
    both_changed = total - label_unchanged - predicted_unchanged + both_unchanged
    right_class = right[..., 1:].sum(-1)

    iou_unchanged = _ratio(both_unchanged, label_unchanged + predicted_unchanged - both_unchanged)
    iou_changed = _ratio(both_changed, total - both_unchanged)
    miou = (iou_unchanged + iou_changed) / 2
    sek = _separated_kappa(labelled, predicted, right) * torch.exp(iou_changed - 1)
    precision = _ratio(right_class, total - predicted_unchanged)
    recall = _ratio(right_class, total - label_unchanged)
    return {
        "score": 0.3 * miou + 0.7 * sek,
        "miou": miou,
        "sek": sek,
        "f_scd": _ratio(2 * precision * recall, precision + recall),
        "f_scd_precision": precision,
        "f_scd_recall": recall,
        "oa": _ratio(right.sum(-1), total),
        "kappa": _kappa(labelled, predicted, right),
        "iou_unchanged": iou_unchanged,
        "iou_changed": iou_changed,
        "class_iou": _ratio(right, labelled + predicted - right),
    }


def _kappa(labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = labelled.sum(-1)
    observed = _ratio(right.sum(-1), total)
    expected = _ratio((labelled * predicted).sum(-1), total**2)
    return _ratio(observed - expected, 1 - expected)


def _separated_kappa(
    labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Cohen's kappa without the pixels that are unchanged in label and prediction."""
    both_unchanged = torch.zeros_like(right)
    both_unchanged[..., 0] = right[..., 0]
    return _kappa(labelled - both_unchanged, predicted - both_unchanged, right - both_unchanged)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.where(denominator != 0, numerator / denominator, torch.zeros_like(numerator))
