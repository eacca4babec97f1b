"""One HTML page out of runs, counts and pairs: everything inline, no network."""

import re
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.metrics import RANKS, column_titles
from engine.panels import ERROR_KINDS
from tools.reporting.export import export_table
from tools.reporting.gallery import mask_step, safe_colors
from tools.reporting.pairs import Masks, read_masks
from tools.reporting.runs import Run, find_run_folders, find_splits, group_by_split, read_run
from tools.reporting.tables import mask_scores, stage_table
from tools.scoring.tables import percent
from tools.studying.summary import is_study, read_study
from utils.errors import OptionError
from utils.files import write_text

TEMPLATE = Path(__file__).with_name("template")
SCORES = column_titles(RANKS)  # of runs of all kinds
TITLES = SCORES | {"loss_total": "Loss", "lr": "Learning rate"}
TITLES |= {"train_s": "Training, s", "val_s": "Validation, s"}


def write_report(options: Namespace) -> Path:
    """Write the page that the options of ``tools/report.py`` ask for and return its path."""
    studies = [read_study(path) for path in options.runs if is_study(path)]
    folders, unfinished = find_run_folders([path for path in options.runs if not is_study(path)])
    for folder in unfinished if folders else ():
        print(f"left out: {folder}: no finished epoch in it")
    runs = [read_run(folder) for folder in folders]
    find_splits(runs)
    groups = group_by_split(runs)
    first = runs[0] if runs else Run(options.runs[0].resolve() / "logs" / "run", [], {})
    out = options.out or first.outdir / f"report.{options.format}"
    if out.is_dir():
        raise OptionError(f"--out {out}: is a folder; name a file in it")
    letters = map(letter, range(len(groups))) if len(groups) > 1 else [""]
    tables = [stage_table(g) | {"letter": a} for g, a in zip(groups, letters, strict=False)]
    masks = read_masks(options, first) if options.format == "html" else None
    if not runs and not masks and not studies:
        raise OptionError(
            f"{options.runs[0]}: no run with a metrics.csv in it, and no masks to show; name "
            "outdir or outdir/logs/<run>, and let train.py finish an epoch first"
        )
    if options.format == "html":
        page = render_page(groups, tables, masks, studies)
    else:
        tables = [table for study in studies for table in study["tables"]] + tables
        page = "\n".join(export_table(table, options.format == "md") for table in tables)
    write_text(out, page)
    shown = f", study {', '.join(study['name'] for study in studies)}" if studies else ""
    shown += f", {len(masks.pairs)} of {masks.total} pairs" if masks else ", no masks"
    print(f"{len(runs)} run{'s' * (len(runs) != 1)}{shown}: {out}  ({len(page) / 1e6:.1f} MB)")
    if len(groups) > 1:
        print(f"note: {len(groups)} validation splits, in a table each: not to be compared")
    return out


def render_page(
    groups: Sequence[Sequence[Run]],
    tables: Sequence[dict[str, Any]],
    masks: Masks | None,
    studies: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the page of runs, grouped by split as their tables are, of masks, and of studies."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    runs = [(run, t["letter"]) for t, group in zip(tables, groups, strict=True) for run in group]
    return environment.get_template("page.html").render(
        runs=len(runs),
        written=time.strftime("%Y-%m-%d %H:%M"),
        tables=tables,
        masks=masks,
        studies=studies,
        scores=mask_scores(masks) if masks else {},
        data={
            "runs": [_run_data(run, name) for run, name in runs],
            "charts": _charts([run for run, _ in runs]),
            "gallery": _gallery_data(masks) if masks else None,
        },
    )


def letter(index: int) -> str:
    """Return A, B, … Z, A2, … for a split."""
    name = chr(ord("A") + index % 26)
    return name if index < 26 else f"{name}{index // 26 + 1}"


def _run_data(run: Run, group: str) -> dict[str, Any]:
    fold = f"fold {run.split.k_fold[2]}" if run.split.k_fold else ""
    return {
        "name": run.name,
        "group": f"{group} {fold}".strip(),
        "epochs": [row["epoch"] for row in run.rows],
        "best": run.best["epoch"],
        "values": {name: [row.get(name) for row in run.rows] for name in run.columns},
    }


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for run in runs for name in run.columns))
    main = [n for n in ("loss_total", *column_titles(columns, "charts")) if n in columns]
    return [
        {
            "column": name,
            "title": _title(name),
            "percent": name in SCORES or name.startswith(("iou_", "class_iou_")),
            "main": name in main,
        }
        for name in dict.fromkeys((*main, *columns))
    ]


def _title(column: str) -> str:
    if column in TITLES:
        return TITLES[column]
    of_date = re.fullmatch(r"(.*)_date([12])", column)
    if of_date:
        return f"{_title(of_date[1])}, date {of_date[2]} only"
    if column.startswith("class_iou_"):
        return f"IoU class {column.removeprefix('class_iou_')}"
    kind, _, rest = column.partition("_")
    return f"{'IoU' if kind == 'iou' else kind.capitalize()} {rest}".strip()


def _gallery_data(masks: Masks) -> dict[str, Any]:
    classes = masks.classes
    return {
        "classes": classes.names,
        "binary": classes.is_binary,
        "palettes": {"data": classes.colors, "safe": safe_colors(classes.colors)},
        "errors": [{"name": name, "color": color} for name, color in ERROR_KINDS],
        "step": mask_step(len(classes.names)),
        "total": masks.total,
        "pairs": masks.pairs,
    }
