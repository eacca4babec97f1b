"""tools/pseudo_accuracy.py: pseudo masks against the truth."""

from pathlib import Path

import numpy as np
import pytest

from datasets.classes import SECOND_CLASSES
from tests.helpers.image_files import read, write
from tools import pseudo_accuracy
from utils.errors import DataError


@pytest.fixture
def masks(sample_root, tmp_path) -> Path:
    """Pseudo masks that are right, but for the first 16 of 64 columns, which have no class."""
    for date in ("1", "2"):
        for path in (sample_root / "train" / f"truth{date}").iterdir():
            mask = read(path)
            mask[:, :16] = 0
            target = tmp_path / "masks" / f"im{date}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write(target, mask)
    return tmp_path / "masks"


def measure(root: Path, masks: Path) -> dict[str, float]:
    return pseudo_accuracy.main(["--data-root", str(root), "--masks", str(masks)])


def test_coverage_and_accuracy_are_of_the_unlabelled_pixels(sample_root, masks, capsys):
    labels = [read(path) for path in sorted((sample_root / "train/label1").iterdir())]
    free = np.stack([SECOND_CLASSES.to_index(label) == 0 for label in labels])
    result = measure(sample_root, masks)
    assert result["coverage"] == pytest.approx(free[:, :, 16:].sum() / free.sum())
    assert result["accuracy"] == 1
    assert f"{100 * result['coverage']:.2f} %" in capsys.readouterr().out


def test_pixels_without_data_are_no_gap_of_the_vote(broken_root, masks):
    """The columns that the masks leave have no data in one image: nothing is left uncovered."""
    for path in sorted((broken_root / "train/im1").iterdir()):
        rgba = np.dstack([read(path), np.full((64, 64), 255, np.uint8)])
        rgba[:, :16, 3] = 0
        write(path, rgba)
    assert measure(broken_root, masks) == {"coverage": 1, "accuracy": 1}


@pytest.mark.parametrize("damaged", ["masks", "truth"])
def test_other_sizes_and_missing_files_are_named(damaged, broken_root, masks):
    path = {"masks": masks / "im2", "truth": broken_root / "train/truth2"}[damaged] / "00003.png"
    write(path, read(path)[:, :48])
    with pytest.raises(DataError, match=f"^{path}: 48 × 64 pixels, but .*label2.00003.png has 64"):
        measure(broken_root, masks)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: no such file"):
        measure(broken_root, masks)
