"""Runs of the scripts in this process, and the masks and scores that they leave."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.classes import SECOND_CLASSES, ClassList
from datasets.labels import read_label
from engine.metrics import ConfusionMatrix, Metrics, compute_metrics
from utils.tensor_files import read_checkpoint

SMALL = "mobilenetv2_050"
FCN = ("--model", "fcn", "--backbone", SMALL)
FAST = ("--amp", "off", "--device", "cpu", "--workers", "0")
TRAIN_NAMES = [f"{i:05d}" for i in range(12)]
VAL_NAMES = TRAIN_NAMES[:4]


def train_argv(data: Path, outdir: Path, *options: object, model: tuple = FCN) -> list[str]:
    base = ("--data-root", data, "--outdir", outdir, *FAST, "--batch-size", 4, "--no-tensorboard")
    epochs = () if "--epochs" in options else ("--epochs", 1)
    return [str(part) for part in (*model, *base, *epochs, *options)]


def argv(data: Path, outdir: Path, *options: object) -> list[str]:
    return [str(part) for part in ("--data-root", data, "--outdir", outdir, *FAST, *options)]


def read_masks(folder: Path, classes: ClassList = SECOND_CLASSES) -> dict[str, np.ndarray]:
    return {
        f"{date}/{path.stem}": read_label(path, classes)
        for date in ("im1", "im2")
        for path in sorted((folder / date).glob("*.png"))
    }


def keys(names: list[str]) -> set[str]:
    return {f"{date}/{name}" for date in ("im1", "im2") for name in names}


def score_of(folder: Path, truth: Path) -> Metrics:
    """Score masks on disk against labels on disk."""
    confusion = ConfusionMatrix(7)
    masks = read_masks(folder)
    assert masks
    for key, mask in masks.items():
        date, name = key.split("/")
        expected = read_label(truth / f"label{date[-1]}" / f"{name}.png", SECOND_CLASSES)
        confusion.update(torch.from_numpy(mask), torch.from_numpy(expected))
    return compute_metrics(confusion.counts)


def assert_metrics(metrics: Metrics, expected: Metrics, tolerance: float = 1e-12) -> None:
    found, wanted = metrics.to_dict(), expected.to_dict()
    assert found.pop("class_iou") == pytest.approx(wanted.pop("class_iou"), abs=tolerance)
    assert found == pytest.approx(wanted, abs=tolerance)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run."""

    outdir: Path
    best: Path
    metrics: Metrics


def assert_same_state(outdir: Path, other: Path) -> None:
    """The latest checkpoints of two runs agree in every bit that matters."""
    states = [read_checkpoint(d / "models" / f"fcn_{SMALL}_latest.pth") for d in (outdir, other)]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    optimizers = [state["training"]["optimizer"]["state"] for state in states]
    assert optimizers[0].keys() == optimizers[1].keys()
    for index, moments in optimizers[0].items():
        for name, value in moments.items():
            assert torch.equal(value, optimizers[1][index][name])
    assert states[0]["metrics"] == states[1]["metrics"]
    assert states[0]["best_file"] == states[1]["best_file"]
    (rng,), (other_rng,) = (state["training"]["rng"] for state in states)
    assert torch.equal(rng["cpu"], other_rng["cpu"])
