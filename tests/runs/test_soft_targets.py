"""label.py --targets soft, and what is trained on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import label
import train
from datasets.dataset import CELL
from datasets.images import read_bands
from datasets.labels import read_planes
from datasets.pairs import index_pairs
from engine.predictor import VIEWS, Predictor
from models.checkpoint import load_model
from tests.helpers.faults import CrashError, before_prediction, before_step, crash
from tests.helpers.runs import (
    TRAIN_NAMES,
    assert_same_run,
    assert_same_values,
    best_files,
    csv_rows,
    latest_file,
    options,
    train_options,
)
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint

SOFT = ("--targets", "soft")


@pytest.fixture(scope="module")
def teachers(ensemble, sample_root, tmp_path_factory) -> Path:
    """An outdir with two teachers, their masks and soft targets. Read only."""
    outdir = tmp_path_factory.mktemp("soft") / "out"
    shutil.copytree(ensemble, outdir)
    label.main(options(sample_root, outdir, "--no-tta", *SOFT))
    return outdir


def masks_below(outdir: Path) -> dict[str, bytes]:
    folder = outdir / "masks" / "train"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def columns(outdir: Path) -> set[str]:
    return {name for name in csv_rows(outdir)[0] if name.startswith("loss_distill")}


@pytest.mark.parametrize(
    "more", [("--no-tta",), ("--vote", "soft", "--no-tta"), ("--test-batch-size", 5)]
)
def test_soft_targets_are_the_mean_of_models_and_views(more, ensemble_outdir, sample_root):
    label.main(options(sample_root, ensemble_outdir, *SOFT, *more))
    models = [load_model(path) for path in best_files(ensemble_outdir)]
    predictor = Predictor(models, VIEWS[:1] if "--no-tta" in more else VIEWS)
    for pair in index_pairs(sample_root / "train")[:3]:
        images = [torch.from_numpy(read_bands(p)).movedim(-1, 0)[None] for p in pair.files[:2]]
        *semantic, change = predictor(*images)
        expected = torch.cat([*semantic, change[:, None]], dim=1)[0].unflatten(2, (-1, CELL))
        expected = expected.unflatten(1, (-1, CELL)).mean(dim=(2, 4)).numpy()
        path = ensemble_outdir / "masks" / "train" / "soft" / f"{pair.name}.png"
        found = read_planes(path).reshape(expected.shape) / 255
        found[:-1] **= 2  # square roots are kept of classes
        assert np.abs(found - expected).max() <= 1 / 255 + 1e-5
        assert np.abs(found[-1] - expected[-1]).max() <= 0.5 / 255 + 1e-5


def test_masks_beside_soft_targets_are_the_same_ones(teachers, ensemble_outdir, sample_root):
    label.main(options(sample_root, ensemble_outdir, "--no-tta"))
    hard, soft = masks_below(ensemble_outdir), masks_below(teachers)
    assert {name: None for name in soft if not name.startswith("soft")} == dict.fromkeys(hard)
    for date in ("im1", "im2"):
        for name in TRAIN_NAMES:
            masks = [o / f"masks/train/{date}/{name}.png" for o in (teachers, ensemble_outdir)]
            assert_same_pixels(*masks)


def assert_same_pixels(*paths: Path) -> None:
    first, second = (read_bands(path) for path in paths)
    assert np.array_equal(first, second)
