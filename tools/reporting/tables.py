"""Tables of a report as HTML: runs, scores, heat maps. All text that comes from data is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from engine.metrics import date_suffix
from tools.reporting.folds import FoldSummary, summarise_folds
from tools.reporting.runs import UNKNOWN, Run
from tools.scoring.tables import SCORES, score_titles

STAGE_SCORES = {"score": "Score", "miou": "mIoU", "sek": "SeK", "f_scd": "F_scd", "oa": "OA"}

# Shown where runs have them: change masks without classes, and labels of one date alone.
OTHER_STAGE_SCORES = {"f1": "F1", "precision": "Precision", "recall": "Recall"}

OTHER_STAGE_SCORES |= {
    f"{name}{date_suffix(date)}": f"{title}, date {date} only"
    for date in (1, 2)
    for name, title in STAGE_SCORES.items()
    if name != "miou"
}

TILE_SCORES = ("score", "miou", "sek", "f_scd", "oa", "kappa")

CHANGE_TILE_SCORES = ("f1", "precision", "recall", "miou", "iou_changed", "oa", "kappa")

SHOWN_CLASSES = 24  # rows of a heat map

HOT = (0.7, 0.6)  # share of the highest value where the figures change colour: light, dark

PROTOCOLS = {
    "every-10th": "every 10th training name",
    "folders": "the labelled val folder",
    "lists": "lists of names",
    "random": "a random part of the training pairs",
    "k-fold": "each run on another of k parts of the training pairs; compare means over the same "
    "folds, ± is the standard deviation over folds (n − 1)",
}


def percent(value: float | None) -> str:
    """Return a fraction in percent with two decimals, as all tables of this project do."""
    return "–" if value is None else f"{100 * value:.2f}"


def stage_tables(groups: Sequence[Sequence[Run]]) -> str:
    """Return a table per split, and above them, where there are several, that they differ."""
    notice = ""
    if len(groups) > 1:
        notice = (
            f'<p class="notice" role="note"><strong>{len(groups)} different validation splits.'
            "</strong> Scores of different splits are not comparable: compare runs within one "
            "table only. In the curves, the letter before a run tells its split.</p>"
        )
    elif groups[0][0].split.val is None and len(groups[0]) > 1:
        notice = (
            '<p class="notice" role="note"><strong>Split not recorded.</strong> No checkpoint and '
            "no data tell which pairs these runs were validated on; the options agree.</p>"
        )
    tables = [
        _stage_table(group, letter(i) if len(groups) > 1 else "") for i, group in enumerate(groups)
    ]
    return notice + "\n".join(tables)


def letter(index: int) -> str:
    """Return A, B, … Z, A2, … for a split."""
    name = chr(ord("A") + index % 26)
    return name if index < 26 else f"{name}{index // 26 + 1}"


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


def _stage_table(runs: Sequence[Run], group: str) -> str:
    titles = _stage_titles(runs)
    header = ("Run", "Best epoch", *titles.values(), "Seconds")
    comparable = [run for run in runs if not run.split.k_fold]  # single folds are not
    highest = {
        name: max(
            (run.best[name] for run in comparable if run.best.get(name) is not None), default=None
        )
        for name in titles
    }
    rows = []
    for run in runs:
        best = run.best
        cells = [
            f'<th scope="row"><span class="key"></span>'
            f"{escape(run.name)}<small>{escape(describe_training(run))}</small></th>",
            f"<td>{best['epoch']:g} of {run.rows[-1]['epoch']:g}</td>",
        ]
        for name in titles:
            value = best.get(name)
            top = len(comparable) > 1 and value is not None and value == highest[name]
            cells.append(
                f'<td data-column="{name}"{" class=top" if top else ""}>{percent(value)}</td>'
            )
        seconds = "–" if run.seconds is None else f"{run.seconds:,.0f}"
        cells.append(f'<td data-column="seconds">{seconds}</td>')
        rows.append(f'<tr data-run="{escape(run.name)}">{"".join(cells)}</tr>')
    rows += [_fold_row(summary, titles) for summary in summarise_folds(runs)]
    title = f"<strong>{group}.</strong> " if group else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return (
        f'<div class="scroll"><table class="stages"><caption>{title}'
        f"{escape(describe_split(runs[0]))}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _fold_row(summary: FoldSummary, columns: Iterable[str]) -> str:
    """Return the mean over the folds of one configuration, as a row below the runs."""
    title = f"Mean of {len(summary.runs)} of {summary.folds} folds"
    if summary.repeated:
        numbers = ", ".join(map(str, summary.repeated))
        title = f"No mean: several runs of fold {numbers}"
    cells = []
    for name in columns:
        spread = summary.spread(name)
        text = "–" if spread is None else " ± ".join(map(percent, spread))
        cells.append(f'<td data-column="{name}">{text}</td>')
    training = escape(_describe_options(summary.runs[0]))
    return (
        f'<tr class="folds"><th scope="row">{title}<small>{training}</small></th><td>–</td>'
        f'{"".join(cells)}<td data-column="seconds">–</td></tr>'
    )


def _stage_titles(runs: Sequence[Run]) -> dict[str, str]:
    columns = {name for run in runs for name in run.columns}
    if not columns & OTHER_STAGE_SCORES.keys():
        return STAGE_SCORES
    return {n: title for n, title in (OTHER_STAGE_SCORES | STAGE_SCORES).items() if n in columns}


def describe_training(run: Run) -> str:
    """Say in a few words what was trained, and which fold it was validated on."""
    fold = f", validated on fold {run.split.k_fold[2]}" if run.split.k_fold else ""
    return _describe_options(run) + fold


def _describe_options(run: Run) -> str:
    options = run.options
    words = [str(options[name]) for name in ("model", "backbone") if options.get(name)]
    if options.get("lightweight"):
        words.append("lightweight")
    if options.get("use_pseudo_label"):
        words.append("pseudo labels")
    return ", ".join(words) or "–"


def tiles(values: Mapping[str, np.ndarray]) -> str:
    """Return the main scores as large figures, in percent."""
    titles = score_titles(values)
    cells = [
        f"<div><dt>{escape(titles[name].removesuffix(', all pixels'))}</dt>"
        f'<dd data-score="{name}">{percent(float(values[name]))}</dd></div>'
        for name in (TILE_SCORES if titles is SCORES else CHANGE_TILE_SCORES)
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def heat_map(
    name: str,
    caption: str,
    names: Sequence[str],
    shares: np.ndarray,
    pixels: np.ndarray,
    axes: tuple[str, str],
) -> str:
    """Return a matrix as a table with coloured cells.

    Args:
        name: ``data-map`` of the table.
        caption: what the cells hold.
        names: of rows and columns.
        shares: (n, n) fractions, NaN for a cell without a value.
        pixels: (n, n) counts, told when the pointer rests on a cell.
        axes: what rows and columns are.
    """
    shown = np.sort(np.argsort(-(pixels.sum(0) + pixels.sum(1)), kind="stable")[:SHOWN_CLASSES])
    left_out = len(names) - len(shown)
    names = [names[i] for i in shown]
    shares, pixels = shares[np.ix_(shown, shown)], pixels[np.ix_(shown, shown)]
    highest = np.nanmax(shares, initial=0) or 1
    rows = []
    for row, row_name in enumerate(names):
        cells = []
        for column, column_name in enumerate(names):
            value = shares[row, column]
            title = f"{row_name} → {column_name}: {int(pixels[row, column]):,} pixels"
            if np.isnan(value):
                cells.append(f'<td class="none" title="{escape(title)}">·</td>')
                continue
            heat = value / highest
            ink = "hot" if heat > HOT[0] else "warm" if heat > HOT[1] else ""
            text = "·" if value == 0 else "<0.1" if value < 0.001 else f"{100 * value:.1f}"
            cells.append(
                f'<td style="--share:{100 * heat:.1f}"{f" class={ink}" if ink else ""} '
                f'title="{escape(title)}">{escape(text)}</td>'
            )
        rows.append(f'<tr><th scope="row">{escape(row_name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col"><span>{escape(n)}</span></th>' for n in names)
    more = f" The {len(names)} most frequent classes; {left_out} more." if left_out else ""
    return (
        f'<div class="scroll" data-map="{name}"><table class="heat">'
        f"<caption>{escape(caption + more)}</caption><thead><tr>"
        f'<th class="axes"><span>{escape(axes[1])} →</span><span>{escape(axes[0])} ↓</span></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def class_table(names: Sequence[str], ious: np.ndarray) -> str:
    """Return the IoU of every class as a table with bars, in percent."""
    rows = [
        f'<tr><th scope="row"><span class="swatch" data-class="{i}"></span>{escape(name)}</th>'
        f'<td><span class="bar" style="--share:{iou:.4f}"></span></td><td>{percent(iou)}</td></tr>'
        for i, (name, iou) in enumerate(zip(names, ious.tolist(), strict=True))
    ]
    return (
        '<div class="scroll"><table class="classes"><caption>IoU per class over both dates, %'
        f"</caption><tbody>{''.join(rows)}</tbody></table></div>"
    )
