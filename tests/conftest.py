"""Generated pairs that the tests share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.classes import SECOND_CLASSES
from datasets.sample import write_sample_data

TRAIN_PAIRS, VAL_PAIRS, SIDE = 12, 4, 64
LABEL_FOLDERS = ("label1", "label2", "truth1", "truth2")


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """12 training and 4 validation pairs of 64 x 64 pixels with RGB labels. Read only."""
    root = tmp_path_factory.mktemp("sample_root")
    write_sample_data(root, TRAIN_PAIRS, VAL_PAIRS, SIDE, SIDE, seed=0)
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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The networks of the tests are tiny: a second thread costs more than it gives.
    torch.set_num_threads(1)
