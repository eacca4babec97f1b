"""Generated pairs and finished runs that the tests share; those of a session are read only."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from tests.helpers.faults import CrashError, crash, in_second_epoch
from tests.helpers.runs import EPOCHS, VARIANTS, Run, train_options
from tools import make_sample_data


def write_sample(root: Path, *options: object, pairs: tuple[int, int] = (12, 4)) -> Path:
    """Training and validation pairs of 64 x 64 pixels."""
    counts = ("--train-pairs", pairs[0], "--val-pairs", pairs[1], "--size", 64)
    make_sample_data.main([str(part) for part in (root, *counts, *options)])
    return root


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs with RGB labels of SECOND's classes."""
    return write_sample(tmp_path_factory.mktemp("sample_root"))


@pytest.fixture(scope="session")
def bands_root(tmp_path_factory) -> Path:
    """8 training and 4 validation pairs of four 16-bit bands."""
    return write_sample(tmp_path_factory.mktemp("bands"), "--bands", 4, "--bits", 16, pairs=(8, 4))


@pytest.fixture(scope="session")
def binary_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs with change masks in ``label``."""
    return write_sample(tmp_path_factory.mktemp("binary_root"), "--label-format", "binary")


@pytest.fixture(scope="session")
def unlabelled_val_root(sample_root, tmp_path_factory) -> Path:
    """The sample set with a ``val`` that has images only."""
    root = tmp_path_factory.mktemp("unlabelled_val") / "root"
    shutil.copytree(sample_root, root)
    for folder in ("label1", "label2", "truth1", "truth2"):
        shutil.rmtree(root / "val" / folder)
    return root


@pytest.fixture(scope="session")
def custom_root(sample_root, tmp_path_factory) -> Path:
    """The sample set with two classes of its own and labels as indices."""
    root = tmp_path_factory.mktemp("custom") / "root"
    shutil.copytree(sample_root, root)
    for path in root.glob("*/label?/*.png"):
        mask = read_label(path, SECOND_CLASSES)
        Image.fromarray(((mask + 2) // 3).astype(np.uint8)).save(path)  # 1..3 → 1, 4..6 → 2
    colors = {"same": [0, 0, 0], "open": [10, 200, 30], "built": [200, 10, 30]}
    entries = [{"name": name, "color": color} for name, color in colors.items()]
    (root / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


@pytest.fixture
def broken_root(sample_root, tmp_path) -> Path:
    """A copy of the sample set for one test, to be damaged."""
    return Path(shutil.copytree(sample_root, tmp_path / "broken_root"))


@pytest.fixture
def write_pairs(tmp_path) -> Callable[[dict[str, tuple[int, int]]], Path]:
    """Write noise pairs of given (height, width) by stem; labels are indices. Returns the folder.

    The labels of a pair hold all SECOND classes and agree on what changed.
    """

    def write(sizes: dict[str, tuple[int, int]], folder: Path = tmp_path / "train") -> Path:
        for seed, (stem, size) in enumerate(sizes.items()):
            rng = np.random.default_rng(seed)
            changed = rng.random(size) < 0.5
            for date in ("1", "2"):
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                classes = rng.integers(1, len(SECOND_CLASSES.names), size, dtype=np.uint8)
                for name, array in (("im", image), ("label", np.where(changed, classes, 0))):
                    path = folder / f"{name}{date}" / f"{stem}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array.astype(np.uint8)).save(path)
        return folder

    return write


@pytest.fixture(scope="session")
def whole_run(sample_root, tmp_path_factory) -> Callable[[str], Run]:
    """Uninterrupted runs by variant, each trained once."""
    done: dict[str, Run] = {}

    def run(variant: str) -> Run:
        def argv(outdir: Path, *more: object) -> list[str]:
            return train_options(sample_root, outdir, "--epochs", EPOCHS, *VARIANTS[variant], *more)

        if variant not in done:
            outdir = tmp_path_factory.mktemp(variant)
            done[variant] = Run(outdir, argv, train.main(argv(outdir, "--tensorboard")))
        return done[variant]

    return run


@pytest.fixture(scope="session")
def fcn_run(whole_run) -> Run:
    """Two uninterrupted epochs."""
    return whole_run("plain")


@pytest.fixture(scope="session")
def half_outdir(fcn_run, tmp_path_factory) -> Path:
    """The same run, ended by force in its second epoch."""
    outdir = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
        in_second_epoch(patch, crash)
        train.main(fcn_run.argv(outdir))
    return outdir


@pytest.fixture(scope="session")
def ensemble(fcn_run, tmp_path_factory) -> Path:
    """An outdir with the checkpoints of two runs."""
    outdir = tmp_path_factory.mktemp("ensemble") / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    model = ("--model", "pspnet", "--backbone", "mobilenetv3_small_050", "--lightweight")
    train.main(fcn_run.argv(outdir, *model, "--epochs", 1))
    return outdir


@pytest.fixture
def ensemble_outdir(ensemble, tmp_path) -> Path:
    """A copy of the ensemble's outdir for one test."""
    return Path(shutil.copytree(ensemble, tmp_path / "out"))


@pytest.fixture(scope="session")
def custom_run(custom_root, tmp_path_factory) -> Path:
    """An outdir with a run on classes of its own."""
    outdir = tmp_path_factory.mktemp("custom_run")
    train.main(train_options(custom_root, outdir))
    return outdir


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The networks of the tests are tiny: a second thread costs more than it gives.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
