"""What a study has shown: results.csv, summary.json, and its tables for readers and papers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from engine.metrics import ChangeMetrics, Metrics, titles
from tools.reporting.export import export_table
from tools.studying import evidence
from tools.studying.counts import ALL, CONFIRM, SCREEN, Tallies
from tools.studying.plan import Plan
from tools.studying.stages import EPOCHS, Cell
from utils.errors import DataError
from utils.files import read_json, write_csv, write_json, write_text
from utils.text import table

SUMMARY = "summary.json"
SUBSETS = {ALL: "all pairs", SCREEN: "screening half", CONFIRM: "confirming half"}
TITLES = titles(ChangeMetrics) | titles(Metrics)


@dataclass(frozen=True)
class Result:
    """A finished cell on some of the pairs."""

    cell: Cell
    subset: str
    tallies: Tallies
    scores: Mapping[str, Mapping[str, float]]  # by epoch and name, as fractions

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what results.csv has of the best and of the last epoch."""
        cell = self.cell
        for epoch in EPOCHS:
            seconds = dict.fromkeys(("train_s", "val_s", "label_s", "test_s"), 0.0)
            records = [stage.record for stage in (*cell.stages, cell.tests[epoch])]
            for name, value in (item for r in records for item in r["seconds"].items()):
                seconds[name] = round(seconds[name] + value, 1)
            yield {
                "data": cell.data,
                "arm": cell.arm,
                "seed": cell.seed,
                "epoch": epoch,
                "subset": self.subset,
                "pairs": self.tallies[epoch].shape[1],
                **self.scores[epoch],
                **seconds,
                **{name: _list(record[name] for record in records) for name in ("commit", "code")},
                "stage": cell.tests[epoch].folder.name,
            }


def _list(values: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(value or "unknown" for value in values))


def summarise(plan: Plan, results: Sequence[Result], notes: Sequence[str]) -> dict[str, Any]:
    """Return plain values of a study: scores in percent, differences in points of percent."""
    found: dict[tuple[str, str, str], dict[int, Result]] = {}
    for each in results:
        key = (each.cell.data, each.cell.arm, each.subset)
        found.setdefault(key, {})[each.cell.seed] = each
    comparisons = []
    for data, (arm, baseline) in ((data, pair) for data in plan.data for pair in plan.compare):
        subset = ALL if not plan.divide else CONFIRM if arm in plan.confirm else SCREEN
        sides = [found.get((data, name, subset), {}) for name in (arm, baseline)]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if seeds:
            comparison = {"data": data, "arm": arm, "baseline": baseline, "subset": subset}
            for epoch in EPOCHS:
                stacks = [np.stack([side[s].tallies[epoch] for s in seeds]) for side in sides]
                comparison[epoch] = evidence.compare(*stacks, plan.score)
            said = evidence.verdict([comparison[epoch] for epoch in EPOCHS], len(seeds))
            if set(plan.seeds) - set(seeds):  # no look before the end proves anything
                said = evidence.NOT_SHOWN
            comparisons.append(comparison | {"seeds": seeds, "verdict": said})
    rows = [row for result in results for row in result.rows()]
    commits, codes = (
        _list(sorted(" ".join(r[n] for r in rows).split())) for n in ("commit", "code")
    )
    mixed = "MIXED CODE: not all stages are of one state of it: " if " " in codes else ""
    return {
        "study": plan.name,
        "question": plan.question,
        "score": plan.score,
        "notes": [*notes, f"{mixed}commit {commits}"],
        "arms": [
            {"data": data, "arm": arm, "subset": subset, **_means(list(by_seed.values()))}
            for (data, arm, subset), by_seed in found.items()
        ],
        "comparisons": comparisons,
    }


def _means(found: Sequence[Result]) -> dict[str, Any]:
    """Return mean and standard deviation (n − 1) of each score over the seeds of an arm."""
    values: dict[str, Any] = {"seeds": [result.cell.seed for result in found]}
    for epoch in EPOCHS:
        values[epoch] = {}
        for name in found[0].scores[epoch]:
            each = [100 * result.scores[epoch][name] for result in found]
            deviation = stdev(each) if len(each) > 1 else None
            values[epoch][name] = {"mean": mean(each), "deviation": deviation}
    return values | {"train_s": mean(next(result.rows())["train_s"] for result in found)}


