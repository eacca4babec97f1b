"""What `tools/score.py` tells: conventions, tables of text, values for JSON, rows for CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.logging import table
from utils.scoring import (
    CONFIDENCE,
    Difference,
    PairCounts,
    Tallies,
    compare,
    image_scores,
    interval,
    pooled_scores,
)

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
ONE_SIDED = {
    "error": "both dates of each prediction change in the same pixels (checked)",
    "unchanged": "a pixel predicted to change at one date alone counts as unchanged at both",
    "keep": "each date counts as it is, also where only one of them is predicted to change",
}
SHOWN_TRANSITIONS = 20

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """Scores of one folder of predictions, A, or of two, A and B, ready to be told.

    Attributes:
        header: what was scored, by topic.
        matrix: a key of `utils.scoring.MATRICES`.
        one_sided: a key of `ONE_SIDED`.
        resampling: number of resamples and their seed.
        class_names: *unchanged* first.
        pair_names: names of the pairs.
        counts: per folder the counts of each pair.
        tallies: per folder the tallies under ``matrix``.
        samples: per folder what `utils.scoring.bootstrap` gave; empty without resamples.
    """

    header: Mapping[str, object]
    matrix: str
    one_sided: str
    resampling: tuple[int, int]
    class_names: Sequence[str]
    pair_names: Sequence[str]
    counts: Sequence[Sequence[PairCounts]]
    tallies: Sequence[Tallies]
    samples: Sequence[Values]

    @cached_property
    def values(self) -> list[Values]:
        """Per folder the scores of all images pooled."""
        return [pooled_scores(tallies) for tallies in self.tallies]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By how much A is better than B; empty without B."""
        if len(self.values) < 2:
            return {}
        return compare(*zip(self.values, self.samples, strict=True))

    @property
    def _conventions(self) -> dict[str, str]:
        return conventions(self.matrix, len(self.class_names) - 1, self.one_sided, *self.resampling)

    def text(self) -> str:
        """Return everything but the single images, as text."""
        topics = {**self.header, **self._conventions}
        width = max(map(len, topics))
        samples = self.samples[0] if self.samples else None
        blocks = ["\n".join(f"{topic:<{width}}  {text}" for topic, text in topics.items())]
        blocks.append(score_table(self.values[0], samples))
        if self.matrix == "dates":
            blocks.append(class_table(self.class_names, self.values[0], samples))
        blocks.append(transition_table(transitions(self.class_names, self.counts[0])))
        if self.differences:
            blocks.append(comparison_table(*self.values, self.differences))
            blocks.append(verdict(self.differences["score"]))
        return "\n\n".join(blocks)

    def to_dict(self) -> dict:
        """Return everything but the single images, as plain values; scores are fractions."""
        folders = [
            {
                "scores": with_intervals(values, self.samples[i] if self.samples else None),
                "confusion": sum(pair.confusion for pair in counts).tolist(),
                "transitions": transitions(self.class_names, counts),
            }
            for i, (values, counts) in enumerate(zip(self.values, self.counts, strict=True))
        ]
        result = {topic: str(text) for topic, text in self.header.items()}
        result |= {
            "pairs": len(self.pair_names),
            "class_names": list(self.class_names),
            "conventions": self._conventions,
            **folders[0],
        }
        if self.differences:
            result["versus"] = folders[1]
            result["differences"] = {name: vars(value) for name, value in self.differences.items()}
        return result

    def rows(self) -> list[dict]:
        """Return one row per image: name, pixels, changed pixels, and scores as fractions."""
        rows: list[dict] = [{"name": name} for name in self.pair_names]
        for prefix, counts, tallies in zip(
            ("", "versus_"), self.counts, self.tallies, strict=False
        ):
            scores = image_scores(tallies)
            for i, (row, pair) in enumerate(zip(rows, counts, strict=True)):
                labelled, predicted, _ = pair.transitions
                row["pixels"] = int(labelled.sum())
                row["changed_label"] = int(labelled.sum() - labelled[0, 0])
                row[f"{prefix}changed_prediction"] = int(predicted.sum() - predicted[0, 0])
                for name in SCORES:
                    if name in scores:
                        row[f"{prefix}{name}"] = float(scores[name][i])
        return rows


def conventions(
    matrix: str, num_classes: int, one_sided: str, resamples: int, seed: int
) -> dict[str, str]:
    """Describe how the scores were computed, by topic."""
    entries = num_classes + 1 if matrix == "dates" else num_classes**2 + 1
    counted = {
        "dates": "both dates' class maps in one matrix (SenseEarth 2020, Bi-SRNet, SCanNet)",
        "transitions": "one map of from→to entries (ChangeMamba since June 2024, torchange)",
    }
    return {
        "matrix": f"{matrix}: {counted[matrix]}, {entries} × {entries}",
        "OA": "once over all pixels, once as the mean over images of each image's accuracy",
        "change": ONE_SIDED[one_sided],
        "intervals": f"{CONFIDENCE:.0%} percentile bootstrap over images, {resamples} resamples, "
        f"seed {seed}"
        if resamples
        else "none",
    }


def score_table(values: Values, samples: Values | None) -> str:
    """Return the scores in percent, with their intervals where there are resamples."""
    return _with_intervals(
        "in percent",
        [(title, values[name]) for name, title in SCORES.items()],
        samples and [samples[name] for name in SCORES],
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
        for name, title in SCORES.items()
    ]
    return table(("in percent", "A", "B", "A − B", "from", "to", "A better in"), lines)


def _difference(difference: Difference) -> tuple[str, ...]:
    signed = (difference.value, difference.low, difference.high)
    return (*(f"{100 * x:+.2f}" for x in signed), f"{100 * difference.share_better:.1f} %")


def verdict(difference: Difference) -> str:
    """Say in a sentence what the comparison of the Score shows."""
    if difference.low > 0:
        found = "A is better: the interval of the difference lies above 0"
    elif difference.high < 0:
        found = "B is better: the interval of the difference lies below 0"
    else:
        found = "undecided: the interval of the difference holds 0"
    return f"Score: {found}"


def with_intervals(values: Values, samples: Values | None) -> dict:
    """Return scores for JSON: ``{"score": {"value": …, "interval": [low, high]}, …}``."""
    result = {}
    for name, value in values.items():
        entry = {"value": value.tolist()}
        if samples is not None:
            entry["interval"] = interval(samples[name]).T.tolist()
        result[name] = entry
    return result


def csv_text(rows: Sequence[Mapping]) -> str:
    """Format rows of equal keys as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _percent(value: float) -> str:
    return f"{100 * float(value):.2f}"
