"""What the labels of a data set are: classes, of one date or both, or change masks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.pairs import index_pairs
from datasets.task import (
    Task,
    find_change_masks,
    load_classes,
    load_task,
    missing_labels,
    with_dates,
)
from tests.helpers.change_sets import SIDE, masks_in_both
from utils.files import write_json


def test_a_task_of_classes_and_one_of_change():
    task = Task(SECOND_CLASSES)
    assert (task.is_binary, task.num_classes, task.semantic_classes) == (False, 6, 6)
    assert task.label_keys == ("label1", "label2") and task.mask_folders == ("im1", "im2")
    assert task.palette == SECOND_CLASSES.colors and task.labelled_dates == {}
    task = Task(CHANGE_CLASSES)
    assert (task.is_binary, task.num_classes, task.semantic_classes) == (True, 1, 0)
    assert task.label_keys == ("change_mask",) and task.mask_folders == ("change",)
    assert task.palette is None


def test_dates_are_those_of_the_pairs(sample_root, broken_root, binary_root):
    both = index_pairs(sample_root / "train")
    shutil.rmtree(broken_root / "val/label1")
    second = index_pairs(broken_root / "val")
    task = Task(SECOND_CLASSES)
    assert with_dates(task, both, both).labelled_dates == {"training": [1, 2], "validation": [1, 2]}
    assert missing_labels(task, both, both) == []
    assert with_dates(task, both, second).labelled_dates == {"training": [1, 2], "validation": [2]}
    (line,) = missing_labels(task, both, second)
    assert line.startswith("warning: training and validation differ") and "date 2 only" in line
    lines = missing_labels(task, second, second)
    assert len(lines) == 2 and not any(line.startswith("warning") for line in lines)
    masks, task = index_pairs(binary_root / "train"), Task(CHANGE_CLASSES)
    assert with_dates(task, masks, masks).labelled_dates == {"training": [], "validation": []}
    assert missing_labels(task, masks, masks) == [
        "binary change labels (from train/label): the change branch is trained alone"
    ]


def test_a_semantic_set_is_none_of_change(sample_root, unlabelled_val_root, tmp_path):
    for root in (sample_root, unlabelled_val_root, sample_root / "train", tmp_path):
        assert find_change_masks(root) == ""
        assert load_classes(root) is SECOND_CLASSES


def test_a_stray_folder_label_is_no_sign(unlabelled_val_root, tmp_path):
    shutil.copytree(unlabelled_val_root / "val", tmp_path / "val")
    (tmp_path / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES
    shutil.copytree(unlabelled_val_root / "train", tmp_path / "train")
    (tmp_path / "train" / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES


def rewrite_masks(root: Path, form: Callable) -> None:
    """Write change masks in both label folders, each anew: ``form(mask, path)`` is an image."""
    masks_in_both(root)
    for path in root.glob("train/label[12]/*.png"):
        form(np.array(Image.open(path)), path).save(path)


def palette(mask: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(bytes(sum(colors, ())))
    return image


@pytest.mark.parametrize(
    ("form", "binary"),
    [
        (lambda mask, path: Image.fromarray(mask), True),
        (lambda mask, path: Image.fromarray(mask > 0), True),
        (lambda mask, path: palette(mask // 255, (0, 0, 0), (255, 255, 255)), True),
        # What might be classes stays classes.
        (lambda mask, path: Image.fromarray(mask * 0), False),
        (lambda mask, path: palette(mask * 0, *SECOND_CLASSES.colors), False),
        (lambda mask, path: Image.fromarray(mask).convert("RGB"), False),
        (lambda mask, path: Image.fromarray(mask // 255), False),
        (lambda mask, path: Image.fromarray(mask // (85 if path.stem == "00000" else 1)), False),
    ],
    ids=["8 bits", "1 bit", "palette", "zeros", "white", "RGB", "0 and 1", "one with classes"],
)
def test_masks_are_recognised_in_every_form(form, binary, broken_root):
    rewrite_masks(broken_root, form)
    assert ("0 and 255 only" in find_change_masks(broken_root)) == binary
    assert load_classes(broken_root) is (CHANGE_CLASSES if binary else SECOND_CLASSES)


def test_a_folder_label_says_that_a_set_is_of_change(binary_root):
    assert "train/label" in find_change_masks(binary_root)
    assert load_task(binary_root).is_binary


@pytest.mark.parametrize("marked", [0, 7, 11])
def test_blank_masks_do_not_hide_the_others(marked, broken_root):
    masks_in_both(broken_root)
    for path in broken_root.glob("train/label[12]/*.png"):
        values = np.uint8(255 * (path.stem == f"{marked:05d}"))
        Image.fromarray(np.full((SIDE, SIDE), values)).save(path)
    assert load_classes(broken_root) is CHANGE_CLASSES


def test_a_class_list_of_one_class_is_binary(broken_root):
    masks_in_both(broken_root, high=1)
    entries = [{"name": "same", "color": (0, 0, 0)}, {"name": "built", "color": (255, 255, 255)}]
    write_json(broken_root / "classes.json", entries)
    assert load_task(broken_root).is_binary
    assert load_task(broken_root).classes.names == ("same", "built")
