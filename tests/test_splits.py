import json
import shutil
from pathlib import Path

import pytest

from datasets import split_pairs, splits
from utils.errors import DataError, OptionError

IDS = [f"train/{i:05d}" for i in range(25)]


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"train/{i:05d}" for i in numbers)


def test_every_10th_takes_the_first_of_each_ten():
    split = splits.every_10th(IDS)
    assert split.protocol == "every-10th"
    assert split.val == ids(0, 10, 20)
    assert split.train == ids(*(i for i in range(25) if i not in (0, 10, 20)))


def test_every_10th_goes_by_sorted_name():
    assert splits.every_10th(IDS[::-1]) == splits.every_10th(IDS)
    shuffled = ["train/b", "train/10", "train/9", "train/a", "train/B"]
    assert splits.every_10th(shuffled).val == ("train/10",)


@pytest.mark.parametrize("pairs", [2, 3, 10, 11, 101])
def test_every_10th_divides(pairs):
    names = [f"train/{i:05d}" for i in range(pairs)]
    split = splits.every_10th(names)
    assert sorted(split.train + split.val) == names
    assert len(split.val) == -(-pairs // 10)
    assert split.train


@pytest.mark.parametrize("names", [[], ["train/a"]])
def test_too_few_pairs_to_hold_some_out(names):
    with pytest.raises(DataError, match=f"{len(names)} labelled pair.*ROOT/val"):
        splits.every_10th(names)


@pytest.mark.parametrize("style", ["{}", "{}.png", "train/{}", "train/im1/{}.JPG", "  {}.tif\r"])
def test_lists_read_names_with_and_without_folder_and_suffix(tmp_path, style):
    val_list = write_list(tmp_path / "val.txt", *(style.format(f"{i:05d}") for i in (7, 3)), "")
    train_list = write_list(tmp_path / "train.txt", *(style.format(f"{i:05d}") for i in (20, 1)))
    split = splits.from_lists(IDS, train_list, val_list)
    assert split == splits.Split("lists", train=ids(1, 20), val=ids(3, 7))


def test_list_with_a_byte_order_mark(tmp_path):
    (tmp_path / "val.txt").write_bytes("00003.png\r\n00007.png\r\n".encode("utf-8-sig"))
    assert splits.from_lists(IDS, None, tmp_path / "val.txt").val == ids(3, 7)


def test_val_list_alone_trains_on_the_rest(tmp_path):
    split = splits.from_lists(IDS, None, write_list(tmp_path / "val.txt", "00000", "00024"))
    assert split.val == ids(0, 24)
    assert split.train == ids(*range(1, 24))


def test_names_with_dots_are_told_apart(tmp_path):
    names = ["train/a", "train/a.1", "train/a.2"]
    split = splits.from_lists(names, None, write_list(tmp_path / "val.txt", "a.1", "a.2.png"))
    assert split.val == ("train/a.1", "train/a.2")


def error_of_lists(train_list: Path | None, val_list: Path) -> str:
    with pytest.raises(DataError) as caught:
        splits.from_lists(IDS, train_list, val_list)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_unknown_name(tmp_path):
    val_list = write_list(tmp_path / "val.txt", "00003", "elsewhere.png")
    message = error_of_lists(None, val_list)
    assert message.startswith(f"{val_list}: 'elsewhere.png'") and "correct the list" in message


@pytest.mark.parametrize("again", ["00003", "00003.png", "train/00003"])
def test_name_twice(tmp_path, again):
    val_list = write_list(tmp_path / "val.txt", "00003", "00004", again)
    message = error_of_lists(None, val_list)
    assert message.startswith(f"{val_list}: ") and "once" in message


def test_overlap_names_both_lists(tmp_path):
    train_list = write_list(tmp_path / "train.txt", "00001", "00002", "00003")
    val_list = write_list(tmp_path / "val.txt", "00003.png", "00002.png")
    message = error_of_lists(train_list, val_list)
    assert str(train_list) in message and str(val_list) in message
    assert "2 pairs" in message and "train/00002" in message


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_list(tmp_path, content):
    full = write_list(tmp_path / "full.txt", "00001")
    (tmp_path / "empty.txt").write_text(content)
    for lists in ((None, tmp_path / "empty.txt"), (tmp_path / "empty.txt", full)):
        message = error_of_lists(*lists)
        assert message.startswith(f"{tmp_path / 'empty.txt'}: no names")


def test_list_that_leaves_nothing_to_train_on(tmp_path):
    val_list = write_list(tmp_path / "val.txt", *IDS)
    assert "none is left to train on" in error_of_lists(None, val_list)


def test_unreadable_lists(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "absent.txt", tmp_path, tmp_path / "binary.txt"):
        assert error_of_lists(None, path).startswith(f"{path}: cannot be read")


def test_to_dict_is_plain():
    split = splits.every_10th(IDS)
    state = split.to_dict()
    assert json.loads(json.dumps(state)) == state
    assert state == {"protocol": "every-10th", "train": list(split.train), "val": list(split.val)}
    assert type(state["train"]) is list and type(state["val"]) is list


def test_split_pairs_takes_a_labelled_val_folder(sample_root):
    split, train, val = split_pairs(sample_root)
    assert split.protocol == "folders"
    assert split.train == ids(*range(12))
    assert split.val == tuple(f"val/{i:05d}" for i in range(4))
    assert [pair.image1 for pair in train] == sorted((sample_root / "train" / "im1").iterdir())
    assert [pair.label2 for pair in val] == sorted((sample_root / "val" / "label2").iterdir())


def test_split_pairs_without_labelled_val_takes_every_10th(unlabelled_val_root):
    split, train, val = split_pairs(unlabelled_val_root)
    assert split.protocol == "every-10th"
    assert split.val == tuple(pair.id for pair in val) == ids(0, 10)
    assert split.train == tuple(pair.id for pair in train)
    assert set(split.train) == set(ids(*range(12))) - {*split.val}


def test_split_pairs_without_val_takes_every_10th(broken_root):
    shutil.rmtree(broken_root / "val")
    assert split_pairs(broken_root)[0].val == ids(0, 10)


def test_half_labelled_val_stays_the_validation_set_whichever_half(broken_root):
    # Falling back to another protocol in silence would change what a score means.
    for missing, date in (("label2", 1), ("label1", 2)):
        shutil.rmtree(broken_root / "val" / missing)
        split, _, val = split_pairs(broken_root)
        assert split.protocol == "folders"
        assert all(pair.labelled_dates == (date,) for pair in val)
        shutil.copytree(broken_root / "val" / "truth1", broken_root / "val" / missing)


def test_split_pairs_prefers_lists_to_a_labelled_val(sample_root, tmp_path):
    val_list = write_list(tmp_path / "val.txt", "00011.png", "00002.png")
    split, train, val = split_pairs(sample_root, val_list=val_list)
    assert split.protocol == "lists"
    assert [pair.id for pair in val] == list(ids(2, 11))
    assert all(pair.image1.parent == sample_root / "train" / "im1" for pair in val)
    assert len(train) == 10
    train_list = write_list(tmp_path / "train.txt", "00001")
    split, train, val = split_pairs(sample_root, train_list, val_list)
    assert [pair.id for pair in train] == list(ids(1))


def test_train_list_needs_a_val_list(sample_root, tmp_path):
    with pytest.raises(OptionError, match="--val-list"):
        split_pairs(sample_root, train_list=write_list(tmp_path / "train.txt", "00001"))


def test_training_needs_labels(broken_root):
    for folder in ("label1", "label2"):
        shutil.rmtree(broken_root / "train" / folder)
    with pytest.raises(DataError, match="train: no label1 and label2"):
        split_pairs(broken_root)
