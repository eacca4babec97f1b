"""One HTML page out of runs, counts and pairs: everything inline, no network."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from datasets.classes import is_binary
from engine.metrics import date_suffix
from engine.panels import ERROR_KINDS
from tools.reporting.gallery import mask_step, safe_colors
from tools.reporting.runs import Run
from tools.reporting.tables import class_table, heat_map, letter, stage_tables, tiles
from tools.scoring.statistics import PairCounts, pooled_scores, tally
from tools.scoring.tables import CHANGE_SCORES, SCORES, transitions

TEMPLATE = Path(__file__).with_name("template")

MAIN_CHARTS = ("loss_total", "score", "miou", "sek", "f_scd", "oa")

OTHER_MAIN_CHARTS = ("f1", *(n + date_suffix(d) for d in (1, 2) for n in ("score", "sek", "f_scd")))

OTHER_TITLES = {"loss_total": "Loss", "lr": "Learning rate", "train_s": "Training, s"}

OTHER_TITLES |= {"val_s": "Validation, s", "oa": "OA"}

FRACTIONS = (*SCORES, *CHANGE_SCORES, "iou_")

ONE_DATE = re.compile(r"(.*)_date([12])")


@dataclass(frozen=True)
class Masks:
    """A folder of predicted masks and what is known of it.

    Attributes:
        title: what was predicted, for the headings.
        class_names, class_colors: by index, *unchanged* first.
        total: pairs in the folder.
        counts: of every pair; empty without labels.
        pairs: those to show, in the order to show them, as `encode_pair` returns them.
    """

    title: str
    class_names: Sequence[str]
    class_colors: Sequence[tuple[int, int, int]]
    total: int
    counts: Sequence[PairCounts] = ()
    pairs: Sequence[dict[str, Any]] = field(default_factory=list)

    @property
    def is_binary(self) -> bool:
        """Whether they are change masks without classes."""
        return is_binary(len(self.class_names) - 1)


def render_page(groups: Sequence[Sequence[Run]], masks: Masks | None, written: str) -> str:
    """Return the page.

    Args:
        groups: runs by split, as `tools.reporting.runs.group_by_split` returns them.
        masks: what to score and show, if anything.
        written: date and time, for the heading.
    """
    data = {
        "runs": _run_data(groups),
        "charts": _charts([run for group in groups for run in group]),
        "gallery": _gallery_data(masks) if masks else None,
    }
    runs = sum(map(len, groups))
    parts = {
        "style": _template("style.css"),
        "theme": _template("theme.js"),
        "charts": _template("charts.js"),
        "viewer": _template("viewer.js"),
        "data": script_json(data),
        "summary": f"{runs} {'run' if runs == 1 else 'runs'} · written {escape(written)}",
        "stages": stage_tables(groups),
        "scores": _scores(masks) if masks else "",
        "gallery": _template("viewer.html") if masks else "",
        "links": '<a href="#masks">Masks</a> <a href="#pairs">Pairs</a>' if masks else "",
    }
    page = _template("page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _template(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _run_data(groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    return [
        {
            "name": run.name,
            "group": _split_of_curve(run, letter(i) if len(groups) > 1 else ""),
            "epochs": [row["epoch"] for row in run.rows],
            "best": run.best["epoch"],
            "values": {name: [row.get(name) for row in run.rows] for name in run.columns},
        }
        for i, group in enumerate(groups)
        for run in group
    ]


def _split_of_curve(run: Run, group: str) -> str:
    """Return what stands before a run's name in the curves, where splits differ."""
    fold = f"fold {run.split.k_fold[2]}" if run.split.k_fold else ""
    return " ".join(part for part in (group, fold) if part)


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for run in runs for name in run.columns))
    present = [name for name in (*MAIN_CHARTS, *OTHER_MAIN_CHARTS) if name in columns]
    others = [name for name in columns if name not in present]
    return [
        {
            "column": name,
            "title": _title(name),
            "percent": name.startswith(FRACTIONS),
            "main": name in present,
        }
        for name in (*present, *others)
    ]


