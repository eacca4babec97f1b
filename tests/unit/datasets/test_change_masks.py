"""Change masks without classes: read, recognised, or refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test as predict
import train
from datasets import task
from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.images import open_image
from datasets.labels import read_label
from datasets.pairs import index_pairs, split_pairs
from datasets.splits import SplitOptions
from datasets.task import find_change_masks, is_mask_folder, load_classes
from tests.helpers.change_sets import SIDE, masks_in_both, small_model
from tests.helpers.runs import options, train_options
from tools import check_data
from tools.checking.inspection import inspect_dataset
from utils.errors import DataError
from utils.files import write_json
from utils.pictures import save_change_mask


@pytest.fixture
def one_mask(tmp_path):
    """Write a mask file of given pixels; returns its path."""

    def write(values, mode: str = "L", name: str = "a.png", palette=None) -> Path:
        image = Image.fromarray(np.asarray(values, dtype=np.uint8))
        if palette:
            image.putpalette([channel for color in palette for channel in color])
        image = image if image.mode == mode else image.convert(mode)
        image.save(tmp_path / name)
        return tmp_path / name

    return write


# --- files ----------------------------------------------------------------------------------

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "mode", "palette"),
    [
        ([[0, 255]], "L", None),
        ([[0, 1]], "L", None),
        ([[0, 255]], "1", None),
        ([[0, 255]], "RGB", None),
        ([[0, 1]], "P", (BLACK, WHITE)),
        ([[0, 1]], "P", ((9, 9, 9), (200, 0, 0))),
    ],
)
def test_masks_of_every_kind(values, mode, palette, one_mask):
    path = one_mask(values, mode, palette=palette)
    mask = read_label(path, CHANGE_CLASSES)
    assert mask.dtype == np.uint8 and mask.tolist() == [[0, 1]]


@pytest.mark.parametrize("values", [[[0, 1, 255]], [[0, 7]], [[0, 254, 255]]])
def test_other_values_are_refused(values, one_mask):
    path = one_mask(values)
    with pytest.raises(DataError, match="a change mask holds 0 and 255, or 0 and 1") as caught:
        read_label(path, CHANGE_CLASSES)
    assert str(path) in str(caught.value)


def test_an_inverted_palette_is_refused(one_mask):
    with pytest.raises(DataError, match="index 0 means 'unchanged'"):
        read_label(one_mask([[0, 1]], "P", palette=(WHITE, BLACK)), CHANGE_CLASSES)


# --- recognition ----------------------------------------------------------------------------


def test_a_semantic_set_is_none_of_change(sample_root, unlabelled_val_root):
    for root in (sample_root, unlabelled_val_root, sample_root / "train"):
        assert find_change_masks(root) == ""
        assert load_classes(root) is SECOND_CLASSES


def test_a_stray_folder_label_is_no_sign(unlabelled_val_root, tmp_path):
    shutil.copytree(unlabelled_val_root / "val", tmp_path / "val")
    (tmp_path / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES
    shutil.copytree(unlabelled_val_root / "train", tmp_path / "train")
    (tmp_path / "train" / "label").mkdir()
    assert load_classes(tmp_path) is SECOND_CLASSES


def test_the_folder_label_is_recognised(binary_root):
    assert "train/label" in find_change_masks(binary_root)
    assert load_classes(binary_root) is CHANGE_CLASSES


def test_equal_masks_of_both_dates_are_recognised(broken_root):
    masks_in_both(broken_root)
    assert "0 and 255 only" in find_change_masks(broken_root)
    classes = load_classes(broken_root)
    dataset = ChangeDetectionDataset(index_pairs(broken_root / "train"), classes)
    assert set(dataset[0]) == {"name", "image1", "image2", "change_mask"}


@pytest.mark.parametrize("marked", [0, 7, 11])
def test_blank_masks_do_not_hide_the_others(marked, broken_root):
    masks_in_both(broken_root)
    for path in broken_root.glob("train/label[12]/*.png"):
        values = np.uint8(255 * (path.stem == f"{marked:05d}"))
        Image.fromarray(np.full((SIDE, SIDE), values)).save(path)
    assert load_classes(broken_root) is CHANGE_CLASSES


def test_the_labels_looked_at_are_spread(one_mask, tmp_path, monkeypatch):
    for index in range(200):
        one_mask([[0, 255]], name=f"{index:03d}.png")
    opened = []

    def recorded(path: Path) -> Image.Image:
        opened.append(int(path.stem))
        return open_image(path)

    monkeypatch.setattr(task, "open_image", recorded)
    assert is_mask_folder(tmp_path)
    assert len(opened) == 8 and np.all(np.abs(np.diff(opened) - 25) <= 1)


@pytest.mark.parametrize("kind", ["0 and 1", "nothing changed", "one with classes", "black, white"])
def test_what_might_be_classes_stays_classes(kind, broken_root):
    masks_in_both(broken_root, high=1 if kind == "0 and 1" else 255)
    for path in broken_root.glob("train/label[12]/*.png"):
        if kind == "nothing changed":
            Image.new("L", (SIDE, SIDE)).save(path)
        if kind == "black, white":
            Image.open(path).convert("RGB").save(path)
    if kind == "one with classes":
        Image.fromarray(np.full((SIDE, SIDE), 3, np.uint8)).save(
            broken_root / "train/label1/00000.png"
        )
    assert load_classes(broken_root) is SECOND_CLASSES


def test_a_class_list_of_one_class_is_binary(broken_root):
    masks_in_both(broken_root, high=1)
    entries = [{"name": n, "color": c} for n, c in (("same", BLACK), ("built", WHITE))]
    write_json(broken_root / "classes.json", entries)
    classes = load_classes(broken_root)
    assert classes.is_binary and classes.semantic_classes == 0
    assert not SECOND_CLASSES.is_binary and SECOND_CLASSES.semantic_classes == 6


def test_masks_that_differ_between_the_dates_are_refused(broken_root):
    masks_in_both(broken_root)
    path = broken_root / "train/label2/00000.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    dataset = ChangeDetectionDataset(index_pairs(broken_root / "train"), CHANGE_CLASSES)
    with pytest.raises(DataError, match=r"00000\.png: disagree on what changed"):
        dataset[0]


def test_masks_beside_a_class_list_are_refused(binary_root, tmp_path):
    dataset = ChangeDetectionDataset(index_pairs(binary_root / "train"), SECOND_CLASSES)
    with pytest.raises(DataError, match="a change mask, but the class list names 6 classes"):
        dataset[0]
    shutil.copytree(binary_root, tmp_path / "root")
    findings = inspect_dataset(tmp_path / "root", SECOND_CLASSES).findings
    assert "label-binary" in {finding.kind for finding in findings}


def test_one_folder_of_masks_is_as_good_as_two(broken_root):
    masks_in_both(broken_root)
    for split in ("train", "val"):
        shutil.rmtree(broken_root / split / "label2")
    assert inspect_dataset(broken_root, CHANGE_CLASSES).findings == []


def test_masks_all_white_are_named_with_their_own_remedy(broken_root):
    masks_in_both(broken_root)
    for path in broken_root.glob("*/label[12]/*.png"):
        Image.new("L", (SIDE, SIDE), 255).save(path)
    classes = load_classes(broken_root)
    (finding,) = inspect_dataset(broken_root, classes).findings
    assert finding.kind == "all-marked" and "--unchanged-where-equal" not in str(finding)


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_two_kinds_are_refused_and_predicted(split, broken_root, tmp_path, capsys):
    semantic = small_model(0 if split == "train" else 6)
    state = {"format": 1, "config": semantic.config.to_dict(), "model": semantic.state_dict()}
    torch.save(state, tmp_path / "a.pth")
    for path in (broken_root / split / "label1").iterdir():
        changed = SECOND_CLASSES.to_index(np.asarray(Image.open(path))) > 0
        save_change_mask(broken_root / split / "label" / path.name, changed.astype(np.uint8))
    for folder in ("label1", "label2"):
        shutil.rmtree(broken_root / split / folder)
    with pytest.raises(DataError, match=r"val: labels in label.*train has them in label.*--split"):
        train.main(train_options(broken_root, tmp_path))
    argv = options(broken_root, tmp_path, "--checkpoints", tmp_path / "a.pth")
    assert predict.main(argv) is None
    assert "predicting without scores" in capsys.readouterr().out
    assert len(list((tmp_path / "masks/test").glob("*/*.png"))) == (4 if split == "train" else 8)
    chosen, _, _ = split_pairs(broken_root, SplitOptions("every-10th"))
    assert chosen.val == ("train/00000", "train/00010")


@pytest.mark.parametrize("script", [train, check_data])
def test_folders_a_and_b_are_named_with_the_remedy(script, binary_root, tmp_path):
    shutil.copytree(binary_root, tmp_path / "root")
    for old, new in (("im1", "A"), ("im2", "B")):
        (tmp_path / "root/train" / old).rename(tmp_path / "root/train" / new)
    argv = [str(tmp_path / "root"), "--outdir", str(tmp_path / "out"), "--workers", "1"]
    argv = argv if script is check_data else train_options(tmp_path / "root", tmp_path / "out")
    with pytest.raises(DataError, match=r"rename .*train/A to im1 and .*train/B to im2"):
        script.main(argv)
