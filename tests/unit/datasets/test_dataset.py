"""Samples: what the files of a pair hold, or an error in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import index_pairs
from datasets.task import Task
from tests.helpers.change_sets import masks_in_both
from tests.helpers.image_files import read as read_file
from utils.errors import DataError
from utils.pictures import save_mask

SECOND = Task(SECOND_CLASSES)
FOLDERS = ("im1", "im2", "label1", "label2")


def read(folder: Path, index: int = 0, task: Task = SECOND, **options: object) -> dict:
    return ChangeDetectionDataset(index_pairs(folder), task, **options)[index]


def read_error(folder: Path, task: Task = SECOND, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, task=task, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shrink(path: Path) -> None:
    Image.open(path).crop((0, 0, 20, 30)).save(path)


def test_sample_is_what_the_files_hold(sample_root):
    folder = sample_root / "train"
    dataset = ChangeDetectionDataset(index_pairs(folder), SECOND)
    sample = dataset[3]
    assert set(sample) == {"name", "image1", "image2", "label1", "label2", "change_mask"}
    assert sample["name"] == "00003"
    assert all(sample[key].dtype == torch.uint8 for key in sample if key != "name")
    for date in ("1", "2"):
        image = read_file(folder / f"im{date}" / "00003.png")
        assert np.array_equal(sample[f"image{date}"].permute(1, 2, 0), image)
        label = SECOND_CLASSES.to_index(read_file(folder / f"label{date}" / "00003.png"))
        assert np.array_equal(sample[f"label{date}"], label)
        assert np.array_equal(sample["change_mask"], label > 0)
    assert set(sample["change_mask"].unique().tolist()) == {0, 1}
    labels = dataset.labels(3)
    assert set(labels) == {"label1", "label2", "change_mask"}
    assert all(torch.equal(labels[key], sample[key]) for key in labels)


def test_sample_without_labels(unlabelled_val_root):
    folder = unlabelled_val_root / "val"
    assert set(read(folder)) == {"name", "image1", "image2"}
    assert ChangeDetectionDataset(index_pairs(folder), SECOND).labels(0) == {}


def test_change_masks_alone(binary_root, broken_root):
    masks_in_both(broken_root)
    for root in (binary_root, broken_root):
        sample = read(root / "train", task=Task(CHANGE_CLASSES))
        assert set(sample) == {"name", "image1", "image2", "change_mask"}
        assert set(sample["change_mask"].unique().tolist()) == {0, 1}
    message = read_error(binary_root / "train")
    assert "a change mask, but the class list names 6 classes" in message
    path = broken_root / "train/label2/00000.png"
    Image.fromarray(255 - read_file(path)).save(path)
    assert "00000.png: disagree on what changed" in read_error(
        broken_root / "train", Task(CHANGE_CLASSES)
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_files_that_cannot_be_decoded_or_differ_in_size(broken_root, name):
    path = broken_root / "train" / name / "00000.png"
    if name != "im1":
        shrink(path)
        message = read_error(broken_root / "train")
        assert message.startswith(f"{path}: 20 × 30 pixels, but ")
        assert f"{broken_root}/train/im1/00000.png has 64 × 64; co-register" in message
    truncate(path)
    message = read_error(broken_root / "train")
    assert message.startswith(f"{path}: cannot be decoded (")
    assert "copy the file again or remove its pair" in message


@pytest.mark.parametrize("damaged", ["label1", "label2"])
@pytest.mark.parametrize("pixels", [1, 5])
def test_labels_that_disagree_on_what_changed(write_pairs, damaged, pixels):
    folder = write_pairs({"a": (20, 30)})
    path = folder / damaged / "a.png"
    label = read_file(path)
    rows, columns = np.nonzero(label)
    label[rows[:pixels], columns[:pixels]] = 0
    Image.fromarray(label).save(path)
    message = read_error(folder)
    assert message.startswith(f"{folder / 'label1' / 'a.png'} and {folder / 'label2' / 'a.png'}: ")
    assert f"in {pixels} pixels" in message and "correct the masks or remove the pair" in message


@pytest.fixture
def pseudo(write_pairs, tmp_path) -> Callable:
    """Write a pair and pseudo masks of it; returns both folders and the masks."""

    def write(lowest: int = 0, size: tuple[int, int] = (20, 30)) -> tuple:
        folder = write_pairs({"a": (20, 30)})
        masks = np.random.default_rng(9).integers(lowest, 7, (2, *size), dtype=np.uint8)
        for name, mask in zip(("im1", "im2"), masks, strict=True):
            save_mask(tmp_path / "pseudo" / name / "a.png", mask, SECOND_CLASSES.colors)
        return folder, tmp_path / "pseudo", masks

    return write


@pytest.mark.parametrize("lowest", [0, 1])  # pixels may be left open at one date
def test_change_mask_is_ground_truth_beside_pseudo_labels(pseudo, lowest):
    folder, root, (mask1, mask2) = pseudo(lowest)
    truth, sample = read(folder), read(folder, pseudo_label_root=root)
    assert np.array_equal(sample["label1"], mask1) and np.array_equal(sample["label2"], mask2)
    assert 0 < truth["change_mask"].float().mean() < 1
    assert torch.equal(sample["change_mask"], truth["change_mask"])
    assert torch.equal(sample["image1"], truth["image1"])


def test_pseudo_masks_that_are_missing_or_of_another_size(pseudo):
    folder, root, _ = pseudo(size=(30, 20))
    message = read_error(folder, pseudo_label_root=root)
    assert message.startswith(f"{root}/im1/a.png: 20 × 30 pixels") and "30 × 20" in message
    (root / "im2" / "a.png").unlink()
    message = read_error(folder, pseudo_label_root=root)
    assert message == f"{root}/im2/a.png: no pseudo mask for this pair; run label.py first"
