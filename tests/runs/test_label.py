"""label.py: pseudo masks, what they keep and what is trained on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import label
import test as predict
import train
from datasets.labels import read_label
from datasets.task import load_classes
from tests.helpers.runs import TRAIN_NAMES, best_files, keys, read_masks
from tests.helpers.runs import options as argv
from tests.helpers.runs import train_options as train_argv
from utils.errors import CheckpointError, DataError, OptionError


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"im{date}/{path.stem}": read_label(path, load_classes(folder.parent))
        for date in (1, 2)
        for path in sorted((folder / f"label{date}").glob("*.png"))
    }


@pytest.mark.parametrize(
    "options", [(), ("--no-tta", "--vote", "soft"), ("--vote", "soft", "--min-confidence", "1")]
)
def test_pseudo_masks_keep_the_ground_truth(options, ensemble_outdir, sample_root, capsys):
    coverage = label.main(argv(sample_root, ensemble_outdir, *options))
    masks, labels = (
        read_masks(ensemble_outdir / "masks" / "train"),
        labels_of(sample_root / "train"),
    )
    assert set(masks) == set(labels) == keys(TRAIN_NAMES)
    for key, truth in labels.items():
        assert np.array_equal(masks[key][truth > 0], truth[truth > 0]), key
    pixels = sum(mask.size for mask in masks.values())
    covered = sum(int((mask > 0).sum()) for mask in masks.values())
    labelled = sum(int((truth > 0).sum()) for truth in labels.values())
    assert coverage.after == pytest.approx(covered / pixels)
    assert coverage.before == pytest.approx(labelled / pixels)
    if "1" in options:
        assert covered == labelled  # nobody is that sure
    elif "soft" in options:
        assert covered == pixels
    else:
        assert labelled < covered <= pixels
    printed = capsys.readouterr().out
    for best in best_files(ensemble_outdir):  # one of each run
        assert best.name in printed
    assert "with 2 models" in printed


def test_unlabelled_pixels_get_one_vote_for_both_dates(ensemble_outdir, sample_root):
    label.main(argv(sample_root, ensemble_outdir, "--no-tta"))
    masks, labels = (
        read_masks(ensemble_outdir / "masks" / "train"),
        labels_of(sample_root / "train"),
    )
    for name in TRAIN_NAMES:
        free = labels[f"im1/{name}"] == 0
        assert np.array_equal(masks[f"im1/{name}"][free], masks[f"im2/{name}"][free])


def test_named_checkpoints_only(ensemble_outdir, sample_root, capsys):
    path = best_files(ensemble_outdir)[0]
    label.main(argv(sample_root, ensemble_outdir, "--no-tta", "--checkpoints", path))
    assert "with 1 models" in capsys.readouterr().out


def test_pseudo_masks_are_trained_on(ensemble_outdir, sample_root):
    label.main(argv(sample_root, ensemble_outdir, "--no-tta", "--vote", "soft"))
    before = len(best_files(ensemble_outdir))
    train.main(train_argv(sample_root, ensemble_outdir, "--use-pseudo-label", "--seed", 3))
    assert len(best_files(ensemble_outdir)) == before + 1


def test_masks_of_two_ensembles_are_not_trained_on(
    ensemble_outdir, sample_root, monkeypatch, capsys
):
    options = argv(sample_root, ensemble_outdir, "--no-tta", "--test-batch-size", 4)
    student = train_argv(sample_root, ensemble_outdir, "--use-pseudo-label", "--seed", 3)
    label.main(options)
    votes = iter([label.vote_batch])  # for one batch of three

    def killed(*args):
        for vote in votes:
            return vote(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(label, "vote_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            label.main([*options, "--vote", "soft"])
    with pytest.raises(OptionError, match=r"label\.py has not come to its end .* of 12 pairs"):
        train.main(student)
    label.main([*options, "--vote", "soft"])
    train.main(student)


def test_masks_without_a_journal_are_trained_on(sample_root, tmp_path):
    masks = tmp_path / "out" / "masks" / "train"
    for date in (1, 2):
        shutil.copytree(sample_root / "train" / f"label{date}", masks / f"im{date}")
    train.main(train_argv(sample_root, tmp_path / "out", "--use-pseudo-label"))


def test_missing_folder_of_pseudo_masks_is_an_error(sample_root, tmp_path):
    with pytest.raises(OptionError, match=r"no pseudo masks there; run label\.py first"):
        train.main(train_argv(sample_root, tmp_path, "--use-pseudo-label"))
    assert not (tmp_path / "models").exists()


def test_a_folder_of_pseudo_masks_that_nothing_would_read_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--pseudo-label-root", str(tmp_path)])
    assert stop.value.code == 2
    assert "--pseudo-label-root needs --use-pseudo-label" in capsys.readouterr().err


def test_missing_pseudo_mask_is_an_error(sample_root, tmp_path):
    masks = tmp_path / "masks"
    for date in (1, 2):
        shutil.copytree(sample_root / "train" / f"label{date}", masks / f"im{date}")
    (masks / "im2" / "00007.png").unlink()
    options = ("--use-pseudo-label", "--pseudo-label-root", masks)
    with pytest.raises(DataError, match=r"im2/00007\.png: no pseudo mask for this pair"):
        train.main(train_argv(sample_root, tmp_path / "out", *options))


@pytest.mark.parametrize("script", [label, predict])
def test_checkpoint_of_other_classes_is_refused_before_the_work(
    script, fcn_run, custom_run, sample_root, tmp_path
):
    checkpoints = (fcn_run.best, *best_files(custom_run))
    with pytest.raises(CheckpointError, match="trained on the classes same, open, built"):
        script.main(argv(sample_root, tmp_path, "--checkpoints", *checkpoints))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [label, predict])
def test_no_checkpoints_is_an_error(script, sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="train a model first"):
        script.main(argv(sample_root, tmp_path))
