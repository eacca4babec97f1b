"""Pixel counts per image of what the cells predicted, in a file per cell, and scores of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.classes import ClassList
from datasets.pairs import test_split
from datasets.splits import SPLIT_SEED, random_fraction
from engine.metrics import ChangeMetrics, Metrics, metrics_from_dict, titles
from tools.scoring.folders import MaskCounter, count_all, find_classes, find_jobs, find_masks
from tools.scoring.statistics import pooled_scores, tally
from tools.studying.stages import EPOCHS, Cell
from utils.errors import UserError
from utils.files import atomic_path

ALL, SCREEN, CONFIRM = "all", "screen", "confirm"  # the pairs that a figure is of

Tallies = dict[str, np.ndarray]  # of the best and of the last epoch, (3, n, K) each


@dataclass(frozen=True)
class ScoredSet:
    """The labelled pairs of a data set that cells are scored on, and their halves."""

    label: Path  # their folder
    classes: ClassList
    subsets: Mapping[str, Sequence[str]]  # names of pairs

    @classmethod
    def open(cls, root: Path, divide: bool) -> "ScoredSet":
        """List the pairs of ROOT/test, or without one of ROOT/val; a `DataError` without labels.

        A hash of the names decides into which half a pair goes.
        """
        label = root / test_split(root)
        classes, _ = find_classes(None, label)
        names = sorted(find_masks(label, classes.is_binary))
        if not divide:
            return cls(label, classes, {ALL: names})
        halves = random_fraction(names, 0.5, SPLIT_SEED)
        return cls(label, classes, {SCREEN: halves.val, CONFIRM: halves.train})

    def kept(self, cell: Cell, subset: str, folder: Path) -> Tallies | None:
        """Return what `count` has left of this very cell, if anything.

        A `UserError` where another version of the arm was confirmed before.
        """
        path = _counts_file(cell, subset, folder)
        if not path.exists():
            return None
        with np.load(path) as file:
            if file["made_by"].tolist() == _made_by(cell):
                return {epoch: file[epoch] for epoch in EPOCHS}
        if subset == CONFIRM:
            raise UserError(
                f"{path}: arm {cell.arm} was confirmed with other options or data, and pairs that "
                "were looked at confirm nothing more; give the changed arm another name"
            )
        return None

    def count(self, cell: Cell, subset: str, folder: Path) -> Tallies:
        """Return the tallies of a cell's masks, counted once; errors as `kept`."""
        kept = self.kept(cell, subset, folder)
        if kept:
            return kept
        predictions = [cell.tests[epoch].folder / "masks" / "test" for epoch in EPOCHS]
        chosen = set(self.subsets[subset])
        jobs = find_jobs(self.label, predictions, None, self.classes)
        jobs = [job for job in jobs if job.name in chosen]
        counts = count_all(jobs, MaskCounter(self.classes, "keep"), workers=1)
        tallies = {e: tally(pairs, "dates") for e, pairs in zip(EPOCHS, counts, strict=True)}
        values = {"made_by": _made_by(cell), "names": [job.name for job in jobs], **tallies}
        path = _counts_file(cell, subset, folder)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **values)
        return tallies

    @property
    def titles(self) -> dict[str, str]:
        """Titles of the scores of such labels, by their names in metrics.csv."""
        return titles(ChangeMetrics if self.classes.is_binary else Metrics)

    def scores(self, tallies: np.ndarray) -> dict[str, float]:
        """Return all scores of (3, n, K) tallies, as fractions by their names in metrics.csv."""
        pooled = {name: value.tolist() for name, value in pooled_scores(tallies).items()}
        del pooled["oa_image_mean"]
        return metrics_from_dict(pooled).to_row(self.classes.names)


def _counts_file(cell: Cell, subset: str, folder: Path) -> Path:
    return folder / subset / f"{cell.data}.{cell.arm}.{cell.seed}.npz"


def _made_by(cell: Cell) -> list[str]:
    return [cell.tests[epoch].digest for epoch in EPOCHS]
