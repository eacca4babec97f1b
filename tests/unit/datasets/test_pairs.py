"""The folder layout: pairs found by name, and names that fit nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import CHANGE_CLASSES, SECOND_CLASSES
from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import index_pairs, index_voted_pairs, scan_folder, split_pairs
from datasets.splits import SplitOptions
from datasets.task import Task
from utils.errors import DataError

FOLDERS = ("im1", "im2", "label1", "label2")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def index_error(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        index_pairs(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".JPG", ".TIF"])
def test_every_suffix_is_an_image(write_pairs, suffix):
    folder = write_pairs({"b": (20, 30), "a": (20, 30)})
    for name in FOLDERS[: 2 if suffix.lower().startswith(".jp") else 4]:
        for path in list((folder / name).iterdir()):
            image = Image.open(path)
            image.load()
            path.unlink()
            image.save(path.with_suffix(suffix))
    pairs = index_pairs(folder)
    assert [(pair.id, pair.name) for pair in pairs] == [("train/a", "a"), ("train/b", "b")]
    assert pairs[0].image1 == folder / "im1" / f"a{suffix}"
    sample = ChangeDetectionDataset(pairs, Task(SECOND_CLASSES))[0]
    assert sample["image2"].shape == (3, 20, 30)
    assert sample["label1"].any()


def test_arrays_are_images_and_no_labels(write_pairs):
    folder = write_pairs({"a": (9, 13)})
    for name in FOLDERS[:2]:
        np.save(folder / name / "a.npy", np.zeros((9, 13, 3), np.uint8))
        (folder / name / "a.png").unlink()
    (pair,) = index_pairs(folder)
    assert pair.image1.name == "a.npy" and pair.name == "a"
    (folder / "label1" / "a.png").rename(folder / "label1" / "a.npy")
    assert "no partner in label1" in index_error(folder)


def test_partners_are_found_by_stem(write_pairs):
    folder = write_pairs({"a": (20, 30), "a.1": (20, 30)})
    names = ("{}.PNG", "{}.tif", "{}.png", "{}.bmp")
    for stem in ("a", "a.1"):
        for kind, name in zip(FOLDERS, names, strict=True):
            (folder / kind / f"{stem}.png").rename(folder / kind / name.format(stem))
    pairs = index_pairs(folder)
    assert [pair.name for pair in pairs] == ["a", "a.1"]
    for pair in pairs:
        assert [path.name for path in pair.files] == [name.format(pair.name) for name in names]


def test_other_files_are_ignored_and_named(write_pairs):
    folder = write_pairs({"a": (20, 30)})
    for name in (".a.png", "Thumbs.db", "notes.txt", "a.png.xml", "png", "a.webp"):
        for kind in ("im1", "label2"):
            (folder / kind / name).write_text("no image")
    for name in ("more", "b.png"):
        (folder / "im2" / name).mkdir()
    scan = scan_folder(folder)
    assert [pair.name for pair in index_pairs(folder) + scan.pairs] == ["a", "a"]
    assert {problem.kind for problem in scan.problems} == {"ignored-files"}
    assert len(scan.problems) == 12


def test_pairs_are_sorted_by_name(write_pairs):
    folder = write_pairs(dict.fromkeys(("10", "9", "b", "a", "B"), (4, 4)))
    assert [pair.name for pair in index_pairs(folder)] == ["10", "9", "B", "a", "b"]
    kinds = {(p.kind, *(path.stem for path in p.files)) for p in scan_folder(folder).problems}
    assert kinds == {("name-case", "B", "b")}


def test_missing_and_empty_folders(tmp_path):
    folder = tmp_path / "train"
    assert index_error(folder).startswith(f"{folder}: no such folder; ")
    (folder / "im1").mkdir(parents=True)
    assert index_error(folder).startswith(f"{folder}/im2: no such folder; a data set has im1")
    (folder / "im2").mkdir()
    message = index_error(folder)
    assert message.startswith(f"{folder}/im1: no images")
    assert all(suffix[1:] in message for suffix in SUFFIXES)


def test_folders_a_and_b_are_named_with_the_remedy(binary_root, tmp_path):
    train = tmp_path / "set" / "train"
    shutil.copytree(binary_root, train.parent)
    for old, new in (("im1", "A"), ("im2", "B")):
        (train / old).rename(train / new)
    assert f"rename {train / 'A'} to im1 and {train / 'B'} to im2" in index_error(train)


def test_one_name_in_two_forms_of_unicode(write_pairs, tmp_path):
    folder = write_pairs({"caf\u00e9": (4, 4), "b": (4, 4), "c": (4, 4)})
    (tmp_path / "val.txt").write_text("cafe\u0301.png\n", encoding="utf-8")
    split, _, _ = split_pairs(folder.parent, SplitOptions(val_list=tmp_path / "val.txt"))
    assert split.val == ("train/caf\u00e9",)
    (folder / "im2/caf\u00e9.png").rename(folder / "im2/cafe\u0301.png")
    message = index_error(folder)
    assert r"spells the name in other bytes (here 'cafe\u0301', decomposed Unicode)" in message


def test_pairs_in_unread_formats_are_named(write_pairs):
    folder = write_pairs({"a": (4, 4)})
    for name in ("im1", "im2"):
        Image.new("RGB", (4, 4)).save(folder / name / "b.webp")
        (folder / name / "c.jp2").write_bytes(b"")
    message = index_error(folder)
    assert message.startswith(f"{folder}/im1/b.webp: a pair in a format that is not read (and 1")
    assert "save it as one of bmp, jpeg, jpg, npy, png, tif, tiff" in message
    for name in ("a.webp", "notes.webp"):  # beside a pair, and no pair
        shutil.move(folder / "im1/b.webp", folder / "im1" / name)
        (folder / "im2/c.jp2").unlink(missing_ok=True)
        assert [pair.name for pair in index_pairs(folder)] == ["a"]
        shutil.copy(folder / "im1" / name, folder / "im1/b.webp")


@pytest.mark.parametrize("removed", FOLDERS)
def test_file_without_partner(broken_root, removed):
    folder = broken_root / "train"
    there = folder / ("im2" if removed == "im1" else "im1")
    (folder / removed / "00003.png").unlink()
    said = f"{there / '00003.png'}: no partner in {removed}; add the file or rem"
    assert index_error(folder).startswith(said)
    for i in (5, 7):
        (folder / removed / f"{i:05d}.png").unlink()
    assert f"no partner in {removed} (and 2 more); " in index_error(folder)
    scan = scan_folder(folder)
    assert [problem.kind for problem in scan.problems] == ["no-partner"] * 3
    assert len(scan.pairs) == (12 if removed.startswith("label") else 9)
    assert sum(bool(pair.labels) for pair in scan.pairs) == 9


@pytest.mark.parametrize("name", ["im1", "label2"])
def test_same_stem_twice(broken_root, name):
    folder = broken_root / "train" / name
    shutil.copy(folder / "00003.png", folder / "00003.tif")
    message = index_error(broken_root / "train")
    assert message == f"{folder}/00003.tif and 00003.png: same name twice; remove one"


def test_votes_need_the_classes_of_both_dates(sample_root, broken_root):
    assert index_voted_pairs(sample_root, SECOND_CLASSES) == index_pairs(sample_root / "train")
    with pytest.raises(DataError, match="nothing to vote"):
        index_voted_pairs(sample_root, CHANGE_CLASSES)
    shutil.rmtree(broken_root / "train/label2")
    with pytest.raises(DataError, match="no label2; a vote fills in"):
        index_voted_pairs(broken_root, SECOND_CLASSES)


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"train/{i:05d}" for i in numbers)


def test_a_labelled_val_folder_is_validated_on(sample_root):
    split, train, val = split_pairs(sample_root)
    assert split.protocol == "folders"
    assert split.train == ids(*range(12))
    assert split.val == tuple(f"val/{i:05d}" for i in range(4))
    assert [pair.image1 for pair in train] == sorted((sample_root / "train" / "im1").iterdir())
    assert [pair.label2 for pair in val] == sorted((sample_root / "val" / "label2").iterdir())


def test_without_it_every_10th_is(unlabelled_val_root, broken_root):
    shutil.rmtree(broken_root / "val")
    for root in (unlabelled_val_root, broken_root):
        split, train, val = split_pairs(root)
        assert split.protocol == "every-10th"
        assert split.val == tuple(pair.id for pair in val) == ids(0, 10)
        assert split.train == tuple(pair.id for pair in train) == ids(*range(1, 10), 11)


def test_half_labelled_val_stays_the_validation_set_whichever_half(broken_root):
    # Falling back to another protocol in silence would change what a score means.
    for missing, date in (("label2", 1), ("label1", 2)):
        shutil.rmtree(broken_root / "val" / missing)
        split, _, val = split_pairs(broken_root)
        assert split.protocol == "folders"
        assert all(pair.labelled_dates == (date,) for pair in val)
        shutil.copytree(broken_root / "val" / "truth1", broken_root / "val" / missing)


def test_what_is_asked_for_wins(sample_root, unlabelled_val_root, tmp_path):
    (tmp_path / "val.txt").write_text("00011.png\n00002.png\n")
    split, train, val = split_pairs(sample_root, SplitOptions(val_list=tmp_path / "val.txt"))
    assert split.protocol == "lists" and len(train) == 10
    assert tuple(pair.id for pair in val) == ids(2, 11)
    assert split_pairs(sample_root, SplitOptions("every-10th"))[0].val == ids(0, 10)
    assert split_pairs(sample_root, SplitOptions("folders")) == split_pairs(sample_root)
    with pytest.raises(DataError, match="leaves none to validate on"):
        split_pairs(unlabelled_val_root, SplitOptions("random", val_fraction=0.01))


def test_training_needs_labels_of_one_kind(broken_root):
    (broken_root / "val/label1").rename(broken_root / "val/label")
    shutil.rmtree(broken_root / "val/label2")
    with pytest.raises(DataError, match=r"val: labels in label.*train has them in label.*--split"):
        split_pairs(broken_root)
    assert split_pairs(broken_root, SplitOptions("every-10th"))[0].val == ids(0, 10)
    for folder in ("label1", "label2"):
        shutil.rmtree(broken_root / "train" / folder)
    with pytest.raises(DataError, match="train: no label1 and label2"):
        split_pairs(broken_root)
