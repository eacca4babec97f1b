"""What is said before training about a few pairs."""

import shutil
import time

import numpy as np
import pytest
from PIL import Image

from datasets.bands import RGB, Bands
from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.pairs import index_pairs
from datasets.quick_check import quick_check
from datasets.task import Task
from tests.helpers.change_sets import masks_in_both
from tests.helpers.damages import disagree, land_cover_as_labels, smear_labels, truncate

SECOND = Task(SECOND_CLASSES)


def test_a_clean_set_is_silent_and_fast(sample_root, unlabelled_val_root):
    start = time.perf_counter()
    assert quick_check(index_pairs(sample_root / "train"), SECOND, RGB) == []
    assert time.perf_counter() - start < 1
    assert quick_check(index_pairs(unlabelled_val_root / "val"), SECOND, RGB) == []
    assert quick_check([], SECOND, RGB) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (masks_in_both, "12 of 12 pairs looked at: {}/train/label1/00000.png: label only 0"),
        (smear_labels, "1 of 12 pairs looked at: {}/train/label1/00003.png: label "),
        (disagree, "disagree on what changed"),
        (land_cover_as_labels, "12 of 12 pairs looked at: all pixels are labelled as changed"),
        (truncate, "cannot be decoded"),
    ],
)
def test_what_is_wrong_is_one_line(damage, message, broken_root):
    damage(broken_root)
    (warning,) = quick_check(index_pairs(broken_root / "train"), SECOND, RGB)
    assert message.format(broken_root) in warning and "\n" not in warning


def test_unchanged_sets_equal_dates_and_missing_bands(broken_root):
    for path in (broken_root / "train").glob("label[12]/*.png"):
        Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(path)
    shutil.copy(broken_root / "train/im1/00004.png", broken_root / "train/im2/00004.png")
    pairs = index_pairs(broken_root / "train")
    copies, unchanged = quick_check(pairs, SECOND, RGB)
    assert "1 of 12" in copies and "00004.png: the same pixels" in copies
    assert "12 of 12 pairs looked at: no pixel is labelled as changed" in unchanged
    (warning,) = quick_check(pairs, SECOND, Bands((1, 4)))
    assert "has 3 bands of 8 bits, but bands 1, 4 of 8 bits are wanted" in warning


def test_change_masks_are_checked_alike(binary_root):
    assert quick_check(index_pairs(binary_root / "train"), Task(CHANGE_CLASSES), RGB) == []
