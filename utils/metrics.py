"""Scores of semantic change detection, all from one confusion matrix over both dates.

Index 0 is *unchanged*, 1..C are the classes; rows are labels, columns predictions. This is the
convention of SenseEarth 2020 and of the Bi-SRNet/SCanNet lineage: the (C+1)-class maps of both
dates are counted into one (C+1)×(C+1) matrix.
"""

import math
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

    Every ratio with an empty denominator is defined as 0, so that nothing is NaN; a set without
    any change in labels and predictions therefore has SeK 0 and IoU of *changed* 0.

    Formulas: mIoU and SeK after Yang et al., "Asymmetric Siamese Networks for Semantic Change
    Detection in Aerial Images" (TGRS 2021, section V.A) and the SenseEarth 2020 rules; F_scd after
    Ding et al., "Bi-Temporal Semantic Reasoning for the SCD of HR RS Images" (TGRS 2022).

    Args:
        counts: (K, K) non-negative, row = label, column = prediction, index 0 = unchanged.
    """
    counts = counts.detach().cpu().double()
    total = counts.sum().item()
    both_unchanged = counts[0, 0].item()
    label_unchanged = counts[0].sum().item()
    predicted_unchanged = counts[:, 0].sum().item()
    both_changed = counts[1:, 1:].sum().item()
    right_class = counts.diagonal()[1:].sum().item()

    iou_unchanged = _ratio(both_unchanged, label_unchanged + predicted_unchanged - both_unchanged)
    iou_changed = _ratio(both_changed, total - both_unchanged)
    miou = (iou_unchanged + iou_changed) / 2
    without_unchanged = counts.clone()
    without_unchanged[0, 0] = 0
    sek = cohen_kappa(without_unchanged) * math.exp(iou_changed - 1)
    precision = _ratio(right_class, total - predicted_unchanged)
    recall = _ratio(right_class, total - label_unchanged)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return Metrics(
        score=0.3 * miou + 0.7 * sek,
        miou=miou,
        sek=sek,
        f_scd=_ratio(2 * precision * recall, precision + recall),
        f_scd_precision=precision,
        f_scd_recall=recall,
        oa=_ratio(counts.diagonal().sum().item(), total),
        kappa=cohen_kappa(counts),
        iou_unchanged=iou_unchanged,
        iou_changed=iou_changed,
        class_iou=tuple(
            _ratio(hit, size)
            for hit, size in zip(counts.diagonal().tolist(), union.tolist(), strict=True)
        ),
    )


def cohen_kappa(counts: torch.Tensor) -> float:
    """Agreement beyond chance (Cohen, 1960): (p₀ − pₑ) / (1 − pₑ); 0 for an empty matrix."""
    total = counts.sum().item()
    if total == 0:
        return 0.0
    observed = counts.diagonal().sum().item() / total
    expected = (counts.sum(0) * counts.sum(1)).sum().item() / total**2
    return _ratio(observed - expected, 1 - expected)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