def study_tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of a summary, in the form of `tools.reporting.tables.stage_table`."""
    score, arms, pairs = summary["score"], summary["arms"], summary["comparisons"]
    names = {score: TITLES[score]} | titles(Metrics, "runs") | titles(ChangeMetrics, "runs")
    names = {n: title for n, title in names.items() if all(n in arm["last"] for arm in arms)}
    rows = [
        (
            arm["arm"],
            arm,
            len(arm["seeds"]),
            _plus_minus(arm["best"][score]),
            *(_plus_minus(arm["last"][name]) for name in names),
            f"{arm['train_s']:,.0f}",
        )
        for arm in arms
    ]
    heads = ["Arm", "Seeds", f"{TITLES[score]}, best epoch", *names.values(), "Training, s"]
    tables = [_table("Mean ± deviation over seeds, in percent; last epoch", heads, rows)]
    rows = [
        (
            f"{pair['arm']} − {pair['baseline']}",
            pair,
            epoch,
            len(pair["seeds"]),
            *(_figure(pair[epoch][name], "+.2f") for name in ("value", "low", "high")),
            *(_figure(pair[epoch][name], ".2g") for name in ("welch_p", "paired_p")),
            pair["verdict"],
        )
        for pair in pairs
        for epoch in EPOCHS
    ]
    heads = ["Comparison", "Epoch", "Seeds", TITLES[score], "from", "to", "Welch p", "paired p"]
    caption = "Differences in points of percent, 95 % intervals over seeds and images"
    return [*tables, _table(caption, [*heads, "Verdict"], rows)]


def is_study(folder: Path) -> bool:
    """Tell whether a folder is a study's that has a summary."""
    return (folder / SUMMARY).is_file()


def read_study(folder: Path) -> dict[str, Any]:
    """Return what a report shows of a study; a `DataError` where its summary is none."""
    path = folder / SUMMARY
    try:
        summary = read_json(path)
        shown = {"name": summary["study"], "tables": study_tables(summary)}
        return shown | {name: summary[name] for name in ("question", "notes")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no summary of a study ({error}); run the study again") from error


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _plus_minus(value: Mapping[str, float | None]) -> str:
    spread = "" if value["deviation"] is None else f" ± {value['deviation']:.2f}"
    return f"{value['mean']:.2f}{spread}"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence]) -> dict[str, Any]:
    entries = [
        {
            "name": name,
            "note": f"{of['data']}, {SUBSETS[of['subset']]}",
            "cells": {str(i): str(text) for i, text in enumerate(texts)},
            "is_run": False,
            "top": [],
        }
        for name, of, *texts in rows
    ]
    return {"letter": "", "split": caption, "titles": heads, "rows": entries}


def write_summary(folder: Path, summary: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write results.csv and the summary in three forms, and print its tables."""
    rows = [row for result in results for row in result.rows()]
    columns = dict.fromkeys((name for row in rows for name in row), "")  # data may differ in scores
    write_csv(folder / "results.csv", [columns | row for row in rows])
    write_json(folder / SUMMARY, summary)
    tables, notes = study_tables(summary), "\n".join(f"- {note}" for note in summary["notes"])
    texts = [f"# {summary['study']}", summary["question"], notes]
    texts += [export_table(each, markdown=True) for each in tables]
    write_text(folder / "summary.md", "\n\n".join(texts))
    told = [f"% {line}" for line in f"{summary['question']}\n{notes}".split("\n")]
    tex = [export_table(each, markdown=False) for each in tables]
    write_text(folder / "summary.tex", "\n".join([*told, *tex]))
    for each in tables:
        rows = [(f"{r['name']} ({r['note']})", *r["cells"].values()) for r in each["rows"]]
        print(f"\n{each['split']}\n{table(each['titles'], rows)}")
    print(f"\n{notes}\nsummary.md, .tex and .json, results.csv and counts: {folder}")
