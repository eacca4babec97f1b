"""Scores as tables of text, in percent."""

from collections.abc import Mapping, Sequence

import numpy as np

from tools.scoring.statistics import Difference, PairCounts, interval
from utils.text import table

SCORES = {
    "score": "Score",
    "miou": "mIoU",
    "sek": "SeK",
    "f_scd": "F_scd",
    "f_scd_precision": "F_scd precision",
    "f_scd_recall": "F_scd recall",
    "oa": "OA, all pixels",
    "oa_image_mean": "OA, mean of images",
    "kappa": "kappa",
    "iou_unchanged": "IoU unchanged",
    "iou_changed": "IoU changed",
}

CHANGE_SCORES = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    **{name: SCORES[name] for name in ("miou", "iou_changed", "iou_unchanged")},
    **{name: SCORES[name] for name in ("oa", "oa_image_mean", "kappa")},
}

SHOWN_TRANSITIONS = 20

Values = Mapping[str, np.ndarray]


def score_titles(values: Mapping[str, object]) -> dict[str, str]:
    """Return the titles of the scores there are, those of change masks or of classes, by name."""
    return CHANGE_SCORES if "f1" in values else SCORES


def score_table(values: Values, samples: Values | None) -> str:
    """Return the scores in percent, with their intervals where there are resamples."""
    return _with_intervals(
        "in percent",
        [(title, values[name]) for name, title in score_titles(values).items()],
        samples and [samples[name] for name in score_titles(values)],
    )


def class_table(names: Sequence[str], values: Values, samples: Values | None) -> str:
    """Return the IoU of every class in percent."""
    ious = values["class_iou"]
    return _with_intervals(
        "IoU per class",
        list(zip(names, ious, strict=True)),
        samples and list(samples["class_iou"].T),
    )


def _with_intervals(
    title: str, rows: Sequence[tuple[str, float]], samples: Sequence[np.ndarray] | None
) -> str:
    if samples is None:
        return table((title, "value"), [(name, _percent(value)) for name, value in rows])
    lines = [
        (name, _percent(value), *map(_percent, interval(column)))
        for (name, value), column in zip(rows, samples, strict=True)
    ]
    return table((title, "value", "from", "to"), lines)


def transitions(names: Sequence[str], counts: Sequence[PairCounts]) -> list[dict]:
    """List the transitions that labels or predictions hold, the most frequent label first.

    Returns:
        Dicts with class names ``from`` and ``to``, pixel counts ``labelled``, ``predicted`` and
        ``right``, and ``iou`` as a fraction.
    """
    labelled, predicted, right = sum(pair.transitions for pair in counts)
    rows = []
    for i, j in np.argwhere((labelled + predicted)[1:, 1:]) + 1:
        union = labelled[i, j] + predicted[i, j] - right[i, j]
        rows.append(
            {
                "from": names[i],
                "to": names[j],
                "labelled": int(labelled[i, j]),
                "predicted": int(predicted[i, j]),
                "right": int(right[i, j]),
                "iou": float(right[i, j] / union),
            }
        )
    return sorted(rows, key=lambda row: -row["labelled"])


def transition_table(rows: Sequence[Mapping]) -> str:
    """Return what `transitions` listed as text, the first 20 of it."""
    if not rows:
        return "no changes in labels or predictions"
    columns = ("labelled", "predicted", "right")
    lines = [
        (
            f"{row['from']} → {row['to']}",
            *(f"{row[column]:,}" for column in columns),
            _percent(row["iou"]),
        )
        for row in rows[:SHOWN_TRANSITIONS]
    ]
    more = len(rows) - len(lines)
    text = table(("pixels per transition", *columns, "IoU %"), lines)
    return f"{text}\nand {more} more, which --json lists" if more else text


def comparison_table(a: Values, b: Values, differences: Mapping[str, Difference]) -> str:
    """Return both sets' scores, their differences with intervals, and how often A is better."""
    lines = [
        (title, _percent(a[name]), _percent(b[name]), *_difference(differences[name]))
        for name, title in score_titles(a).items()
    ]
    return table(("in percent", "A", "B", "A − B", "from", "to", "A better in"), lines)


def _difference(difference: Difference) -> tuple[str, ...]:
    signed = (difference.value, difference.low, difference.high)
    return (*(f"{100 * x:+.2f}" for x in signed), f"{100 * difference.share_better:.1f} %")


def verdict(title: str, difference: Difference) -> str:
    """Say in a sentence what the comparison of a score shows."""
    if difference.low > 0:
        found = "A is better: the interval of the difference lies above 0"
    elif difference.high < 0:
        found = "B is better: the interval of the difference lies below 0"
    else:
        found = "undecided: the interval of the difference holds 0"
    return f"{title}: {found}"


def _percent(value: float) -> str:
    return f"{100 * float(value):.2f}"
