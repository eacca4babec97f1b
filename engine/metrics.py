"""Scores: the table that lists them, their formulas, and the counts they follow from.

The fields of `Metrics` and `ChangeMetrics` are the table: what prints, draws or stores scores asks
them for names and titles. A new score is a field here and a formula in `compute_scores`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

# Where scores are shown: the line of an epoch; the report's table of runs, first charts and tiles.
EVERYWHERE = ("line", "runs", "charts", "tiles")


def _score(title: str, shown: Sequence[str] = (), of_classes: bool = False) -> Any:
    """Describe a score: its title, and where it is ``shown`` among the few that are compared.

    What follows from the classes is another figure of one date's labels than of both; files name
    it ``<score>_date1`` or ``<score>_date2``.
    """
    return field(metadata={"title": title, "shown": shown, "of_classes": of_classes})


class _Scores:
    """What both kinds of scores have in common."""

    date = None

    @property
    def rank(self) -> float:
        """The score by which the best epoch is chosen: the first."""
        return getattr(self, fields(self)[0].name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as checkpoints and logs store them."""
        values = {}
        for each in fields(self):
            if each.metadata:
                suffix = date_suffix(self.date) if each.metadata["of_classes"] else ""
                value = getattr(self, each.name)
                values[each.name + suffix] = list(value) if isinstance(value, tuple) else value
        return values

    def to_row(self, class_names: Sequence[str]) -> dict[str, float]:
        """Return one number per name, a class's IoU as ``iou_<class>``.

        That of a class called *changed* is ``class_iou_changed``: a score has the shorter name.
        """
        values, suffix = self.to_dict(), date_suffix(self.date)
        ious = values.pop(f"class_iou{suffix}", [])
        for name, iou in zip(class_names[1:], ious[1:], strict=bool(ious)):
            column = f"iou_{name}{suffix}"
            values[f"class_{column}" if column in values else column] = iou
        return values


@dataclass(frozen=True)
class Metrics(_Scores):
    """Scores of semantic change as fractions (1 = perfect), in the order in which they are shown.

    ``class_iou`` has *unchanged* first, and 0 for a class that is nowhere. ``date`` is the only
    date that has labels, 1 or 2; None for both.
    """

    score: float = _score("Score", EVERYWHERE, of_classes=True)  # 0.3·mIoU + 0.7·SeK, the ranking
    miou: float = _score("mIoU", EVERYWHERE)  # mean of the IoUs of unchanged and changed
    sek: float = _score("SeK", EVERYWHERE, of_classes=True)  # separated kappa; may be negative
    f_scd: float = _score("F_scd", EVERYWHERE, of_classes=True)  # of naming changed pixels' class
    f_scd_precision: float = _score("F_scd precision", of_classes=True)
    f_scd_recall: float = _score("F_scd recall", of_classes=True)
    oa: float = _score("OA", EVERYWHERE, of_classes=True)  # accuracy over all pixels of both dates
    kappa: float = _score("kappa", ("tiles",), of_classes=True)  # with the unchanged cell kept
    iou_unchanged: float = _score("IoU unchanged")
    iou_changed: float = _score("IoU changed")
    class_iou: tuple[float, ...] = field(metadata={"of_classes": True})
    date: int | None = None


@dataclass(frozen=True)
class ChangeMetrics(_Scores):
    """Scores of change masks without classes as fractions, in the order of metrics.csv."""

    f1: float = _score("F1", EVERYWHERE)  # of changed pixels
    precision: float = _score("precision", ("runs", "tiles"))
    recall: float = _score("recall", ("runs", "tiles"))
    miou: float = _score("mIoU", EVERYWHERE)
    iou_unchanged: float = _score("IoU unchanged")
    iou_changed: float = _score("IoU changed", ("line", "tiles"))
    oa: float = _score("OA", EVERYWHERE)
    kappa: float = _score("kappa", ("tiles",))


AnyMetrics = Metrics | ChangeMetrics


def date_suffix(date: int | None) -> str:
    """Return what follows the names of scores of one date alone; nothing for both."""
    return f"_date{date}" if date else ""


# The score by which the best epoch is chosen, and its title; a run has one of them.
RANKS = {
    "score": "Score",
    **{f"score{date_suffix(date)}": f"Score of date {date} only" for date in (1, 2)},
    "f1": "F1 of change",
}


def titles(kind: type[AnyMetrics], shown: str = "", date: int | None = None) -> dict[str, str]:
    """Return the titles of scores, or of those ``shown`` in one place, by their names in files."""
    found = {}
    for each in fields(kind):
        if "title" in each.metadata and (not shown or shown in each.metadata["shown"]):
            own = date if each.metadata["of_classes"] else None
            note = f", date {own} only" if own else ""
            found[each.name + date_suffix(own)] = each.metadata["title"] + note
    return found


def column_titles(columns: Collection[str], shown: str = "") -> dict[str, str]:
    """Return `titles` of the kinds of scores that the columns of a ``metrics.csv`` are of."""
    kinds = ((Metrics, None), (Metrics, 1), (Metrics, 2), (ChangeMetrics, None))
    found = [kind for rank, kind in zip(RANKS, kinds, strict=True) if rank in columns]
    return {k: v for kind, date in found or kinds[:1] for k, v in titles(kind, shown, date).items()}


def summary(metrics: AnyMetrics) -> str:
    """Return the scores people compare, in percent."""
    note = f"labels of date {metrics.date} only:  " if metrics.date else ""
    return note + _percent(metrics, titles(type(metrics), "line"))


