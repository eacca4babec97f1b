"""What `tools/score.py` tells: conventions and tables as text, values for JSON, rows for CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets.classes import is_binary
from tools.scoring.statistics import (
    CONFIDENCE,
    Difference,
    PairCounts,
    Tallies,
    compare,
    image_scores,
    interval,
    pooled_scores,
)
from tools.scoring.tables import (
    Values,
    class_table,
    comparison_table,
    score_table,
    score_titles,
    transition_table,
    transitions,
    verdict,
)

MATRIX_TEXTS = {
    "dates": "the class maps of both dates in one matrix (SenseEarth 2020, Bi-SRNet, SCanNet)",
    "transitions": "one map of from→to entries (ChangeMamba since June 2024, torchange)",
}

ONE_SIDED = {
    "error": "both dates of each prediction change in the same pixels (checked)",
    "unchanged": "a pixel predicted to change at one date alone counts as unchanged at both",
    "keep": "each date counts as it is, also where only one of them is predicted to change",
}

CHANGE_MATRIX = "change masks without classes: every pixel once, 2 × 2"


@dataclass(frozen=True)
class Report:
    """Scores of one folder of predictions, A, or of two, A and B, ready to be told.

    Attributes:
        folders: A, or A and B.
        label: folder of the labels.
        pair_names: names of the pairs.
        class_names: *unchanged* first.
        classes_source: where the class list comes from.
        matrix: one of `tools.scoring.statistics.MATRICES`.
        one_sided: a key of `ONE_SIDED`.
        resamples: number of bootstrap resamples, 0 for none.
        seed: of the resamples.
        counts: per folder the counts of each pair.
        tallies: per folder the tallies under ``matrix``.
        samples: per folder what `tools.scoring.statistics.bootstrap` gave; empty without resamples.
    """

    folders: Sequence[Path]
    label: Path
    pair_names: Sequence[str]
    class_names: Sequence[str]
    classes_source: str
    matrix: str
    one_sided: str
    resamples: int
    seed: int
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
    def is_binary(self) -> bool:
        """Whether change masks were scored, without classes."""
        return is_binary(len(self.class_names) - 1)

    def _topics(self) -> dict[str, str]:
        """Say what was scored and how."""
        classes = len(self.class_names) - 1
        entries = classes + 1 if self.matrix == "dates" else classes**2 + 1
        letters = ("prediction",) if len(self.folders) == 1 else ("A", "B")
        conventions = {
            "classes": f"unchanged and {classes} more, {self.classes_source}",
            "matrix": f"{self.matrix}: {MATRIX_TEXTS[self.matrix]}, {entries} × {entries}",
            "OA": "once over all pixels, once as the mean over images of each image's accuracy",
            "change": ONE_SIDED[self.one_sided],
        }
        if self.is_binary:
            conventions |= {"classes": f"none, {self.classes_source}", "matrix": CHANGE_MATRIX}
            del conventions["change"]
        return {
            **{letter: str(folder) for letter, folder in zip(letters, self.folders, strict=True)},
            "label": str(self.label),
            "pairs": f"{len(self.pair_names):,}",
            **conventions,
            "intervals": f"{CONFIDENCE:.0%} percentile bootstrap over images, {self.resamples} "
            f"resamples, seed {self.seed}"
            if self.resamples
            else "none",
        }

    def text(self) -> str:
        """Return everything but the single images, as text."""
        topics = self._topics()
        width = max(map(len, topics))
        samples = self.samples[0] if self.samples else None
        blocks = ["\n".join(f"{topic:<{width}}  {text}" for topic, text in topics.items())]
        blocks.append(score_table(self.values[0], samples))
        if self.matrix == "dates" and not self.is_binary:
            blocks.append(class_table(self.class_names, self.values[0], samples))
        if not self.is_binary:
            blocks.append(transition_table(transitions(self.class_names, self.counts[0])))
        if self.differences:
            blocks.append(comparison_table(*self.values, self.differences))
            name, title = next(iter(score_titles(self.values[0]).items()))
            blocks.append(verdict(title, self.differences[name]))
        return "\n\n".join(blocks)

    def to_dict(self) -> dict:
        """Return everything but the single images, as plain values; scores are fractions."""
        folders = [
            {
                "scores": with_intervals(values, self.samples[i] if self.samples else None),
                "confusion": sum(pair.confusion for pair in counts).tolist(),
                **(
                    {} if self.is_binary else {"transitions": transitions(self.class_names, counts)}
                ),
            }
            for i, (values, counts) in enumerate(zip(self.values, self.counts, strict=True))
        ]
        result = {
            "prediction": str(self.folders[0]),
            "label": str(self.label),
            "pairs": len(self.pair_names),
            "classes": list(self.class_names),
            "matrix": "change" if self.is_binary else self.matrix,
            **({} if self.is_binary else {"one_sided": self.one_sided}),
            "bootstrap": self.resamples,
            "seed": self.seed,
            **folders[0],
        }
        if self.differences:
            result["versus"] = {"prediction": str(self.folders[1]), **folders[1]}
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
                for name in score_titles(scores):
                    if name in scores:
                        row[f"{prefix}{name}"] = float(scores[name][i])
        return rows


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
