"""What a study has shown: results.csv, summary.json, and its tables as Markdown and LaTeX."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from utils.files import write_csv, write_json, write_text

SUMMARY = "summary.json"
SUBSETS = {ALL: "all pairs", SCREEN: "screening half", CONFIRM: "confirming half"}


@dataclass(frozen=True)
class Result:
    """A finished cell on some of the pairs."""

    cell: Cell
    subset: str
    tallies: Tallies
    scores: Mapping[str, Mapping[str, float]]  # by epoch and name, as fractions

    @property
    def made_by(self) -> set[tuple[str, str]]:
        """Commit and code of each of its stages."""
        return {(s.record["commit"], s.record["code"]) for s in self.cell.needs}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield what results.csv holds of the best and of the last epoch."""
        cell = self.cell
        for epoch in EPOCHS:
            seconds = dict.fromkeys(("train_s", "val_s", "label_s", "test_s"), 0.0)
            for stage in (*cell.stages, cell.tests[epoch]):
                for name, value in stage.record["seconds"].items():
                    seconds[name] = round(seconds[name] + value, 1)
            commits, codes = (" ".join(sorted(each)) for each in zip(*self.made_by, strict=True))
            yield {
                "data": cell.data,
                "arm": cell.arm,
                "seed": cell.seed,
                "epoch": epoch,
                "pairs": self.tallies[epoch].shape[1],
                "subset": self.subset,
                **self.scores[epoch],
                **seconds,
                "commit": commits,
                "code": codes,
                "stage": cell.tests[epoch].folder.name,
            }


def summarise(plan: Plan, results: Sequence[Result], notes: Sequence[str]) -> dict[str, Any]:
    """Return plain values of a study: scores in percent, differences in points of percent."""
    by_arm: dict[tuple[str, str, str], dict[int, Result]] = {}
    for result in results:
        key = (result.cell.data, result.subset, result.cell.arm)
        by_arm.setdefault(key, {})[result.cell.seed] = result
    comparisons = []
    for data in plan.data:
        for arm, baseline in plan.compare:
            subset = ALL if not plan.divide else CONFIRM if arm in plan.confirm else SCREEN
            sides = [by_arm.get((data, subset, name), {}) for name in (arm, baseline)]
            seeds = sorted(sides[0].keys() & sides[1].keys())
            if seeds:
                place = {"data": data, "arm": arm, "baseline": baseline, "subset": subset}
                comparisons.append(place | _compare(sides, seeds, plan.score))
    return {
        "study": plan.name,
        "question": plan.question,
        "score": plan.score,
        "notes": [*notes, *_code_notes(results)],
        "arms": [
            {"data": data, "arm": arm, "subset": subset, **_arm(list(found.values()))}
            for (data, subset, arm), found in by_arm.items()
        ],
        "comparisons": comparisons,
    }


def _compare(
    sides: Sequence[Mapping[int, Result]], seeds: Sequence[int], score: str
) -> dict[str, Any]:
    found = {}
    for epoch in EPOCHS:
        stacks = [np.stack([side[seed].tallies[epoch] for seed in seeds]) for side in sides]
        found[epoch] = evidence.compare(*stacks, score)
    said = evidence.verdict(found, len(seeds))
    return {"seeds": list(seeds), **{e: asdict(d) for e, d in found.items()}, "verdict": said}


def _arm(found: Sequence[Result]) -> dict[str, Any]:
    """Return mean and standard deviation (n − 1) of each score over the seeds of an arm."""
    values: dict[str, Any] = {"seeds": [result.cell.seed for result in found]}
    for epoch in EPOCHS:
        each = [result.scores[epoch] for result in found]
        values[epoch] = {name: _spread([100 * scores[name] for scores in each]) for name in each[0]}
    rows = [next(result.rows()) for result in found]
    return values | {"train_s": mean(row["train_s"] for row in rows)}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else None}


def _code_notes(results: Sequence[Result]) -> list[str]:
    found = sorted({version for result in results for version in result.made_by})
    commits = ", ".join(dict.fromkeys(commit or "unknown" for commit, _ in found))
    if len({code for _, code in found}) > 1:
        return [f"MIXED CODE: stages are of several states of it, commits {commits}"]
    return [f"commit {commits}"] if found else []


def study_tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of a summary, in the form of `tools.reporting.tables.stage_table`."""
    kind = ChangeMetrics if any("f1" in arm["last"] for arm in summary["arms"]) else Metrics
    score, shown = summary["score"], titles(kind, "runs")
    title = titles(kind).get(score, score)
    rows = []
    for arm in summary["arms"]:
        last = {name: _plus_minus(arm["last"][name]) for name in (score, *shown)}
        cells = {"seeds": str(len(arm["seeds"])), "best": _plus_minus(arm["best"][score]), **last}
        cells["train_s"] = f"{arm['train_s']:,.0f}"
        rows.append(_row(arm["arm"], arm, cells))
    names = {score: title} | shown
    heads = ["Arm", "Seeds", f"{title}, best epoch", *(names[n] for n in names), "Training, s"]
    heads[3] = f"{title}, last epoch"
    tables = [_table("Mean ± deviation over seeds, in percent", heads, rows)]
    rows = []
    for pair in summary["comparisons"]:
        for epoch in EPOCHS:
            found = evidence.Difference(**pair[epoch])
            cells = {
                "epoch": epoch,
                "seeds": str(len(pair["seeds"])),
                "value": f"{found.value:+.2f}",
                "interval": f"{found.low:+.2f} to {found.high:+.2f}",
                "welch_p": f"{found.welch_p:.3f}",
                "paired_p": f"{found.paired_p:.3f}",
                "verdict": pair["verdict"],
            }
            cells = {name: "–" if "nan" in text else text for name, text in cells.items()}
            rows.append(_row(f"{pair['arm']} − {pair['baseline']}", pair, cells))
    heads = [
        "Comparison",
        "Epoch",
        "Seeds",
        title,
        "95 % interval",
        "Welch p",
        "paired p",
        "Verdict",
    ]
    return [*tables, _table("Differences in points of percent", heads, rows)]


def _row(name: str, of: Mapping[str, Any], cells: Mapping[str, str]) -> dict[str, Any]:
    note = f"{of['data']}, {SUBSETS[of['subset']]}"
    return {"name": name, "note": note, "is_run": False, "top": [], "cells": cells}


def _table(caption: str, heads: Sequence[str], rows: Sequence[Mapping]) -> dict[str, Any]:
    return {"letter": "", "split": caption, "unknown": False, "titles": heads, "rows": rows}


def _plus_minus(value: Mapping[str, float | None]) -> str:
    spread = "" if value["deviation"] is None else f" ± {value['deviation']:.2f}"
    return f"{value['mean']:.2f}{spread}"


def write_summary(folder: Path, summary: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Write results.csv and the summary in three forms; return it as Markdown."""
    write_csv(folder / "results.csv", [row for result in results for row in result.rows()])
    write_json(folder / SUMMARY, summary)
    tables, notes = study_tables(summary), summary["notes"]
    head = [f"# {summary['study']}", summary["question"], *(f"- {note}" for note in notes)]
    page = "\n\n".join([*head, *(export_table(table, markdown=True) for table in tables)])
    write_text(folder / "summary.md", page)
    head = [f"% {line}" for text in (summary["question"], *notes) for line in text.split("\n")]
    tex = [export_table(table, markdown=False) for table in tables]
    write_text(folder / "summary.tex", "\n".join([*head, *tex]))
    return page
