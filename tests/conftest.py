"""Generated pairs and finished training runs that the tests share."""

import json
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
from tests.helpers.faults import in_second_epoch, interrupt
from tests.helpers.interruptions import EPOCHS, VARIANTS, Whole
from tests.helpers.runs import best_files, train_options
from tests.helpers.script_runs import Run, train_argv
from tools.scenes.sample import SampleSet, write_sample_data

TRAIN_PAIRS, VAL_PAIRS, SIDE = 12, 4, 64
LABEL_FOLDERS = ("label1", "label2", "truth1", "truth2")


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs of 64 x 64 pixels with RGB labels. Read only."""
    root = tmp_path_factory.mktemp("sample_root")
    write_sample_data(root, SampleSet(TRAIN_PAIRS, VAL_PAIRS, SIDE, SIDE, 0))
    return root


@pytest.fixture(scope="session")
def unlabelled_val_root(sample_root, tmp_path_factory) -> Path:
    """The same set with a ``val`` that has images only. Read only."""
    root = tmp_path_factory.mktemp("unlabelled_val") / "root"
    shutil.copytree(sample_root, root)
    for folder in LABEL_FOLDERS:
        shutil.rmtree(root / "val" / folder)
    return root


@pytest.fixture
def broken_root(sample_root, tmp_path) -> Path:
    """A copy of the sample set for one test, to be damaged."""
    root = tmp_path / "broken_root"
    shutil.copytree(sample_root, root)
    return root


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
def bands_root(tmp_path_factory) -> Path:
    """8 training and 4 validation pairs of four 16-bit bands. Read only."""
    folder = tmp_path_factory.mktemp("bands") / "root"
    write_sample_data(folder, SampleSet(8, 4, 64, 64, 0, bands=4, bits=16))
    return folder


@pytest.fixture(scope="session")
def binary_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs with change masks in ``label``. Read only."""
    root = tmp_path_factory.mktemp("binary_root")
    write_sample_data(root, SampleSet(TRAIN_PAIRS, VAL_PAIRS, SIDE, SIDE, 0, "binary"))
    return root


@pytest.fixture(scope="session")
def whole_run(sample_root, tmp_path_factory) -> Callable[[str], Whole]:
    """Uninterrupted runs by variant, each trained once. Read only."""
    done: dict[str, Whole] = {}

    def run(variant: str) -> Whole:
        if variant not in done:
            outdir = tmp_path_factory.mktemp(variant)

            def argv(outdir: Path, *more: object) -> list[str]:
                return train_options(
                    sample_root, outdir, "--epochs", EPOCHS, *VARIANTS[variant], *more
                )

            train.main(argv(outdir))
            done[variant] = Whole(outdir, argv)
        return done[variant]

    return run


@pytest.fixture(scope="session")
def whole_outdir(whole_run) -> Path:
    """Two uninterrupted epochs. Read only."""
    return whole_run("plain").outdir


@pytest.fixture(scope="session")
def half_outdir(sample_root, tmp_path_factory) -> Path:
    """The same run, ended by force in its second epoch. Read only."""
    outdir = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        in_second_epoch(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main(train_options(sample_root, outdir, "--epochs", 2))
    return outdir


@pytest.fixture(scope="session")
def fcn_run(sample_root, tmp_path_factory) -> Run:
    """Two epochs of an FCN. Read only."""
    outdir = tmp_path_factory.mktemp("run")
    metrics = train.main(train_argv(sample_root, outdir, "--epochs", 2))
    (best,) = best_files(outdir)
    return Run(outdir, best, metrics)


@pytest.fixture(scope="session")
def ensemble(fcn_run, sample_root, tmp_path_factory) -> Path:
    """An outdir with the checkpoints of two runs. Read only."""
    outdir = tmp_path_factory.mktemp("ensemble") / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    model = ("--model", "pspnet", "--backbone", "hrnet_w18_small", "--lightweight")
    train.main(train_argv(sample_root, outdir, model=model))
    return outdir


@pytest.fixture
def ensemble_outdir(ensemble, tmp_path) -> Path:
    """A copy of the ensemble's outdir for one test."""
    shutil.copytree(ensemble, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def custom_root(sample_root, tmp_path_factory) -> Path:
    """The sample set with two classes of its own and labels as indices."""
    root = tmp_path_factory.mktemp("custom") / "root"
    shutil.copytree(sample_root, root)
    for path in root.glob("*/label?/*.png"):
        mask = read_label(path, SECOND_CLASSES)
        Image.fromarray(((mask + 2) // 3).astype(np.uint8)).save(path)  # 1..3 → 1, 4..6 → 2
    names, colors = ("same", "open", "built"), ([0, 0, 0], [10, 200, 30], [200, 10, 30])
    entries = [{"name": name, "color": c} for name, c in zip(names, colors, strict=True)]
    (root / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def custom_run(custom_root, tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("custom_run")
    train.main(train_argv(custom_root, outdir))
    return outdir


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The networks of the tests are tiny: a second thread costs more than it gives.
    torch.set_num_threads(1)