def details(metrics: AnyMetrics, class_names: Iterable[str]) -> str:
    """Return all scores on several lines, in percent."""
    line = titles(type(metrics), "line")
    rest = {name: title for name, title in titles(type(metrics)).items() if name not in line}
    lines = [summary(metrics), _percent(metrics, rest)]
    ious = named_ious(metrics, class_names)
    if ious:
        lines.append("IoU: " + ", ".join(f"{name} {100 * iou:.1f}" for name, iou in ious.items()))
    return "\n".join(lines)


def named_ious(metrics: AnyMetrics, class_names: Iterable[str]) -> dict[str, float]:
    """Return the IoU of *unchanged* and of each class, by name; nothing without classes."""
    if not isinstance(metrics, Metrics):
        return {}
    return dict(zip(class_names, metrics.class_iou, strict=True))


def _percent(metrics: AnyMetrics, chosen: Mapping[str, str]) -> str:
    return "  ".join(f"{title} {100 * getattr(metrics, n):.2f}" for n, title in chosen.items())


def compute_scores(
    labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compute all scores of any stack of confusion matrices; no score needs more than these sums.

    A ratio with an empty denominator is 0: without any change in labels and predictions, SeK and
    the IoU of *changed* are 0. mIoU and SeK after Yang et al. (TGRS 2021, section V.A) and the
    SenseEarth 2020 rules, F_scd after Ding et al. (TGRS 2022); ``docs/metrics.md`` has them all.

    Sums over each of K entries, index 0 = unchanged, in float64 (..., K): ``labelled`` over the
    rows, ``predicted`` over the columns, ``right`` of the diagonal. Returns the fields of
    `Metrics`: ``class_iou`` (..., K), the others (...).
    """
    total = labelled.sum(-1)
    both_unchanged = right[..., 0]
    label_unchanged, predicted_unchanged = labelled[..., 0], predicted[..., 0]
    both_changed = total - label_unchanged - predicted_unchanged + both_unchanged
    right_class = right[..., 1:].sum(-1)

    iou_unchanged = _ratio(both_unchanged, label_unchanged + predicted_unchanged - both_unchanged)
    iou_changed = _ratio(both_changed, total - both_unchanged)
    miou = (iou_unchanged + iou_changed) / 2
    # Separated: without the pixels that are unchanged in label and prediction.
    apart = torch.zeros_like(right)
    apart[..., 0] = both_unchanged
    kappa_of_change = _kappa(labelled - apart, predicted - apart, right - apart)
    sek = kappa_of_change * torch.exp(iou_changed - 1)
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


def change_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ChangeMetrics` out of those of `Metrics`, of a single class."""
    # With one class, naming a changed pixel with its class is finding it.
    same = {"f1": "f_scd", "precision": "f_scd_precision", "recall": "f_scd_recall"}
    return {name: scores[same.get(name, name)] for name in titles(ChangeMetrics)}


def _kappa(labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = labelled.sum(-1)
    observed = _ratio(right.sum(-1), total)
    expected = _ratio((labelled * predicted).sum(-1), total**2)
    return _ratio(observed - expected, 1 - expected)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.where(denominator != 0, numerator / denominator, torch.zeros_like(numerator))


def compute_metrics(counts: torch.Tensor, date: int | None = None) -> Metrics:
    """Compute all scores from a (K, K) confusion matrix, row = label, index 0 = unchanged.

    ``date`` is the only date it is of; None for both.
    """
    counts = counts.detach().cpu().double()
    scores = compute_scores(counts.sum(1), counts.sum(0), counts.diagonal())
    class_iou = tuple(scores.pop("class_iou").tolist())
    return Metrics(**{n: v.item() for n, v in scores.items()}, class_iou=class_iou, date=date)


def compute_change_metrics(counts: torch.Tensor) -> ChangeMetrics:
    """Compute the scores of change masks from a (2, 2) confusion matrix, row = label."""
    return ChangeMetrics(**change_scores(vars(compute_metrics(counts))))


def metrics_from_dict(values: Mapping[str, Any]) -> AnyMetrics:
    """Rebuild what ``to_dict`` returned."""
    if "f1" in values:
        return ChangeMetrics(**values)
    date = next((date for date in (1, 2) if f"score{date_suffix(date)}" in values), None)
    plain = {name.removesuffix(date_suffix(date)): value for name, value in values.items()}
    return Metrics(**{**plain, "class_iou": tuple(plain["class_iou"])}, date=date)


class ConfusionMatrix:
    """Counts of pixels on a device: (K, K) int64, row = label, column = prediction."""

    def __init__(self, num_entries: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_entries, num_entries, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Add maps of any equal shape, with values 0..K-1, except where ``label`` is `IGNORED`;
        other shapes raise a ValueError.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ")
        size = self.counts.shape[0]
        cells = label.to(self.counts.device).long() * size + prediction.to(self.counts.device)
        counts = torch.bincount(cells.flatten(), minlength=size * size)
        self.counts += counts[: size * size].view(size, size)  # K < 256: ignored ones lie behind


class LabelCounts:
    """Confusion matrices of all that has labels: of each date, or of the change masks.

    ``num_classes`` leaves out *unchanged*; 1 stands for change masks without classes. ``matrices``
    go by the key of the labels in a batch, in the order of a model's maps.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        keys = ("change_mask",) if num_classes == 1 else ("label1", "label2")
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
    """Compute the scores of `LabelCounts.stack`: of the dates with labels; None without any."""
    labelled = stack.flatten(1).any(1).tolist()
    if not any(labelled):
        return None
    if len(stack) == 1:
        return compute_change_metrics(stack[0])
    return compute_metrics(stack.sum(0), None if all(labelled) else labelled.index(True) + 1)
