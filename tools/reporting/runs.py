"""Training runs as a report shows them: rows of ``metrics.csv``, options, split, best epoch."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.splits import parse_k_fold
from engine.metrics import RANKS
from utils.errors import CheckpointError, DataError, OptionError
from utils.tensor_files import read_checkpoint

METRICS_FILE, OPTIONS_FILE = "metrics.csv", "options.json"

UNKNOWN = "unknown"

# What decides on which pairs a run is validated.
DATA_OPTIONS = ("data_root", "val_list", "val_fraction", "folds", "fold", "split_seed")

# By which score the best epoch is chosen: the first of these that the run has.
RANKING = (*RANKS, "miou", "f_scd", "iou_changed", "oa")

Row = dict[str, float | None]


@dataclass(frozen=True)
class RunSplit:
    """What a run was validated on.

    Attributes:
        protocol: its name, or `UNKNOWN`.
        val: ids of the validation pairs; None where nothing tells them.
        source: where this is known from.
        train: ids of the training pairs.
    """

    protocol: str
    val: tuple[str, ...] | None
    source: str
    train: tuple[str, ...] = ()

    @property
    def k_fold(self) -> tuple[str, int, int] | None:
        """Name of the k-fold that this is a fold of, the number of its folds, and which it is."""
        return None if self.val is None else parse_k_fold(self.protocol)

    @property
    def pairs(self) -> tuple[str, ...]:
        """Ids of all pairs that a score of this split is taken on, those of other folds as well."""
        return (*self.train, *self.val) if self.k_fold else self.val or ()


@dataclass
class Run:
    """One training run.

    Attributes:
        folder: its log folder, ``outdir/logs/<run>``.
        rows: one per epoch; None for a value that is absent or no finite number.
        options: those of ``options.json``; empty without the file.
        split: what it was validated on.
    """

    folder: Path
    rows: list[Row]
    options: dict[str, Any]
    split: RunSplit = field(default_factory=lambda: RunSplit(UNKNOWN, None, "no checkpoint"))

    @property
    def name(self) -> str:
        """Name of the log folder."""
        return self.folder.name

    @property
    def outdir(self) -> Path:
        """The folder that holds ``logs``, ``models`` and ``masks``."""
        return self.folder.parent.parent

    @property
    def columns(self) -> list[str]:
        """Names of the values per epoch."""
        return [name for name in self.rows[0] if name != "epoch"]

    @property
    def seconds(self) -> float | None:
        """Training and validation over all epochs; None where no times were logged."""
        times = [row.get(name) for row in self.rows for name in ("train_s", "val_s")]
        known = [value for value in times if value is not None]
        return sum(known) if known else None

    @property
    def best(self) -> Row:
        """The first epoch with the highest score."""
        for name in RANKING:
            if any(row.get(name) is not None for row in self.rows):
                return max(self.rows, key=lambda row: _or_low(row.get(name)))
        return self.rows[-1]


def _or_low(value: float | None) -> float:
    return -math.inf if value is None else value


def find_run_folders(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the log folders that the paths name, and those that hold no finished epoch yet.

    Args:
        paths: log folders ``outdir/logs/<run>``, or outdirs, which stand for all their runs.

    Raises:
        OptionError: a path is no such folder, or holds no run.
    """
    found: list[Path] = []
    empty: list[Path] = []
    for given in paths:
        if not given.is_dir():
            raise OptionError(f"{given}: no such folder; name outdir or outdir/logs/<run>")
        path = given.resolve()
        if (path / METRICS_FILE).is_file():
            found.append(path)
            continue
        logs = path / "logs" if (path / "logs").is_dir() else path
        folders = sorted(child for child in logs.iterdir() if child.is_dir())
        runs = [child for child in folders if (child / METRICS_FILE).is_file()]
        if not runs:
            raise OptionError(
                f"{given}: no run with a {METRICS_FILE} in it; name outdir or outdir/logs/<run>, "
                "and let train.py finish an epoch first"
            )
        found += sorted(runs, key=lambda run: run.name[-20:])  # by the time that ends the name
        empty += [child for child in folders if (child / OPTIONS_FILE).is_file()]
    found = list(dict.fromkeys(found))
    return found, [child for child in empty if child not in found]


def read_run(folder: Path) -> Run:
    """Read the log of one run.

    Raises:
        DataError: a file is missing, empty, or not what training writes.
    """
    return Run(folder, _read_rows(folder / METRICS_FILE), _read_options(folder / OPTIONS_FILE))


def _read_rows(path: Path) -> list[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the run's log again") from error
    if not lines or "epoch" not in lines[0]:
        raise DataError(
            f"{path}: no epochs in it; expected a header with 'epoch' and a row per epoch, as "
            "train.py writes them"
        )
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            values = {name: float(text) if text else None for name, text in line.items()}
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: {error}; every value must be a number, correct the line "
                "or leave the run out"
            ) from error
        rows.append({k: v if v is None or math.isfinite(v) else None for k, v in values.items()})
    if any(row["epoch"] is None for row in rows):
        raise DataError(f"{path}: a row without an epoch; correct it or leave the run out")
    return rows


def _read_options(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; copy the file again or remove it") from error
    if not isinstance(options, dict):
        raise DataError(f"{path}: no JSON object of options; copy the file again or remove it")
    return options


def add_splits_of_checkpoints(runs: Iterable[Run]) -> None:
    """Set the split of every run that has a checkpoint in ``outdir/models``."""
    waiting = {(run.outdir, run.name): run for run in runs}
    for outdir in dict.fromkeys(outdir for outdir, _ in waiting):
        # The best checkpoints first: those to resume from are three times as large.
        paths = sorted((outdir / "models").glob("*.pth"), key=lambda p: "_latest" in p.name)
        for path in paths:
            if not any(folder == outdir for folder, _ in waiting):
                break
            try:
                saved = read_checkpoint(path)
            except CheckpointError:  # a report of the logs can do without
                continue
            run = waiting.get((outdir, saved.get("run")))
            split = saved.get("split")
            if run is not None and isinstance(split, dict):
                val, train = (tuple(split.get(side, ())) for side in ("val", "train"))
                run.split = RunSplit(split.get("protocol", UNKNOWN), val, "checkpoint", train)
                del waiting[outdir, run.name]


def group_by_split(runs: Sequence[Run]) -> list[list[Run]]:
    """Put runs together that were validated on the same pairs of the same data.

    The folds of one k-fold are together, too: all of them as a whole are validated on all pairs.
    A run whose pairs nothing tells shares a group only with runs of the same protocol, data set and
    list of which nothing is known either.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        data = tuple(str(run.options.get(name)) for name in DATA_OPTIONS)
        if run.split.k_fold:
            key = (run.split.k_fold[0], frozenset(run.split.pairs), data[:1])
        else:
            key = (run.split.protocol, run.split.val, data if run.split.val is None else data[:1])
        groups.setdefault(key, []).append(run)
    return list(groups.values())
