"""The demo's stages: the scripts in turn on generated scenes, their scores and pictures."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.classes import SECOND_CLASSES
from datasets.images import read_bands
from datasets.labels import read_label
from datasets.pairs import index_pairs
from engine.config import DECODINGS, REPO
from models.change_detector import ModelConfig, build_model
from tools.scenes.truth import measure_pseudo_labels
from utils.errors import UserError
from utils.pictures import contact_sheet, save_image
from utils.tensor_files import read_checkpoint, save_checkpoint
from utils.text import table

BACKBONE = "hrnet_w18_small"
# Random initialisation and eight epochs instead of ImageNet weights and thirty want a higher rate.
TRAINING = ("--backbone", BACKBONE, "--lr", "1e-3", "--batch-size", "8")
STUDENT = ("pspnet", "--lightweight")  # also one of the teachers: what pseudo labels bring
SHOWN_PAIRS = 5

Row = dict[str, Any]  # stage, seconds, and scores by name


def run_recipe(
    outdir: Path, sizes: Sequence[object], epochs: int
) -> tuple[list[Row], dict[str, float]]:
    """Run every stage below ``outdir``; return a row for each, and the pseudo masks' accuracy.

    ``sizes`` are options of make_sample_data.py.
    """
    data = outdir / "data"
    # One process: a batch of 8 pairs cannot be divided among any number of GPUs.
    work = ("--data-root", data, "--outdir", outdir, "--nproc", 1)

    def train(stage: str, model: str, *options: str) -> Row:
        argv = ("--model", model, *options, *TRAINING, "--epochs", epochs, *work)
        seconds = _script("train.py", *argv)
        latest = read_checkpoint(outdir / "models" / f"{model}_{BACKBONE}_latest.pth")
        return {"stage": stage, "seconds": seconds, **latest["training"]["best"]}

    def test(stage: str, *options: object) -> Row:
        seconds = _script("test.py", *options, *work)
        scores = json.loads((outdir / "masks" / "test" / "metrics.json").read_text("utf-8"))
        return {"stage": stage, "seconds": seconds, **scores}

    _script("tools/make_sample_data.py", "--out", data, *sizes)
    torch.manual_seed(0)
    config = ModelConfig("pspnet", BACKBONE)
    untrained = {"config": config.to_dict(), "model": build_model(config).state_dict()}
    save_checkpoint(outdir / "untrained.pth", untrained)
    rows = [test("untrained", "--checkpoints", outdir / "untrained.pth")]
    rows.append(train("teacher A, pspnet lightweight", *STUDENT))
    rows.append(train("teacher B, fcn", "fcn"))
    rows.append({"stage": "label.py", "seconds": _script("label.py", *work)})
    accuracy = measure_pseudo_labels(data, outdir / "masks" / "train")
    rows.append(train("student: A with pseudo labels", *STUDENT, "--use-pseudo-label"))
    best = [path for path in (outdir / "models").glob("*.pth") if "_latest" not in path.name]
    for decode in DECODINGS:  # the pictures show the last
        ensemble = ("--tta", "--decode", decode, "--checkpoints", *sorted(best))
        rows.append(test(f"all three, TTA, {decode} decoding", *ensemble))
    return rows, accuracy


def _script(name: str, *options: object) -> float:
    """Run a script of this repository as a user would, and return its seconds."""
    argv = [str(option) for option in options]
    print(f"\n$ python {name} {shlex.join(argv)}", flush=True)
    started = time.perf_counter()
    result = subprocess.run([sys.executable, str(REPO / name), *argv], check=False)
    if result.returncode:
        raise UserError(f"{name} ended with status {result.returncode}; its message is above")
    return time.perf_counter() - started


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as text, scores in percent."""
    scores = ("score", "miou", "sek", "f_scd", "oa")
    cells = []
    for row in rows:
        shown = [f"{100 * row[name]:.2f}" if name in row else "" for name in scores]
        cells.append((row["stage"], *shown, f"{row['seconds']:.0f}"))
    return table(("stage", "Score", "mIoU", "SeK", "F_scd", "OA", "seconds"), cells)


def draw_overview(outdir: Path) -> None:
    """Draw images, labels and pseudo masks of a few training pairs, and predictions of others."""

    def pictures(split: str, folder: str) -> list[list[np.ndarray]]:
        rows, masks = [], outdir / "masks" / folder
        for pair in index_pairs(outdir / "data" / split)[:SHOWN_PAIRS]:
            written = [masks / date / f"{pair.name}.png" for date in ("im1", "im2")]
            labels = [read_label(p, SECOND_CLASSES) for p in (pair.label1, pair.label2, *written)]
            images = [read_bands(pair.image1), read_bands(pair.image2)]
            rows.append(images + [SECOND_CLASSES.to_rgb(label) for label in labels])
        return rows

    train, val = pictures("train", "train"), pictures("val", "test")
    both = [left + right for left, right in zip(train, val, strict=False)]
    dates = ["image 1", "image 2", "label 1", "label 2"]
    titles = [*dates, "pseudo mask 1", "pseudo mask 2", *dates, "prediction 1", "prediction 2"]
    legend = list(zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True))
    save_image(outdir / "overview.png", contact_sheet(titles, both, cell=112, legend=legend))
