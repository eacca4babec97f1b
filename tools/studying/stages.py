"""The stages that a study needs: scripts with options, each once, however many cells share it."""

import csv
import hashlib
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.classes import CLASSES_FILE
from datasets.pairs import UNFINISHED
from engine.config import REPO
from engine.ensemble import LATEST, find_best_checkpoints
from tools import make_sample_data
from tools.studying.plan import USE, Plan, Step, is_generated
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.tensor_files import read_checkpoint, save_checkpoint

EPOCHS = ("best", "last")
TIMES = ("train_s", "val_s")  # of an epoch, in metrics.csv
PRODUCT = ("train.py", "label.py", "test.py", "engine", "models", "datasets", "utils")


@dataclass(frozen=True)
class Stage:
    """One run of a script. Its ``digest`` is of all that decides the outcome, but for the code."""

    script: str
    options: tuple[str, ...]  # what it takes from other stages is in them as {digest.output}
    data: Path
    seed: int | None  # of a training
    inputs: tuple["Stage", ...]
    digest: str
    folder: Path  # its --outdir
    title: str = field(compare=False)  # of the first cell that needs it

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return self.folder / "log.txt"

    @property
    def record(self) -> dict[str, Any] | None:
        """What `finish` wrote: ``seconds``, ``commit`` and ``code``; None until then."""
        path = self.folder / "stage.json"
        return read_json(path) if path.exists() else None

    def command(self, threads: int) -> list[str]:
        """Return the words that run it, or go on with it where a part is done."""
        folders = {stage.digest: stage.folder for stage in self.inputs}
        words = [
            USE.sub(lambda use: str(_output(folders[use[1]], use[2])), w) for w in self.options
        ]
        own = ["--data-root", self.data, "--outdir", self.folder, "--threads", threads]
        own += ["--nproc", 1, *(["--debug"] if "--debug" in sys.argv else [])]
        if self.script == "train":
            own += ["--no-tensorboard", "--seed", self.seed]
            words.append("--resume")
        return [sys.executable, *map(str, (REPO / f"{self.script}.py", *own, *words))]

    def finish(self, command: Sequence[str], seconds: float, code: Mapping[str, str]) -> None:
        """Write down that it ended well; ``seconds`` are those of its last start.

        A training's are those of its epochs, and of its last epoch what a test needs is left.
        """
        taken = {f"{self.script}_s": round(seconds, 1)}
        if self.script == "train":
            logs = (self.folder / "logs").glob("*/metrics.csv")
            log = max(logs, key=lambda path: path.stat().st_mtime)
            with log.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            taken = {name: round(sum(float(row[name]) for row in rows), 1) for name in TIMES}
        record = {"command": shlex.join(command[1:]), "seconds": taken, **code}
        write_json(self.folder / "stage.json", record)
        if self.script == "train":
            last = _output(self.folder, "last")
            saved = read_checkpoint(last)
            saved["training"]["optimizer"]["state"] = {}  # was two thirds of the file
            save_checkpoint(last, saved)


@dataclass(frozen=True)
class Cell:
    """An arm on a data set with a seed."""

    data: str
    arm: str
    seed: int
    stages: tuple[Stage, ...]  # but for the tests
    tests: Mapping[str, Stage]  # of the best and of the last epoch

    def __str__(self) -> str:
        return f"{self.data}, {self.arm}, seed {self.seed}"

    @property
    def needs(self) -> tuple[Stage, ...]:
        """All of its stages, each behind those that it takes from."""
        return (*self.stages, *self.tests.values())


def _output(folder: Path, name: str) -> Path:
    """Return what a finished stage left: its best or last checkpoint, or its pseudo masks."""
    if name == "masks":
        return folder / "masks" / "train"
    if name == "best":
        return find_best_checkpoints(folder / "models")[0].path
    return next((folder / "models").glob(f"*{LATEST}.pth"))


def make_data(plan: Plan, folder: Path) -> dict[str, Path]:
    """Return the data sets by name; those that are to be generated are, once, below ``folder``."""
    roots = {}
    for name, source in plan.data.items():
        roots[name] = Path(source).absolute()
        if is_generated(source):
            roots[name] = folder / f"{name}-{_digest(source)}"
            if not (roots[name] / "train").is_dir() or (roots[name] / UNFINISHED).exists():
                make_sample_data.main(["--out", str(roots[name]), *shlex.split(source)])
        if not (roots[name] / "train").is_dir():
            raise DataError(f"{roots[name]}: no train folder in it; correct data {name}")
    return roots


def find_cells(
    plan: Plan, roots: Mapping[str, Path], seeds: Sequence[int], folder: Path
) -> list[Cell]:
    """Return all cells, seed by seed, with their stages in ``folder``."""
    digests = {name: _digest(sorted(_sizes(root))) for name, root in roots.items()}

    def stage(cell: Cell, step: Step, made: Mapping[str, Stage], epoch: str = "") -> Stage:
        inputs = {name: made[name] for name, _ in step.uses}
        options = tuple(
            USE.sub(lambda use: f"{{{inputs[use[1]].digest}.{use[2] or epoch}}}", word)
            for word in step.options
        )
        seed = cell.seed if step.script == "train" else None
        digest = _digest([step.script, options, digests[cell.data], seed])
        place, title = folder / f"{step.script}-{digest}", f"{cell}: {step.script} {step.name}"
        taken = tuple(inputs.values())
        return Stage(step.script, options, roots[cell.data], seed, taken, digest, place, title)

    cells = []
    for seed, data, arm in itertools.product(seeds, roots, plan.arms):
        cell, made = Cell(data, arm, seed, (), {}), {}
        *steps, test = plan.arms[arm]
        for step in steps:
            made[step.name] = stage(cell, step, made)
        tests = {epoch: stage(cell, test, made, epoch) for epoch in EPOCHS}
        cells.append(replace(cell, stages=tuple(made.values()), tests=tests))
    return cells


def _sizes(root: Path) -> Iterator[tuple[str, int]]:
    for path in (*root.glob(CLASSES_FILE), *root.glob("*/*/*")):
        if path.is_file():
            yield str(path.relative_to(root)), path.stat().st_size


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def code_version() -> dict[str, str]:
    """Return the ``commit``, "" where git tells none, and a digest of the product ``code``."""
    paths = [REPO / name for name in PRODUCT]
    files = [path for place in paths for path in (sorted(place.rglob("*.py")) or [place])]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    argv = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        told = ""
    return {"commit": told, "code": code}
