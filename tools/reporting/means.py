"""Runs of one configuration on several folds or seeds: mean and standard deviation of scores."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from engine.config import FIXED_OPTIONS
from tools.reporting.runs import Run
from tools.scoring.tables import percent

# Runs that differ in one of these are of different models; each may have pseudo masks of its own.
CONFIGURATION = {*FIXED_OPTIONS, "pretrained"} - {"pseudo_label_root", "seed"}


def mean_rows(runs: Sequence[Run], columns: Iterable[str]) -> list[tuple[str, str, dict[str, str]]]:
    """Return name, training and cells of each configuration with several folds or seeds.

    The ``runs`` are of one split, the cells mean ± standard deviation (n − 1) in percent: a dash
    where a run lacks the score, or where several are of one fold or seed.
    """
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        key = [run.options.get(name, FIXED_OPTIONS.get(name)) for name in sorted(CONFIGURATION)]
        key.append(bool(run.options.get("pretrain_from")))  # each may have a file of its own
        key.append(run.options.get("decode") or "independent")  # before there was a choice
        key.append(run.split.k_fold and run.options.get("seed"))
        alike.setdefault(tuple(map(str, key)), []).append(run)
    rows = []
    for members in alike.values():
        split = members[0].split.k_fold
        kind, folds = ("fold", f" of {split[1]}") if split else ("seed", "")
        numbers = [run.split.k_fold[2] if split else run.options.get("seed") for run in members]
        if len(members) == 1 or (not split and len(set(numbers)) == 1):
            continue
        repeated = sorted({str(number) for number in numbers if numbers.count(number) > 1})
        name = f"Mean ± deviation of {len(members)}{folds} {kind}s"
        if repeated:
            name = f"No mean: several runs of {kind} {', '.join(repeated)}"
        cells = dict.fromkeys(columns, "–")
        for column in columns:
            values = [run.best.get(column) for run in members]
            if None not in values and not repeated:
                cells[column] = f"{percent(mean(values))} ± {percent(stdev(values))}"
        rows.append((name, members[0].training, cells))
    return rows
