"""Runs that are folds of one k-fold: mean and standard deviation of their best scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from engine.config import FIXED_OPTIONS
from tools.reporting.runs import Run

# Runs that differ in one of these are of different models, not folds of one. Each fold may have
# pseudo masks of its own.
CONFIGURATION = (*(name for name in FIXED_OPTIONS if name != "pseudo_label_root"), "pretrained")


@dataclass(frozen=True)
class FoldSummary:
    """Two or more runs of one configuration, each validated on another fold."""

    runs: Sequence[Run]

    @property
    def folds(self) -> int:
        """Into how many parts the pairs are divided."""
        return self.runs[0].split.k_fold[1]

    @property
    def repeated(self) -> list[int]:
        """Folds that several of the runs share; with any, there is nothing to average."""
        counts = Counter(run.split.k_fold[2] for run in self.runs)
        return sorted(fold for fold, count in counts.items() if count > 1)

    def spread(self, name: str) -> tuple[float, ...]:
        """Return mean and standard deviation (n − 1) of a score; nothing where a run has none."""
        values = [run.best.get(name) for run in self.runs]
        return () if self.repeated or None in values else (mean(values), stdev(values))


def summarise_folds(runs: Sequence[Run]) -> list[FoldSummary]:
    """Return a summary of every configuration with several folds among the runs of one split."""
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.split.k_fold:
            key = tuple(str(run.options.get(name)) for name in CONFIGURATION)
            key += (bool(run.options.get("pretrain_from")),)  # each fold from a file of its own
            alike.setdefault(key, []).append(run)
    return [FoldSummary(members) for members in alike.values() if len(members) > 1]
