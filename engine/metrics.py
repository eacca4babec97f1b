"""Progress bars and the one-line summary of scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datasets.classes import is_binary

SUMMARY = {"score": "Score", "miou": "mIoU", "sek": "SeK", "f_scd": "F_scd", "oa": "OA"}

CHANGE_SUMMARY = {"f1": "F1", "miou": "mIoU", "iou_changed": "IoU changed", "oa": "OA"}


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


@dataclass(frozen=True)
class Metrics:
    """All scores of one confusion matrix, as fractions (1 = perfect) unless said otherwise.

    Where one date alone has labels, `to_dict` calls all that follows from the classes
    ``<score>_date1`` or ``<score>_date2``, so that nobody compares it with scores of both dates.

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
        date: the only date that has labels, 1 or 2; None for both.
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
    date: int | None = None

    @property
    def rank(self) -> float:
        """The score by which the best epoch is chosen: Score."""
        return self.score

    @property
    def suffix(self) -> str:
        """What follows the names of `OF_CLASSES` in files."""
        return date_suffix(self.date)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as checkpoints and logs store them."""
        values = {**self.__dict__, "class_iou": list(self.class_iou)}
        del values["date"]
        return {f"{n}{self.suffix if n in OF_CLASSES else ''}": v for n, v in values.items()}

    def to_row(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return one number per name, a class's IoU as ``iou_<class>``."""
        values = self.to_dict()
        ious = values.pop(f"class_iou{self.suffix}")
        named = zip(class_names[1:], ious[1:], strict=True)
        return values | {f"iou_{name}{self.suffix}": iou for name, iou in named}


AnyMetrics = Metrics | ChangeMetrics


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


# Scores that follow from the classes: of one date's labels they are other figures than of both.
# What remains, mIoU and the two IoUs, depends on the change alone.
OF_CLASSES = (
    *("score", "sek", "f_scd", "f_scd_precision", "f_scd_recall", "oa", "kappa", "class_iou"),
)


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


def date_suffix(date: int | None) -> str:
    """Return what follows the names of scores of one date alone; nothing for both."""
    return f"_date{date}" if date else ""


def compute_metrics(counts: torch.Tensor, date: int | None = None) -> Metrics:
    """Compute all scores from a confusion matrix.

    Args:
        counts: (K, K) non-negative, row = label, column = prediction, index 0 = unchanged.
        date: the only date they are of; None for both.
    """
    counts = counts.detach().cpu().double()
    scores = compute_scores(counts.sum(1), counts.sum(0), counts.diagonal())
    class_iou = tuple(scores.pop("class_iou").tolist())
    values = {name: value.item() for name, value in scores.items()}
    return Metrics(**values, class_iou=class_iou, date=date)


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
