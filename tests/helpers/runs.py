"""Small runs of the scripts in this process, what they leave, and whether two of them agree."""

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from datasets.classes import SECOND_CLASSES, ClassList
from datasets.labels import read_label
from engine.metrics import ConfusionMatrix, Metrics, compute_metrics
from utils.tensor_files import read_checkpoint

BACKBONE = "test_convnext"  # 0.3 s an epoch, and it soon tells classes apart
PREFIX = f"fcn_{BACKBONE}"
EPOCHS, STEPS = 2, 3  # 12 pairs in batches of 4
TRAIN_NAMES = [f"{i:05d}" for i in range(12)]
VAL_NAMES = TRAIN_NAMES[:4]
SECONDS = ("train_s", "val_s")
VARIANTS = {
    "plain": (),
    "worker": ("--workers", 1),
    "accumulate": ("--accumulate", 2),
    "leftovers": ("--batch-size", 8, "--accumulate", 2),  # of three passes two make a step
    "cache": ("--cache", "disk"),
}


def options(data: Path, outdir: Path, *more: object) -> list[str]:
    """Options of all scripts; those in ``more`` count where both name one."""
    base = ("--data-root", data, "--outdir", outdir, "--amp", "off", "--device", "cpu")
    return [str(part) for part in (*base, "--workers", 0, *more)]


def train_options(data: Path, outdir: Path, *more: object) -> list[str]:
    """Options of train.py."""
    model = ("--model", "fcn", "--backbone", BACKBONE, "--no-tensorboard")
    return options(data, outdir, *model, "--batch-size", 4, "--epochs", 1, *more)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run; ``argv(outdir, *more)`` are the options that make it elsewhere."""

    outdir: Path
    argv: Callable[..., list[str]]
    metrics: Any = None

    @property
    def best(self) -> Path:
        (path,) = best_files(self.outdir)
        return path


def resume(run: Run, outdir: Path, *more: object) -> None:
    torch.manual_seed(4321)  # what a fresh process draws must not matter
    train.main(run.argv(outdir, "--resume", *more))


# --- what a run leaves ----------------------------------------------------------------------


def latest_file(outdir: Path) -> Path:
    return outdir / "models" / f"{PREFIX}_latest.pth"


def best_files(outdir: Path) -> list[Path]:
    files = sorted((outdir / "models").glob("*.pth"))
    return [path for path in files if not path.stem.endswith("_latest")]


def csv_rows(outdir: Path) -> list[dict[str, str]]:
    """The rows of the only run of an outdir, without what depends on the clock."""
    (path,) = (outdir / "logs").glob("*/metrics.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in SECONDS} for row in csv.DictReader(file)]


def read_masks(folder: Path, classes: ClassList = SECOND_CLASSES) -> dict[str, np.ndarray]:
    """Masks by ``im1/00000``."""
    return {
        f"{path.parent.name}/{path.stem}": read_label(path, classes)
        for path in sorted(folder.glob("im[12]/*.png"))
    }


def keys(names: list[str]) -> set[str]:
    return {f"{date}/{name}" for date in ("im1", "im2") for name in names}


def score_of(folder: Path, truth: Path) -> Metrics:
    """Score masks on disk against labels on disk."""
    confusion = ConfusionMatrix(7)
    masks = read_masks(folder)
    assert masks
    for key, mask in masks.items():
        expected = read_label(truth / f"{key.replace('im', 'label')}.png", SECOND_CLASSES)
        confusion.update(torch.from_numpy(mask), torch.from_numpy(expected))
    return compute_metrics(confusion.counts)


def assert_metrics(metrics: Metrics, expected: Metrics, tolerance: float = 1e-12) -> None:
    found, wanted = metrics.to_dict(), expected.to_dict()
    assert found.pop("class_iou") == pytest.approx(wanted.pop("class_iou"), abs=tolerance)
    assert found == pytest.approx(wanted, abs=tolerance)


# --- whether two runs agree -----------------------------------------------------------------


def assert_same_values(found: object, expected: object, where: str = "") -> None:
    """Two trees of tensors and plain values agree in every bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            if key not in SECONDS:
                assert_same_values(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same_values(a, b, f"{where}/{i}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def assert_same_run(outdir: Path, expected: Path) -> None:
    """Two runs left the same weights, optimiser, random state, scores, log and best file."""
    states = [read_checkpoint(latest_file(d)) for d in (outdir, expected)]
    for state in states:
        assert state.pop("run").startswith(PREFIX)
    assert_same_values(*states)
    assert csv_rows(outdir) == csv_rows(expected)
    bests = [best_files(d) for d in (outdir, expected)]
    assert [p.name for p in bests[0]] == [p.name for p in bests[1]]
    assert len(bests[0]) == 1
    assert_same_values(*(read_checkpoint(best)["model"] for best, *_ in bests))
