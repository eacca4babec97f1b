"""test.py: masks, scores, batches and time limits."""

import pytest

import test as predict
from tests.helpers.runs import VAL_NAMES, assert_metrics, keys, read_masks, score_of
from tests.helpers.runs import options as argv


@pytest.mark.parametrize("tta", [(), ("--tta",)])
def test_prediction_without_labels(tta, ensemble_outdir, unlabelled_val_root, capsys):
    assert predict.main(argv(unlabelled_val_root, ensemble_outdir, *tta)) is None
    assert set(read_masks(ensemble_outdir / "masks" / "test")) == keys(VAL_NAMES)
    assert "mIoU" not in capsys.readouterr().out


def test_prediction_with_labels_scores_as_in_training(fcn_run, sample_root, tmp_path):
    metrics = predict.main(argv(sample_root, tmp_path, "--checkpoints", fcn_run.best))
    # Folded batch norm rounds otherwise; a pixel on a border may fall to the other side.
    assert_metrics(metrics, fcn_run.metrics, tolerance=1e-3)
    assert_metrics(score_of(tmp_path / "masks" / "test", sample_root / "val"), metrics)


def test_prediction_of_the_validation_pairs(fcn_run, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text("00003.png\n00005.png\n", encoding="utf-8")
    options = ("--split", "val", "--val-list", names, "--checkpoints", fcn_run.best)
    metrics = predict.main(argv(sample_root, tmp_path, *options))
    folder = tmp_path / "masks" / "val"
    assert set(read_masks(folder)) == keys(["00003", "00005"])
    assert_metrics(score_of(folder, sample_root / "train"), metrics)
    assert not (tmp_path / "masks" / "test").exists()


def test_batch_size_does_not_change_the_masks(ensemble_outdir, sample_root):
    found = []
    for size in (1, 4):
        predict.main(argv(sample_root, ensemble_outdir, "--tta", "--test-batch-size", size))
        found.append(read_masks(ensemble_outdir / "masks" / "test"))
    differing = sum(int((found[0][key] != found[1][key]).sum()) for key in found[0])
    assert differing <= 2  # of 32,768: convolutions may round otherwise


def test_generous_time_limit_changes_nothing(fcn_run, sample_root, tmp_path, capsys):
    options = ("--tta", "--checkpoints", fcn_run.best, "--test-batch-size", 2)
    free = predict.main(argv(sample_root, tmp_path, *options))
    capsys.readouterr()
    limited = predict.main(argv(sample_root, tmp_path, *options, "--time-limit", 1000))
    assert_metrics(limited, free)
    printed = capsys.readouterr().out
    assert "views" not in printed
    assert "missed" not in printed


def test_impossible_time_limit_leaves_one_view_and_says_so(fcn_run, sample_root, tmp_path, capsys):
    options = (
        "--tta",
        "--checkpoints",
        fcn_run.best,
        "--test-batch-size",
        2,
        "--time-limit",
        0.001,
    )
    metrics = predict.main(argv(sample_root, tmp_path, *options))
    printed = capsys.readouterr().out
    assert "1 of 6 views from pair 0 on, to end in time" in printed
    assert "time limit missed by" in printed
    assert set(read_masks(tmp_path / "masks" / "test")) == keys(VAL_NAMES)
    # The one view is the image as it is; smaller batches may round otherwise.
    assert_metrics(metrics, fcn_run.metrics, tolerance=1e-3)
