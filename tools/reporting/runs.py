"""Training runs as a report shows them: rows of ``metrics.csv``, options, split, best epoch."""

import contextlib
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.classes import find_preset
from datasets.pairs import split_pairs
from datasets.splits import SplitOptions, parse_k_fold
from engine.metrics import RANKS, Metrics, titles
from utils.errors import CheckpointError, DataError, OptionError, UserError
from utils.files import read_json, read_text
from utils.tensor_files import read_checkpoint

METRICS_FILE, OPTIONS_FILE = "metrics.csv", "options.json"
UNKNOWN = "unknown"
# What decides on which pairs a run is validated.
DATA_OPTIONS = ("data_root", "val_list", "val_fraction", "folds", "fold", "split_seed")
# By which score the best epoch is chosen: the first of these that the run has.
RANKING = (*RANKS, *titles(Metrics))

Row = dict[str, float | None]


@dataclass(frozen=True)
class RunSplit:
    """What a run was validated on."""

    protocol: str  # its name, or `UNKNOWN`
    val: tuple[str, ...] | None  # ids of the validation pairs; None where nothing tells them
    source: str  # where this is known from
    train: tuple[str, ...] = ()  # ids of the training pairs

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
    """One training run."""

    folder: Path  # its log folder, ``outdir/logs/<run>``
    rows: list[Row]  # one per epoch; None for a value that is absent or no finite number
    options: dict[str, Any]  # those of ``options.json``; empty without the file
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
            scored = [row for row in self.rows if row.get(name) is not None]
            if scored:
                return max(scored, key=lambda row: row[name])
        return self.rows[-1]

    @property
    def training(self) -> str:
        """What was trained, in a few words."""
        words = [self.options.get("model"), self.options.get("backbone")]
        words.append("lightweight" if self.options.get("lightweight") else None)
        words.append("pseudo labels" if self.options.get("use_pseudo_label") else None)
        words.append("decoded jointly" if self.options.get("decode") == "joint" else None)
        return ", ".join(str(word) for word in words if word) or "–"


def find_run_folders(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the log folders that the paths name, and those that hold no finished epoch yet.

    A path is a log folder ``outdir/logs/<run>``, or an outdir, which stands for all its runs.
    """
    found: list[Path] = []
    empty: list[Path] = []
    for given in paths:
        if not given.is_dir():
            raise OptionError(f"{given}: no such folder; name outdir or outdir/logs/<run>")
        path = given.resolve()
        logs = path / "logs" if (path / "logs").is_dir() else path
        folders = sorted(child for child in logs.iterdir() if child.is_dir())
        if (path / METRICS_FILE).is_file():
            folders = [path]
        runs = [folder for folder in folders if (folder / METRICS_FILE).is_file()]
        found += sorted(runs, key=lambda run: run.name[-20:])  # by the time that ends the name
        empty += [folder for folder in folders if (folder / OPTIONS_FILE).is_file()]
        empty += [] if runs else [path]
    found = list(dict.fromkeys(found))
    return found, [child for child in empty if child not in found]


def read_run(folder: Path) -> Run:
    """Read the log of one run; what training does not write is a DataError."""
    return Run(folder, _read_rows(folder / METRICS_FILE), _read_options(folder / OPTIONS_FILE))


def _read_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        for line in csv.DictReader(io.StringIO(read_text(path))):
            rows.append({name: _number(text) for name, text in line.items()})
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}, line {len(rows) + 2}: {error}; every value must be a number, correct the "
            "line or leave the run out"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the run's log again") from error
    if not rows or any(row.get("epoch") is None for row in rows):
        raise DataError(
            f"{path}: no epochs in it, or a row without; expected a header with 'epoch' and a row "
            "per epoch, as train.py writes them"
        )
    return rows


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _read_options(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}; copy the file again or remove it") from error


def find_splits(runs: Sequence[Run]) -> None:
    """Set each run's split: from its checkpoint in ``outdir/models``, else from its options."""
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
            key, split = (outdir, saved.get("run")), saved.get("split")
            if key in waiting and isinstance(split, dict):
                val, train = (tuple(split.get(side, ())) for side in ("val", "train"))
                found = RunSplit(split.get("protocol", UNKNOWN), val, "checkpoint", train)
                waiting.pop(key).split = found
    for run in waiting.values():
        if run.options:
            run.split = _split_of_options(run.options)


def _split_of_options(options: dict[str, Any]) -> RunSplit:
    """Divide the data set as the options say; where it is gone, only lists are certain."""
    with contextlib.suppress(UserError):
        if options.get("data_root"):
            root = Path(options["data_root"])
            preset = find_preset(options.get("preset"), root)
            split = split_pairs(root, SplitOptions.from_options(options), preset)[0]
            known_from = "options and the data as they are now"
            return RunSplit(split.protocol, split.val, known_from, split.train)
    protocol = options.get("split") or ("lists" if options.get("val_list") else UNKNOWN)
    return RunSplit(protocol, None, "options alone")


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
