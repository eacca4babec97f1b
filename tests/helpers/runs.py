"""Small training runs for the tests, and whether two of them ended alike."""

import csv
from pathlib import Path

import torch

from utils.tensor_files import read_checkpoint

BACKBONE = "mobilenetv3_small_050"
PREFIX = f"fcn_{BACKBONE}"
FAST = ("--amp", "off", "--device", "cpu")
SECONDS = ("train_s", "val_s")


def options(data: Path, outdir: Path, *more: object) -> list[str]:
    """Options of label.py and test.py."""
    workers = () if "--workers" in more else ("--workers", 0)
    return [str(o) for o in ("--data-root", data, "--outdir", outdir, *FAST, *workers, *more)]


def train_options(data: Path, outdir: Path, *more: object) -> list[str]:
    """Options of train.py: 12 pairs and batches of 4 make 3 steps an epoch."""
    model = ("--model", "fcn", "--backbone", BACKBONE, "--no-tensorboard")
    batch = () if "--batch-size" in more else ("--batch-size", 4)
    epochs = () if "--epochs" in more else ("--epochs", 1)
    return options(data, outdir, *map(str, (*model, *batch, *epochs, *more)))


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
    models = [read_checkpoint(best[0])["model"] for best in bests]
    assert_same_values(*models)
