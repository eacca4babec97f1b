"""What a report's tables hold: runs, scores of masks, heat maps; the templates draw them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics import ChangeMetrics, Metrics, column_titles, titles
from tools.reporting.means import mean_rows
from tools.reporting.pairs import Masks
from tools.reporting.runs import UNKNOWN, Run
from tools.scoring.statistics import pooled_scores, tally
from tools.scoring.tables import one_class_shares, percent

SHOWN_CLASSES = 24  # rows of a heat map

PROTOCOLS = {
    "every-10th": "every 10th training name",
    "folders": "the labelled val folder",
    "lists": "lists of names",
    "random": "a random part of the training pairs",
    "k-fold": "each run on another of k parts of the training pairs; compare means over the same "
    "folds",
}


def stage_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the table of the runs of one split, each at its best epoch, and of their means.

    A row has a ``name``, a ``note``, the text of its ``cells`` by column, and ``top``, columns in
    which no run is better; ``is_run`` tells runs from means.
    """
    shown = column_titles({name for run in runs for name in run.columns}, "runs")
    known = {n: [v for v in (run.best.get(n) for run in runs) if v is not None] for n in shown}
    comparable = len(runs) > 1 and not runs[0].split.k_fold  # single folds are not
    highest = {name: max(values) for name, values in known.items() if values and comparable}
    rows = []
    for run in runs:
        fold = f", validated on fold {run.split.k_fold[2]}" if run.split.k_fold else ""
        cells = {name: percent(run.best.get(name)) for name in shown}
        top = [n for n, value in highest.items() if run.best.get(n) == value]
        epochs = f"{run.best['epoch']:g} of {run.rows[-1]['epoch']:g}"
        seconds = "–" if run.seconds is None else f"{run.seconds:,.0f}"
        row = {"name": run.name, "note": run.training + fold, "is_run": True, "top": top}
        rows.append(row | {"cells": {"epoch": epochs, **cells, "seconds": seconds}})
    for name, note, cells in mean_rows(runs, shown):
        row = {"name": name, "note": note, "is_run": False, "top": []}
        rows.append(row | {"cells": {"epoch": "–", **cells, "seconds": "–"}})
    return {
        "split": describe_split(runs[0]),
        "unknown": len(runs) > 1 and runs[0].split.val is None,
        "titles": ["Run", "Best epoch", *shown.values(), "Seconds"],
        "rows": rows,
    }


def describe_split(run: Run) -> str:
    """Say what a run was validated on."""
    split = run.split
    parts = Path(str(run.options.get("data_root", ""))).parts[-2:]
    data = f" of {'/'.join(part.strip('/') for part in parts)}" if parts else ""
    if split.protocol == UNKNOWN:
        return f"Validation split unknown{data} ({split.source})"
    meaning = PROTOCOLS.get(split.protocol.partition("(")[0])
    pairs = "" if split.val is None else f", {len(split.pairs):,} pairs"
    protocol = split.k_fold[0] if split.k_fold else split.protocol
    return (
        f"Validation split {protocol}{f' ({meaning})' if meaning else ''}{pairs}{data}, "
        f"known from the {split.source}"
    )


def mask_scores(masks: Masks) -> dict[str, Any]:
    """Return tiles, figures and heat maps of all masks; without labels the maps of predictions."""
    names, binary, counts = masks.classes.names, masks.classes.is_binary, masks.counts
    scores: dict[str, Any] = {"transitions": [], "one_sided": 0}
    if masks.labelled:
        confusion = sum(pair.confusion for pair in counts)
        per_row = confusion / np.where(confusion.any(1), confusion.sum(1), np.nan)[:, None]
        caption = f"Share of each label's pixels{'' if binary else ', both dates'}, %"
        scores |= {
            "tiles": titles(ChangeMetrics if binary else Metrics, "tiles"),
            "figures": pooled_scores(tally(counts, "dates")),
            "confusion": {"name": "confusion", "caption": caption, "axes": ("label", "prediction")}
            | heat_map(names, per_row, confusion),
        }
    if not binary:
        labelled, predicted, right = sum(pair.transitions for pair in counts)[:, 1:, 1:]
        union = np.where(labelled + predicted, labelled + predicted - right, np.nan)
        share = "share of the changed area, %"
        maps = [
            ("labels", "Labels", share, labelled / max(1, labelled.sum()), labelled),
            ("predictions", "Predictions", share, predicted / max(1, predicted.sum()), predicted),
            ("iou", "IoU", "labels against predictions, %", right / union, labelled),
        ]
        for name, title, unit, shares, pixels in maps if masks.labelled else maps[1:2]:
            told = {"name": name, "title": title, "caption": f"{title}: {unit}"}
            told |= {"axes": ("date 1", "date 2")} | heat_map(names[1:], shares, pixels)
            scores["transitions"].append(told)
        scores["one_sided"] = sum(pair.one_sided[1] for pair in counts)
        scores["one_class"] = one_class_shares(counts)["predicted"]
    return scores


def heat_map(names: Sequence[str], shares: np.ndarray, pixels: np.ndarray) -> dict[str, Any]:
    """Return a matrix's most frequent classes as cells.

    ``shares`` are (n, n) fractions, NaN for a cell without a value; ``pixels`` are (n, n) counts,
    told when the pointer rests on a cell.
    """
    shown = np.sort(np.argsort(-(pixels.sum(0) + pixels.sum(1)), kind="stable")[:SHOWN_CLASSES])
    highest = np.nanmax(shares[np.ix_(shown, shown)], initial=0) or 1

    def cell(i: int, j: int) -> dict[str, Any]:
        value = shares[i, j]
        text = "·" if value == 0 else "<0.1" if value < 0.001 else f"{100 * value:.1f}"
        title = f"{names[i]} → {names[j]}: {int(pixels[i, j]):,} pixels"
        heat = None if np.isnan(value) else value / highest
        return {"title": title, "text": text, "heat": heat}

    return {
        "names": [names[i] for i in shown],
        "left_out": len(names) - len(shown),
        "rows": [[cell(i, j) for j in shown] for i in shown],
    }
