"""Scores as tables of text, in percent."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from engine.metrics import ChangeMetrics, Metrics, titles
from tools.scoring.statistics import PairCounts, Scores, interval
from utils.text import table

# Of many images there are two accuracies.
ACCURACIES = {"oa": "OA, all pixels", "oa_image_mean": "OA, mean of images"}
SHOWN_TRANSITIONS = 20


def score_titles(values: Iterable[str]) -> dict[str, str]:
    """Return the titles of the scores of many images by name: of change masks where F1 is there."""
    found = {}
    for name, title in titles(ChangeMetrics if "f1" in values else Metrics).items():
        found |= ACCURACIES if name == "oa" else {name: title}
    return found


def percent(value: float | None) -> str:
    """Return a fraction in percent with two decimals; a dash for none."""
    return "–" if value is None else f"{100 * float(value):.2f}"


def value_table(heading: str, names: Sequence[str], values: Iterable, samples: Iterable) -> str:
    """Return a line per name: its value, and the interval of its samples, (B,) or None."""
    lines = [
        (name, percent(value), *(map(percent, interval(drawn)) if drawn is not None else ()))
        for name, value, drawn in zip(names, values, samples, strict=True)
    ]
    return table((heading, "value", "from", "to")[: len(lines[0])], lines)


def transitions(names: Sequence[str], counts: Sequence[PairCounts]) -> list[dict]:
    """List the transitions that labels or predictions hold, the most frequent of both first."""
    pixels = sum(pair.transitions for pair in counts)
    rows = []
    for i, j in np.argwhere(pixels[:2].any(0)[1:, 1:]) + 1:
        labelled, predicted, right = pixels[:, i, j].tolist()
        row = {"from": names[i], "to": names[j], "labelled": labelled, "predicted": predicted}
        rows.append(row | {"right": right, "iou": right / (labelled + predicted - right)})
    return sorted(rows, key=lambda row: -max(row["labelled"], row["predicted"]))


def one_class_shares(counts: Sequence[PairCounts]) -> dict[str, float]:
    """Return which part of the changed pixels, labelled and predicted, has one class at both dates.

    It is 0 where nothing changes.
    """
    changed = sum(pair.transitions for pair in counts)[:2, 1:, 1:]
    shares = changed.trace(axis1=1, axis2=2) / np.maximum(1, changed.sum((1, 2)))
    return dict(zip(("labelled", "predicted"), shares.tolist(), strict=True))


def transition_table(names: Sequence[str], counts: Sequence[PairCounts]) -> str:
    """Return `transitions` as text, the first 20, and the share that keeps its class."""
    rows = transitions(names, counts)
    if not rows:
        return "no changes in labels or predictions"
    columns = ("labelled", "predicted", "right")
    lines = []
    for row in rows[:SHOWN_TRANSITIONS]:
        pixels = (f"{row[column]:,}" for column in columns)
        lines.append((f"{row['from']} → {row['to']}", *pixels, percent(row["iou"])))
    more = len(rows) - len(lines)
    text = table(("pixels per transition", *columns, "IoU %"), lines)
    if more:
        text += f"\nand {more} more, which --json lists"
    shares = ", ".join(f"{side} {percent(p)} %" for side, p in one_class_shares(counts).items())
    return f"{text}\nof the changed pixels, one class at both dates: {shares}"


def comparison(a: Scores, b: Scores, differences: Mapping[str, Mapping[str, float]]) -> str:
    """Return both sets' scores, differences with intervals, how often A is better; a verdict."""
    lines = []
    for name, title in score_titles(a).items():
        *signed, share_better = differences[name].values()
        figures = (f"{100 * value:+.2f}" for value in signed)
        better = f"{100 * share_better:.1f} %"
        lines.append((title, percent(a[name]), percent(b[name]), *figures, better))
    name, title = next(iter(score_titles(a).items()))
    if differences[name]["low"] > 0:
        found = "A is better: the interval of the difference lies above 0"
    elif differences[name]["high"] < 0:
        found = "B is better: the interval of the difference lies below 0"
    else:
        found = "undecided: the interval of the difference holds 0"
    text = table(("in percent", "A", "B", "A − B", "from", "to", "A better in"), lines)
    return f"{text}\n\n{title}: {found}"
