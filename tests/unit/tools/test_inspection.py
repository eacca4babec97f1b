"""What an inspection of a data set finds: nothing in a clean one, each damage by its name."""

import shutil

import numpy as np
import pytest

from datasets.classes import SECOND_CLASSES
from datasets.splits import SplitOptions, k_fold
from tests.helpers.damages import (
    DAMAGES,
    binary_labels,
    indices,
    kinds,
)
from tests.helpers.image_files import write
from tools.checking.duplicates import VIEWS, perceptual_hashes, see
from tools.checking.findings import KINDS
from tools.checking.inspection import inspect_dataset


def test_clean_set_has_no_findings(sample_root):
    report = inspect_dataset(sample_root, SECOND_CLASSES)
    assert report.findings == []
    assert report.splits == ["train", "val"]
    assert [pair.split for pair in report.pairs] == ["train"] * 12 + ["val"] * 4
    assert all(file.size == (64, 64) for pair in report.pairs for file in pair.images)


def test_counts_equal_a_plain_count_of_the_labels(sample_root):
    report = inspect_dataset(sample_root, SECOND_CLASSES)
    expected = np.zeros((7, 7), dtype=int)
    for path in sorted((sample_root / "train" / "label1").iterdir()):
        np.add.at(expected, tuple(indices(sample_root, path.stem)), 1)
    assert np.array_equal(report.transitions("train"), expected)
    changed = np.mean([pair.changed for pair in report.pairs if pair.split == "train"])
    assert changed == pytest.approx(1 - expected[0, 0] / expected.sum())


def test_unlabelled_val_is_a_test_set_and_every_10th_is_held_out(unlabelled_val_root):
    report = inspect_dataset(unlabelled_val_root, SECOND_CLASSES)
    splits = {pair.pair.id: pair.split for pair in report.pairs}
    assert [name for name, split in splits.items() if split == "held out of train"] == [
        "train/00000",
        "train/00010",
    ]
    assert splits["val/00000"] == "val"
    assert report.findings == []


def test_few_readable_labels_say_nothing_about_the_whole_set(broken_root):
    binary_labels(broken_root)
    for date in (1, 2):
        write(broken_root / f"train/label{date}/00004.png", np.full((64, 64, 3), 255, np.uint8))
    assert set(kinds(broken_root)) == {"label-binary"}


def test_the_split_decides_what_leaks(broken_root, tmp_path):
    shutil.copy(broken_root / "train/im1/00003.png", broken_root / "train/im1/00004.png")
    files = ["train/im1/00003.png", "train/im1/00004.png"]
    assert kinds(broken_root) == {"duplicate-exact": files}
    val_list, train_list = tmp_path / "val.txt", tmp_path / "train.txt"
    val_list.write_text("00004\n00005\n")
    assert kinds(broken_root, split=SplitOptions(val_list=val_list)) == {"leak-exact": files}
    train_list.write_text("".join(f"{i:05d}\n" for i in (0, 1, 2, 6, 7, 8, 9, 10, 11)))
    assert kinds(broken_root, split=SplitOptions("lists", val_list, train_list)) == {}
    names = [f"train/{i:05d}" for i in range(12)]
    for fold in range(3):
        val = k_fold(names, 3, fold, 0).val
        found = set(kinds(broken_root, split=SplitOptions("k-fold", folds=3, fold=fold)))
        apart = ("train/00003" in val) != ("train/00004" in val)
        assert ("leak-exact" in found, "duplicate-exact" in found) == (apart, not apart)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_gives_its_finding_and_no_other(damage, broken_root):
    expected = damage(broken_root)
    assert kinds(broken_root) == expected


def test_every_kind_is_tested(broken_root, tmp_path):
    tested = set()
    for number, damage in enumerate(DAMAGES):
        root = tmp_path / str(number)
        shutil.copytree(broken_root, root)
        tested |= set(damage(root))
    assert tested == set(KINDS)


def test_hashes_of_views_equal_hashes_of_turned_pictures():
    rng = np.random.default_rng(1)
    thumbnails = rng.integers(0, 256, (5, 32, 32), dtype=np.uint8)
    hashes = perceptual_hashes(thumbnails)
    for number, view in enumerate(VIEWS):
        seen = np.stack([see(thumbnail, *view) for thumbnail in thumbnails])
        assert np.array_equal(perceptual_hashes(seen)[0], hashes[number])
    assert len(np.unique(hashes.reshape(40, 64), axis=0)) == 40
