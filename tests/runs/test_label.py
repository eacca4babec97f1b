"""label.py: pseudo masks, what they keep and what is trained on them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import label
import test as predict
import train
from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from engine.predict import MANIFEST
from tests.helpers.faults import CrashError, before_prediction, crash
from tests.helpers.runs import TRAIN_NAMES, best_files, keys, options, read_masks, train_options
from utils.errors import CheckpointError, DataError, OptionError


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    """Labels by the key of their mask."""
    return {
        f"im{path.parent.name[-1]}/{path.stem}": read_label(path, SECOND_CLASSES)
        for path in sorted(folder.glob("label[12]/*.png"))
    }


def times(folder: Path) -> dict[str, int]:
    return {f"{p.parent.name}/{p.stem}": p.stat().st_mtime_ns for p in folder.glob("im?/*.png")}


@pytest.mark.parametrize(
    "voting",
    [
        (),
        ("--no-tta", "--vote", "soft"),
        ("--vote", "soft", "--min-confidence", "1"),
        ("--no-tta", "--decode", "joint", "--vote", "soft"),
    ],
)
def test_pseudo_masks_keep_the_ground_truth(voting, ensemble_outdir, sample_root, capsys):
    coverage = label.main(options(sample_root, ensemble_outdir, *voting))
    masks, labels = (
        read_masks(ensemble_outdir / "masks" / "train"),
        labels_of(sample_root / "train"),
    )
    assert set(masks) == set(labels) == keys(TRAIN_NAMES)
    for key, truth in labels.items():
        assert np.array_equal(masks[key][truth > 0], truth[truth > 0]), key
    for name in TRAIN_NAMES:
        free = labels[f"im1/{name}"] == 0
        assert np.array_equal(masks[f"im1/{name}"][free], masks[f"im2/{name}"][free])
    pixels = sum(mask.size for mask in masks.values())
    covered = sum(int((mask > 0).sum()) for mask in masks.values())
    labelled = sum(int((truth > 0).sum()) for truth in labels.values())
    assert coverage.labelled[1:].sum() == labelled
    assert coverage.voted[1:].sum() == covered - labelled
    if "1" in voting:
        assert covered == labelled  # nobody is that sure
    elif "soft" in voting:
        assert covered == pixels
    else:
        assert labelled < covered <= pixels
    printed = capsys.readouterr().out
    assert printed.startswith("labelling 12 pairs with 2 models, 1 × cpu:\n")
    for best in best_files(ensemble_outdir):  # one of each run
        assert best.name in printed
    left = [f"{100 - 100 * count / pixels:.2f}" for count in (labelled, covered)]
    assert re.search(rf"\nunlabelled +{left[0]} +{left[1]}\n", printed)
    assert printed.endswith(f"pseudo masks: {ensemble_outdir / 'masks' / 'train'}\n")


def test_a_second_start_makes_what_has_changed_and_counts_the_same(
    ensemble_outdir, broken_root, capsys
):
    argv = options(broken_root, ensemble_outdir, "--no-tta", "--test-batch-size", 4)
    folder = ensemble_outdir / "masks" / "train"
    first, before = label.main(argv), times(folder)
    assert "finished already" not in capsys.readouterr().out
    second = label.main(argv)
    assert times(folder) == before
    image = broken_root / "train" / "im2" / "00005.png"
    image.write_bytes(image.read_bytes())
    third = label.main(argv)
    # The whole batch is made again, so that its pixels are what they were.
    changed = {key for key, time in times(folder).items() if time != before[key]}
    assert changed == keys(["00004", "00005", "00006", "00007"])
    printed = capsys.readouterr().out
    for finished in (12, 8):
        assert f"{finished} pairs were finished already (--overwrite makes them again)" in printed
    for again in (second, third):
        assert torch.equal(first.labelled, again.labelled)
        assert torch.equal(first.voted, again.voted)


def test_named_checkpoints_only_and_what_they_have_seen(
    fcn_run, sample_root, unlabelled_val_root, tmp_path, capsys
):
    names = tmp_path / "val.txt"
    names.write_text("00001\n00002.png\n00005\n", encoding="utf-8")
    more = ("--checkpoints", fcn_run.best)
    label.main(options(sample_root, tmp_path / "out", *more, "--no-tta", "--val-list", names))
    printed = capsys.readouterr().out
    assert "with 1 model, " in printed
    seen = f"warning: leakage: {fcn_run.best} was trained on 3 of the 3 pairs; "
    assert seen in printed
    predict.main(options(sample_root, tmp_path, *more, "--split", "val", "--val-list", names))
    assert seen in capsys.readouterr().out
    for root in (sample_root, unlabelled_val_root):
        predict.main(options(root, tmp_path, *more))
        assert "leakage" not in capsys.readouterr().out


def test_masks_of_two_ensembles_are_not_trained_on(ensemble_outdir, sample_root):
    argv = options(sample_root, ensemble_outdir, "--no-tta", "--test-batch-size", 1)
    student = train_options(sample_root, ensemble_outdir, "--use-pseudo-label", "--seed", 3)
    label.main(argv)
    with before_prediction(14, crash), pytest.raises(CrashError):
        label.main([*argv, "--vote", "soft"])
    with pytest.raises(OptionError, match=r"label\.py has not come to its end .* of 12 pairs"):
        train.main(student)
    label.main([*argv, "--vote", "soft"])
    before = len(best_files(ensemble_outdir))
    train.main(student)
    assert len(best_files(ensemble_outdir)) == before + 1


def labels_as_masks(root: Path, masks: Path) -> Path:
    for date in (1, 2):
        shutil.copytree(root / "train" / f"label{date}", masks / f"im{date}")
    return masks


def test_masks_without_a_manifest_are_trained_on(sample_root, tmp_path):
    masks = labels_as_masks(sample_root, tmp_path / "out" / "masks" / "train")
    assert not (masks / MANIFEST).exists()
    train.main(train_options(sample_root, tmp_path / "out", "--use-pseudo-label"))


def test_missing_pseudo_masks_are_an_error(sample_root, tmp_path):
    argv = train_options(sample_root, tmp_path / "out", "--use-pseudo-label")
    with pytest.raises(OptionError, match=r"no pseudo masks there; run label\.py first"):
        train.main(argv)
    masks = labels_as_masks(sample_root, tmp_path / "masks")
    (masks / "im2" / "00007.png").unlink()
    with pytest.raises(DataError, match=r"im2/00007\.png: no pseudo mask for this pair"):
        train.main([*argv, "--pseudo-label-root", str(masks)])
    with pytest.raises(OptionError, match="--pseudo-label-root needs --use-pseudo-label"):
        train.main(train_options(sample_root, tmp_path / "out", "--pseudo-label-root", masks))
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.parametrize("script", [label, predict])
def test_a_checkpoint_of_other_classes_or_none_is_refused_before_the_work(
    script, fcn_run, custom_run, sample_root, tmp_path
):
    checkpoints = (fcn_run.best, *best_files(custom_run))
    with pytest.raises(CheckpointError, match="trained on the classes same, open, built"):
        script.main(options(sample_root, tmp_path, "--checkpoints", *checkpoints))
    with pytest.raises(CheckpointError, match="train a model first"):
        script.main(options(sample_root, tmp_path))
    assert not list(tmp_path.iterdir())
