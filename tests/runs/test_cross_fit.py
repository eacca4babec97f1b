"""label.py --cross-fit: no pair is labelled by a model that was trained on it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import label
import train
from datasets.images import read_bands
from tests.helpers.faults import CrashError, before_prediction, crash
from tests.helpers.runs import TRAIN_NAMES, options, train_options
from utils.errors import CheckpointError, OptionError
from utils.tensor_files import read_checkpoint

FOLDS = 3
LABELLING = ("--no-tta", "--test-batch-size", 5)


@pytest.fixture(scope="module")
def folds(sample_root, tmp_path_factory) -> Path:
    """An outdir with a model of each fold. Read only."""
    outdir = tmp_path_factory.mktemp("folds")
    for fold in range(FOLDS):
        split = ("--split", "k-fold", "--folds", FOLDS, "--fold", fold, "--name", f"fold{fold}")
        train.main(train_options(sample_root, outdir, *split, "--seed", fold))
    return outdir


@pytest.fixture
def outdir(folds, tmp_path) -> Path:
    return Path(shutil.copytree(folds, tmp_path / "out"))


def best_of(outdir: Path, fold: int) -> Path:
    (path,) = (outdir / "models").glob(f"fold{fold}_[0-9]*.pth")
    return path


def written(outdir: Path) -> dict[str, np.ndarray]:
    folder = outdir / "masks" / "train"
    return {str(p.relative_to(folder)): read_bands(p) for p in folder.glob("*/*.png")}


@pytest.mark.parametrize("more", [(), ("--targets", "soft", "--vote", "soft")])
def test_each_pair_is_labelled_by_models_of_other_pairs(
    more, folds, outdir, sample_root, tmp_path, capsys
):
    argv = options(sample_root, outdir, *LABELLING, *more)
    label.main([*argv, "--cross-fit"])
    printed = capsys.readouterr().out
    assert "\ncross-fit: each pair by 1 of them\n" in printed and "; --cross-fit" not in printed
    found, checked = written(outdir), set()
    for fold in range(FOLDS):
        alone = tmp_path / f"alone{fold}"
        checkpoint = best_of(folds, fold)
        label.main(options(sample_root, alone, *LABELLING, *more, "--checkpoints", checkpoint))
        split, expected = read_checkpoint(checkpoint)["split"], written(alone)
        assert len(split["train"]) == 8
        names = {name.removeprefix("train/") for name in split["val"]}
        for key, values in expected.items():
            if Path(key).stem in names:
                apart = np.abs(found[key].astype(int) - values).max()
                assert apart <= key.startswith("soft"), key  # batches of others: last digits
                checked.add(key)
    assert checked == found.keys() and {Path(key).stem for key in checked} == set(TRAIN_NAMES)
    label.main(argv)  # is other work
    assert "each model was trained on 8 of these 12 pairs" in capsys.readouterr().out
    assert any(not np.array_equal(values, found[key]) for key, values in written(outdir).items())


def test_killed_work_goes_on(folds, outdir, sample_root, tmp_path, capsys):
    argv = ("--cross-fit", "--no-tta", "--test-batch-size", 2)
    whole = Path(shutil.copytree(folds, tmp_path / "whole"))
    label.main(options(sample_root, whole, *argv))
    with before_prediction(5, crash), pytest.raises(CrashError):
        label.main(options(sample_root, outdir, *argv))
    capsys.readouterr()
    label.main(options(sample_root, outdir, *argv))
    assert "8 pairs were finished already" in capsys.readouterr().out
    found, expected = written(outdir), written(whole)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], values) for key, values in expected.items())


def test_pairs_that_all_were_trained_on_are_refused(outdir, sample_root, tmp_path):
    names = (best_of(outdir, 0), best_of(outdir, 1))
    argv = options(sample_root, tmp_path, "--cross-fit", "--checkpoints", *names)
    with pytest.raises(
        OptionError, match=r"trained on 4 of 12 pairs, such as train/0\d+; train one"
    ):
        label.main(argv)
    state = read_checkpoint(names[0])
    del state["split"]
    torch.save(state, names[0])
    with pytest.raises(CheckpointError, match="does not tell which pairs it was trained on"):
        label.main(argv)
    assert not (tmp_path / "masks").exists()
