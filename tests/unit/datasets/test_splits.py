"""Divisions of a data set: by name, by lists, at random, in folds."""

from pathlib import Path

import pytest

from datasets import splits
from datasets.splits import SplitOptions, divide, parse_k_fold
from utils.errors import DataError, OptionError

IDS = [f"train/{i:05d}" for i in range(25)]


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"train/{i:05d}" for i in numbers)


@pytest.mark.parametrize("pairs", [2, 3, 10, 11, 25, 101])
def test_every_10th_takes_the_first_of_each_ten_by_sorted_name(pairs):
    names = [f"train/{i:05d}" for i in range(pairs)]
    split = splits.every_10th(names[::-1])
    assert split.protocol == "every-10th"
    assert split.val == ids(*range(0, pairs, 10))
    assert split.train == ids(*(i for i in range(pairs) if i % 10))
    shuffled = ["train/b", "train/10", "train/9", "train/a", "train/B"]
    assert splits.every_10th(shuffled).val == ("train/10",)


@pytest.mark.parametrize("style", ["{}", "{}.png", "train/{}", "train/im1/{}.JPG", "  {}.tif\r"])
def test_lists_read_names_with_and_without_folder_and_suffix(tmp_path, style):
    val_list = write_list(tmp_path / "val.txt", *(style.format(f"{i:05d}") for i in (7, 3)), "")
    train_list = write_list(tmp_path / "train.txt", *(style.format(f"{i:05d}") for i in (20, 1)))
    split = splits.from_lists(IDS, train_list, val_list)
    assert split == splits.Split("lists", train=ids(1, 20), val=ids(3, 7))


def test_a_list_alone_also_with_a_byte_order_mark_trains_on_the_rest(tmp_path):
    (tmp_path / "val.txt").write_bytes("00003.png\r\n00007.png\r\n".encode("utf-8-sig"))
    split = splits.from_lists(IDS, None, tmp_path / "val.txt")
    assert split.val == ids(3, 7)
    assert split.train == ids(*(i for i in range(25) if i not in (3, 7)))


def test_dots_are_part_of_a_name(tmp_path):
    names = ["train/a", "train/a.1", "train/a.2"]
    split = splits.from_lists(names, None, write_list(tmp_path / "val.txt", "a.1", "a.2.png"))
    assert split.val == ("train/a.1", "train/a.2")
    assert "'scene_1.50' is no pair" in error_of_lists(
        None, write_list(tmp_path / "val.txt", "scene_1.50"), ["train/scene_1", "train/scene_2"]
    )


def error_of_lists(train_list: Path | None, val_list: Path, names: list[str] = IDS) -> str:
    with pytest.raises(DataError) as caught:
        splits.from_lists(names, train_list, val_list)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("00003", "elsewhere.png"), "'elsewhere.png' is no pair of the training folder; correct"),
        (("00003", "00004", "00003"), "names repeat; list each pair once"),
        (("00003", "00004", "train/00003.png"), "names repeat; list each pair once"),
        (("val/00003",), "'val/00003' is in the test folder"),
        (("", "  "), "no names in it"),
        (IDS, "names every pair, none is left to train on"),
    ],
)
def test_lists_that_fit_no_data_set(tmp_path, lines, message):
    val_list = write_list(tmp_path / "val.txt", *lines)
    assert error_of_lists(None, val_list).startswith(f"{val_list}: {message}")


def test_overlapping_and_unreadable_lists(tmp_path):
    train_list = write_list(tmp_path / "train.txt", "00001", "00002", "00003")
    val_list = write_list(tmp_path / "val.txt", "00003.png", "00002.png")
    both = f"{train_list} and {val_list}: 2 pairs are in both, train/00002 first"
    assert error_of_lists(train_list, val_list).startswith(both)
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path / "absent.txt", tmp_path, tmp_path / "binary.txt"):
        assert error_of_lists(None, path).startswith(f"{path}: cannot be read")


RANDOM_VAL = ids(3, 9, 12, 23, 24)
FOLDS = [
    ids(1, 2, 12, 20, 23),
    ids(4, 5, 14, 18, 19),
    ids(0, 3, 6, 7, 22),
    ids(10, 13, 16, 17, 24),
    ids(8, 9, 11, 15, 21),
]


def test_random_and_k_fold_are_the_same_everywhere():
    # Pinned: another version of a library or another platform must not draw other pairs.
    assert splits.random_fraction(IDS, 0.2, 0).val == RANDOM_VAL
    assert [splits.k_fold(IDS, 5, fold, 3).val for fold in range(5)] == FOLDS


