"""Labels of one date alone: that date is learnt and scored, and every score says so."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from datasets.classes import SECOND_CLASSES
from datasets.labels import read_label
from engine.metrics import ConfusionMatrix, compute_metrics
from tests.helpers.runs import (
    PREFIX,
    Run,
    best_files,
    latest_file,
    options,
    read_masks,
    train_options,
)
from tools import check_data, pseudo_accuracy, report
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint

OF_BOTH = {"score", "sek", "f_scd", "oa", "kappa"}


def without(root: Path, target: Path, *folders: str) -> Path:
    shutil.copytree(root, target)
    for folder in folders:
        shutil.rmtree(target / folder)
    return target


@pytest.fixture(scope="module")
def one_date_root(sample_root, tmp_path_factory) -> Path:
    """The sample set without labels of date 2. Read only."""
    target = tmp_path_factory.mktemp("one_date") / "root"
    return without(sample_root, target, "train/label2", "val/label2")


@pytest.fixture(scope="module")
def run(one_date_root, tmp_path_factory) -> Run:
    """A run on it, with the masks of the test set. Read only."""
    outdir = tmp_path_factory.mktemp("one_date_run")

    def argv(outdir: Path, *more: object) -> list[str]:
        return train_options(one_date_root, outdir, *more)

    train.main(argv(outdir))
    return Run(outdir, argv, predict.main(options(one_date_root, outdir)))


def score_date(folder: Path, root: Path, date: int) -> dict:
    """Scores of the masks of one date."""
    confusion = ConfusionMatrix(7)
    for key, mask in read_masks(folder).items():
        if key.startswith(f"im{date}/"):
            truth = read_label(root / f"label{date}" / f"{key[4:]}.png", SECOND_CLASSES)
            confusion.update(torch.from_numpy(mask), torch.from_numpy(truth))
    return compute_metrics(confusion.counts).to_dict()


@pytest.mark.parametrize("date", [1, 2])
def test_train_and_test(date, run, one_date_root, sample_root, tmp_path, capsys):
    root, outdir = one_date_root, run.outdir
    if date == 2:
        root = without(sample_root, tmp_path / "root", "train/label1", "val/label1")
        outdir = tmp_path / "out"
        train.main(train_options(root, outdir))
    (best,) = best_files(outdir)
    values = read_checkpoint(best)["metrics"]
    assert best.name == f"{PREFIX}_{100 * values[f'score_date{date}']:.2f}.pth"
    with next((outdir / "logs").glob("*/metrics.csv")).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {f"loss_semantic{date}", f"iou_water_date{date}", "iou_changed"} <= row.keys()
    assert f"loss_semantic{3 - date}" not in row
    total = 2 * float(row["loss_change"]) + float(row[f"loss_semantic{date}"])
    assert float(row["loss_total"]) == pytest.approx(total, rel=1e-5)
    assert {f"score_date{date}", f"sek_date{date}", f"f_scd_date{date}", "miou"} <= row.keys()
    assert not (OF_BOTH | {"class_iou"}) & (row.keys() | values.keys())
    for _ in range(2):  # predicted, and finished already
        metrics = predict.main(options(root, outdir))
        printed = capsys.readouterr().out
        assert f"labels of date {date} only:  Score" in printed
        assert f"Score of date {date} only" in printed  # of the checkpoint
        assert metrics.score == pytest.approx(values[f"score_date{date}"], abs=1e-3)
    assert "finished already" in printed
    expected = score_date(outdir / "masks/test", root / "val", date)
    found = json.loads((outdir / "masks/test/metrics.json").read_text())
    assert found[f"score_date{date}"] == pytest.approx(expected["score"])
    assert found["miou"] == pytest.approx(expected["miou"])
    assert len(read_masks(outdir / "masks/test")) == 8  # both dates are predicted


def test_training_says_so_and_votes_need_both(run, one_date_root, tmp_path, capsys):
    train.main(run.argv(run.outdir, "--load-from", run.best))
    assert "training: labels of date 1 only" in capsys.readouterr().out
    with pytest.raises(DataError, match="no label2; a vote"):
        label.main(options(one_date_root, run.outdir))
    with pytest.raises(DataError, match="no label2; a vote"):
        pseudo_accuracy.main(["--data-root", str(one_date_root), "--masks", str(tmp_path)])


@pytest.mark.parametrize(
    ("missing", "differ"),
    [((), False), (("train/label2",), True), (("val/label2",), True)],
)
def test_a_date_that_one_split_alone_lacks_is_a_warning(
    missing, differ, sample_root, fcn_run, tmp_path, capsys
):
    root = without(sample_root, tmp_path / "root", *missing)
    train.main(train_options(root, tmp_path / "out", "--load-from", fcn_run.best))
    printed = capsys.readouterr().out
    said = "warning: training and validation differ, is a folder missing?"
    assert printed.count(said) == differ


def test_single_files_that_are_missing_stay_an_error(broken_root, tmp_path):
    shutil.rmtree(broken_root / "train/label2")
    (broken_root / "train/label1/00003.png").unlink()
    with pytest.raises(DataError, match=r"im1/00003\.png: no partner in .*label1"):
        train.main(train_options(broken_root, tmp_path))


def test_a_run_goes_on_with_the_dates_it_had(run, sample_root, tmp_path):
    shutil.copytree(run.outdir, tmp_path / "out")
    argv = train_options(sample_root, tmp_path / "out", "--resume")
    with pytest.raises(OptionError, match=r"dates with labels were .*\[1\].*, now .*\[1, 2\]"):
        train.main(argv)
    train.main(run.argv(tmp_path / "out", "--resume"))
    latest = latest_file(tmp_path / "out")
    state = read_checkpoint(latest)
    assert state.pop("labelled_dates") == {"training": [1], "validation": [1]}
    torch.save(state, latest)  # as older runs left it
    train.main(argv)


def test_report_names_the_date(run):
    page = report.main([str(run.outdir)]).read_text(encoding="utf-8")
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "Score, date 1 only" in shown and "SeK, date 1 only" in shown
    assert ">Score<" not in shown and ">SeK<" not in shown
    assert "without labels of both dates" in shown


def test_check_notes_it(one_date_root, tmp_path, capsys):
    argv = ["--outdir", str(tmp_path), "--workers", "1", "--strict"]
    assert check_data.main([str(one_date_root), *argv]) == 0
    printed = capsys.readouterr().out
    assert "NOTE one-date, 2 ×" in printed and "from \\ to" not in printed
    assert "train 1  val 1" in printed
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["passed"] and "class_pixels_date2" not in found["splits"]["train"]
