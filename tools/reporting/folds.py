"""Runs that are folds of one k-fold: mean and standard deviation of their best scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from engine.run import FIXED_OPTIONS
from tools.reporting.runs import Run

# Runs that differ in one of these are of different models, not folds of one. Each fold may have
# pseudo masks of its own.
CONFIGURATION = (*(name for name in FIXED_OPTIONS if name != "pseudo_label_root"), "pretrained")


@dataclass(frozen=True)
class FoldSummary:
    """Runs of one configuration, each validated on another fold.

    Attributes:
        runs: two or more.
        folds: into how many parts the pairs are divided.
        repeated: folds that several of the runs share; with any, there is nothing to average.
    """

    runs: tuple[Run, ...]
    folds: int
    repeated: tuple[int, ...]

    def spread(self, name: str) -> tuple[float, float] | None:
        """Return mean and standard deviation (n − 1) of a score; None where a run has none."""
        values = [run.best.get(name) for run in self.runs]
        if self.repeated or None in values:
            return None
        return mean(values), stdev(values)


def summarise_folds(runs: Sequence[Run]) -> list[FoldSummary]:
    """Return a summary of every configuration with several runs.

    Args:
        runs: a group of `group_by_split`; other than of a k-fold, there are none.
    """
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.split.k_fold:
            key = tuple(str(run.options.get(name)) for name in CONFIGURATION)
            key += (bool(run.options.get("pretrain_from")),)  # each fold from a file of its own
            alike.setdefault(key, []).append(run)
    summaries = []
    for members in alike.values():
        if len(members) > 1:
            _, folds, _ = members[0].split.k_fold
            counts = Counter(run.split.k_fold[2] for run in members)
            repeated = tuple(sorted(fold for fold, count in counts.items() if count > 1))
            summaries.append(FoldSummary(tuple(members), folds, repeated))
    return summaries