def test_random_goes_by_name_and_seed_alone():
    split = splits.random_fraction(IDS, 0.1, 7)
    assert split == splits.random_fraction(IDS[::-1], 0.1, 7)
    assert split.protocol == "random(fraction=0.1, seed=7)"
    assert len(split.val) == 3  # half a pair is rounded up
    assert split.train == tuple(name for name in IDS if name not in split.val)
    assert len({splits.random_fraction(IDS, 0.1, seed).val for seed in range(20)}) > 10


def test_a_larger_fraction_and_more_pairs_keep_what_was_held_out():
    few, many = (set(splits.random_fraction(IDS, part, 0).val) for part in (0.2, 0.6))
    assert few < many
    more = [*IDS, "train/new"]
    assert set(splits.random_fraction(more, 0.6, 0).val) - {"train/new"} <= many


@pytest.mark.parametrize(("pairs", "folds"), [(2, 2), (25, 5), (25, 4), (7, 7)])
def test_folds_divide_the_pairs(pairs, folds):
    names = IDS[:pairs]
    parts = [splits.k_fold(names, folds, fold, 0) for fold in range(folds)]
    assert sorted(name for part in parts for name in part.val) == names
    assert {len(part.val) for part in parts} <= {pairs // folds, -(-pairs // folds)}
    for fold, part in enumerate(parts):
        assert sorted(part.train + part.val) == names
        assert part.protocol == f"k-fold(k={folds}, fold={fold}, seed=0)"
        assert parse_k_fold(part.protocol) == (f"k-fold(k={folds}, seed=0)", folds, fold)
    assert parse_k_fold(splits.random_fraction(IDS, 0.5, 0).protocol) is None


NONE = "--val-fraction .* of {} .* none to {} on"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda: splits.every_10th([]), "0 labelled pair.*ROOT/val"),
        (lambda: splits.every_10th(IDS[:1]), "1 labelled pair.*ROOT/val"),
        (lambda: splits.random_fraction(IDS, 0.01, 0), NONE.format(25, "validate")),
        (lambda: splits.random_fraction(IDS, 1.0, 0), NONE.format(25, "train")),
        (lambda: splits.random_fraction(IDS[:1], 0.5, 0), NONE.format(1, "train")),
        (lambda: splits.k_fold(IDS[:4], 5, 0, 0), "4 labelled pairs are too few for 5 folds"),
    ],
)
def test_too_few_pairs(split, message):
    with pytest.raises(DataError, match=message):
        split()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_list": "t"}, "--train-list needs --val-list"),
        ({"split": "lists"}, "--split lists needs --val-list"),
        ({"split": "halves"}, "--split halves: choose from every-10th, folders, lists, random"),
        ({"fold": 0}, "--fold is for --split k-fold"),
        ({"split_seed": 0}, "--split-seed is for --split random or k-fold"),
        ({"split": "random", "val_list": "v"}, "--val-list is for --split lists"),
        ({"split": "k-fold", "fold": 0, "val_fraction": 0.1}, "--val-fraction is for --split rand"),
        ({"split": "k-fold"}, "--fold: name the fold to validate on, 0 to 4 of 5"),
        ({"split": "k-fold", "fold": 3, "folds": 3}, "--fold 3: .* 0 to 2 of 3"),
        ({"split": "k-fold", "fold": 0, "folds": 1}, "--folds 1: a k-fold split has at least 2"),
    ],
)
def test_options_that_cannot_be(given, message):
    with pytest.raises(OptionError, match=message) as caught:
        SplitOptions.from_options(given)
    assert len(str(caught.value).splitlines()) == 1


def test_options_choose_a_protocol_and_divide_by_it():
    options = SplitOptions()
    assert (options.choose(True), options.choose(False)) == ("folders", "every-10th")
    assert divide(IDS, options, "every-10th") == splits.every_10th(IDS)
    options = SplitOptions("random")
    assert options.choose(True) == "random"
    assert divide(IDS, options, "random") == splits.random_fraction(IDS, 0.1, 0)
    options = SplitOptions.from_options({"split": "k-fold", "fold": 2, "folds": 4, "split_seed": 9})
    assert divide(IDS, options, "k-fold") == splits.k_fold(IDS, 4, 2, 9)
    assert SplitOptions.from_options({"val_list": "v.txt"}).choose(True) == "lists"
    with pytest.raises(OptionError, match="--split folders: ROOT/val has no label1"):
        SplitOptions("folders").choose(False)