def _title(column: str) -> str:
    known = OTHER_TITLES.get(column) or (CHANGE_SCORES | SCORES).get(column)
    if known:
        return known
    of_date = ONE_DATE.fullmatch(column)
    if of_date:
        return f"{_title(of_date[1])}, date {of_date[2]} only"
    kind, _, rest = column.partition("_")
    return f"{'IoU' if kind == 'iou' else kind.capitalize()} {rest}".strip()


def _gallery_data(masks: Masks) -> dict[str, Any]:
    entries = len(masks.class_names)
    return {
        "classes": list(masks.class_names),
        "binary": masks.is_binary,
        "palettes": {
            "data": [list(color) for color in masks.class_colors],
            "safe": [list(color) for color in safe_colors(masks.class_colors)],
        },
        "errors": [{"name": name, "color": list(color)} for name, color in ERROR_KINDS],
        "step": mask_step(entries),
        "total": masks.total,
        "pairs": list(masks.pairs),
    }


def _scores(masks: Masks) -> str:
    head = f'<section id="masks"><h2>Masks: {escape(masks.title)}</h2>'
    if not masks.counts:
        return (
            f"{head}<p>{masks.total:,} pairs without labels of both dates: nothing is scored here. "
            "The gallery shows them by the share that is predicted to change.</p></section>"
        )
    names = masks.class_names
    values = pooled_scores(tally(masks.counts, "dates"))
    confusion = sum(pair.confusion for pair in masks.counts)
    per_row = confusion / np.where(confusion.any(1), confusion.sum(1), np.nan)[:, None]
    confusion_map = heat_map(
        "confusion",
        f"Share of each label's pixels{'' if masks.is_binary else ', both dates'}, %",
        names,
        per_row,
        confusion,
        ("label", "prediction"),
    )
    if masks.is_binary:
        return (
            f"{head}<p>{len(masks.counts):,} pairs of change masks against their labels, every "
            f"pixel once; in percent.</p>{tiles(values)}"
            f'<div class="card"><h3>Confusion</h3>{confusion_map}</div></section>'
        )
    labelled, predicted, _ = sum(pair.transitions for pair in masks.counts)
    one_sided = sum(pair.one_sided_prediction for pair in masks.counts)
    note = (
        f" {one_sided:,} pixels are predicted to change at one date alone and are in no cell of "
        "the from → to maps."
        if one_sided
        else ""
    )
    maps = [
        ("labels", "Labels", "share of the changed area, %", _shares(labelled), labelled),
        ("predictions", "Predictions", "share of the changed area, %", _shares(predicted), None),
        ("iou", "IoU", "labels against predictions, %", _transition_iou(masks), labelled),
    ]
    choices = "".join(
        f'<button type="button" data-show="{key}" aria-pressed="{str(key == "labels").lower()}">'
        f"{title}</button>"
        for key, title, *_ in maps
    )
    tables = "".join(
        heat_map(
            key,
            f"{title}: {unit}",
            names[1:],
            shares,
            (predicted if pixels is None else pixels)[1:, 1:],
            ("date 1", "date 2"),
        )
        for key, title, unit, shares, pixels in maps
    )
    return (
        f"{head}<p>{len(masks.counts):,} pairs against their labels, one confusion matrix over "
        f"both dates; in percent.{note}</p>{tiles(values)}"
        f'<div class="maps"><div class="card"><h3>Confusion</h3>{confusion_map}</div>'
        f'<div class="card" id="transitions"><h3>From → to</h3>'
        f'<div class="choice" role="group" aria-label="From → to map of">{choices}</div>'
        f'{tables}</div></div><div class="card"><h3>Classes</h3>'
        f"{class_table(names, values['class_iou'])}</div></section>"
    )


def _shares(counts: np.ndarray) -> np.ndarray:
    changed = counts[1:, 1:]
    return changed / max(1, changed.sum())


def _transition_iou(masks: Masks) -> np.ndarray:
    index = {name: i for i, name in enumerate(masks.class_names[1:])}
    ious = np.full((len(index), len(index)), np.nan)
    for row in transitions(masks.class_names, masks.counts):
        ious[index[row["from"]], index[row["to"]]] = row["iou"]
    return ious
