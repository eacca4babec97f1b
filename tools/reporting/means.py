"""Runs of one configuration on several folds or seeds: mean and standard deviation of scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from engine.config import FIXED_OPTIONS
from tools.reporting.runs import Run

# Runs that differ in one of these are of different models. Each run may have pseudo masks of its
# own.
CONFIGURATION = {*FIXED_OPTIONS, "pretrained"} - {"pseudo_label_root", "seed"}


@dataclass(frozen=True)
class MeanRun:
    """Two or more runs of one configuration, each of another fold or seed."""

    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """What is averaged; or why nothing is, where several runs share a fold or seed."""
        split = self.runs[0].split.k_fold
        kind = "fold" if split else "seed"
        repeated = sorted(n for n, count in Counter(map(_number, self.runs)).items() if count > 1)
        if repeated:
            return f"No mean: several runs of {kind} {', '.join(map(str, repeated))}"
        return f"Mean of {len(self.runs)}{f' of {split[1]}' if split else ''} {kind}s"

    def spread(self, name: str) -> tuple[float, ...]:
        """Return mean and standard deviation (n − 1) of a score; nothing where a run has none."""
        values = [run.best.get(name) for run in self.runs]
        if None in values or self.name.startswith("No"):
            return ()
        return mean(values), stdev(values)


def _number(run: Run) -> int | None:
    return run.split.k_fold[2] if run.split.k_fold else run.options.get("seed")


def average_runs(runs: Sequence[Run]) -> list[MeanRun]:
    """Return the mean of each configuration with several folds or seeds among runs of one split."""
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        key = [str(run.options.get(name)) for name in sorted(CONFIGURATION)]
        key.append(str(bool(run.options.get("pretrain_from"))))  # each may have a file of its own
        if run.split.k_fold:
            key.append(f"seed {run.options.get('seed')}")
        alike.setdefault(tuple(key), []).append(run)
    return [
        MeanRun(members)
        for members in alike.values()
        if len(set(map(_number, members))) > 1 or (len(members) > 1 and members[0].split.k_fold)
    ]
