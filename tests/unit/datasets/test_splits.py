import json
import shutil
from pathlib import Path

import pytest

import label
import test as predict
import train as train_script
from datasets import splits
from datasets.pairs import split_pairs
from datasets.splits import SplitOptions, parse_k_fold
from tests.helpers.runs import best_files, latest_file, options, train_options
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint

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


@pytest.mark.parametrize(
    ("fraction", "pairs", "side"),
    [(0.0, 25, "validate"), (0.01, 25, "validate"), (1.0, 25, "train"), (0.9, 4, "train"),
     (0.5, 0, "validate"), (0.5, 1, "train")],
)  # fmt: skip
def test_a_fraction_that_leaves_a_side_empty(fraction, pairs, side):
    with pytest.raises(DataError, match=f"--val-fraction .* of {pairs} .* none to {side} on"):
        splits.random_fraction(IDS[:pairs], fraction, 0)


def test_more_folds_than_pairs():
    with pytest.raises(DataError, match="4 labelled pairs are too few for 5 folds"):
        splits.k_fold(IDS[:4], 5, 0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_list": "t"}, "--train-list needs --val-list"),
        ({"split": "lists"}, "--split lists needs --val-list"),
        ({"split": "halves"}, "--split halves: choose from every-10th, folders, lists, random"),
        ({"fold": 0}, "--fold is for --split k-fold"),
        ({"split_seed": 0}, "--split-seed is for --split random or k-fold"),
        ({"split": "random", "folds": 5}, "--folds is for --split k-fold"),
        ({"split": "random", "val_list": "v"}, "--val-list is for --split lists"),
        ({"split": "k-fold", "fold": 0, "val_fraction": 0.1}, "--val-fraction is for --split rand"),
        ({"split": "every-10th", "val_list": "v"}, "--val-list is for --split lists"),
        ({"split": "k-fold"}, "--fold: name the fold to validate on, 0 to 4 of 5"),
        ({"split": "k-fold", "fold": 5}, "--fold 5: name the fold to validate on, 0 to 4 of 5"),
        ({"split": "k-fold", "fold": 3, "folds": 3}, "--fold 3: .* 0 to 2 of 3"),
        ({"split": "k-fold", "fold": 0, "folds": 1}, "--folds 1: a k-fold split has at least 2"),
    ],
)
def test_options_that_cannot_be(given, message):
    with pytest.raises(OptionError, match=message) as caught:
        SplitOptions.from_options(given)
    assert len(str(caught.value).splitlines()) == 1


def test_options_of_a_run_make_the_same_split(sample_root):
    words = ["--split", "k-fold", "--folds", "4", "--fold", "2", "--split-seed", "9"]
    args = vars(train_script.parse_args(["--data-root", str(sample_root), *words]))
    saved = json.loads(json.dumps(args, default=str))
    assert SplitOptions.from_options(saved) == SplitOptions.from_options(args)
    split, _, _ = split_pairs(sample_root, SplitOptions.from_options(saved))
    assert split == splits.k_fold(IDS[:12], 4, 2, 9)


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
    split, train, val = split_pairs(sample_root, SplitOptions(val_list=val_list))
    assert split.protocol == "lists"
    assert [pair.id for pair in val] == list(ids(2, 11))
    assert all(pair.image1.parent == sample_root / "train" / "im1" for pair in val)
    assert len(train) == 10
    train_list = write_list(tmp_path / "train.txt", "00001")
    split, train, val = split_pairs(sample_root, SplitOptions("lists", val_list, train_list))
    assert [pair.id for pair in train] == list(ids(1))


def test_a_protocol_wins_over_what_the_data_suggests(sample_root, unlabelled_val_root):
    assert split_pairs(sample_root, SplitOptions("every-10th"))[0].val == ids(0, 10)
    assert split_pairs(sample_root, SplitOptions("folders")) == split_pairs(sample_root)
    with pytest.raises(OptionError, match="--split folders: ROOT/val has no label1"):
        split_pairs(unlabelled_val_root, SplitOptions("folders"))
    split, train, val = split_pairs(sample_root, SplitOptions("random", val_fraction=0.25))
    assert split == splits.random_fraction(IDS[:12], 0.25, 0)
    assert tuple(pair.id for pair in train) == split.train
    assert tuple(pair.id for pair in val) == split.val and len(val) == 3


def test_training_needs_labels(broken_root):
    for folder in ("label1", "label2"):
        shutil.rmtree(broken_root / "train" / folder)
    with pytest.raises(DataError, match="train: no label1 and label2"):
        split_pairs(broken_root)


# The split of a run, in the scripts


@pytest.fixture(scope="module")
def first_fold(sample_root, tmp_path_factory) -> Path:
    """An outdir with a run on fold 0 of 3."""
    outdir = tmp_path_factory.mktemp("folds")
    train_script.main(train_options(sample_root, outdir, *fold_options(0)))
    return outdir


def fold_options(fold: int) -> list[str]:
    return ["--split", "k-fold", "--folds", "3", "--fold", str(fold)]


def test_the_checkpoint_records_the_fold(first_fold):
    split = splits.k_fold(IDS[:12], 3, 0, 0)
    assert read_checkpoint(latest_file(first_fold))["split"] == split.to_dict()


def test_a_run_is_not_resumed_on_another_fold(first_fold, sample_root):
    resume = ("--resume", latest_file(first_fold))
    with pytest.raises(OptionError, match=r"another split \(k-fold\(k=3, fold=0, seed=0\)\)"):
        train_script.main(train_options(sample_root, first_fold, *fold_options(1), *resume))
    train_script.main(train_options(sample_root, first_fold, *fold_options(0), *resume))


def test_scoring_a_run_on_another_fold_is_leakage(first_fold, sample_root, tmp_path, capsys):
    (best,) = best_files(first_fold)
    warning = f"warning: leakage: {best} was trained on 4 of the 4 validation pairs"
    for fold, warned in ((0, False), (1, True)):
        work = options(sample_root, tmp_path, *fold_options(fold))
        predict.main([*work, "--checkpoints", str(best)])
        assert (warning in capsys.readouterr().out) == warned
        train_script.main([*work, "--load-from", str(best)])
        assert (warning in capsys.readouterr().out) == warned
        label.main([*work, "--checkpoints", str(best), "--no-tta"])
        assert (warning in capsys.readouterr().out) == warned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fold", "0"], "--fold is for --split k-fold"),
        (["--split", "val", "--folds", "3"], "--folds is for --split k-fold"),
        (["--val-list", "names.txt"], "--val-list is for --split lists"),
        (["--split", "k-fold"], "name the fold"),
    ],
)
def test_options_that_test_py_refuses(words, message):
    with pytest.raises(OptionError, match=message):
        predict.parse_args(words)


def test_options_that_test_py_takes():
    assert predict.chosen_split(predict.parse_args([])) is None
    assert predict.chosen_split(predict.parse_args(["--split", "val"])) == SplitOptions()
    lists = ["--split", "val", "--val-list", "names.txt"]
    assert predict.chosen_split(predict.parse_args(lists)).choose(True) == "lists"
    random = predict.chosen_split(predict.parse_args(["--split", "random"]))
    assert random == SplitOptions("random")
