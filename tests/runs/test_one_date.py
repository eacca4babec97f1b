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
from datasets.dataset import ChangeDetectionDataset
from datasets.pairs import index_pairs
from datasets.task import load_classes, missing_labels
from engine.ensemble import describe, find_best_checkpoints
from engine.metrics import LabelCounts, compute_metrics, metrics_from_dict, score_labels
from models.checkpoint import open_checkpoint
from models.losses import ChangeCriterion
from tests.helpers.runs import PREFIX, best_files, latest_file, options, train_options
from tools import check_data, report
from tools.scenes.truth import measure_pseudo_labels
from utils.errors import DataError, OptionError
from utils.tensor_files import read_checkpoint


@pytest.fixture(scope="module")
def one_date_root(sample_root, tmp_path_factory) -> Path:
    """The sample set without labels of date 2. Read only."""
    root = tmp_path_factory.mktemp("one_date") / "root"
    shutil.copytree(sample_root, root)
    for split in ("train", "val"):
        shutil.rmtree(root / split / "label2")
    return root


def random_maps(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 7, (2, 20, 20), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("date", [1, 2])
def test_a_sample_has_what_is_labelled(date, sample_root, broken_root):
    shutil.rmtree(broken_root / "train" / f"label{3 - date}")
    pairs = index_pairs(broken_root / "train")
    assert pairs[0].labelled_dates == (date,)
    sample = ChangeDetectionDataset(pairs, SECOND_CLASSES)[3]
    whole = ChangeDetectionDataset(index_pairs(sample_root / "train"), SECOND_CLASSES)[3]
    assert set(whole) - set(sample) == {f"label{3 - date}"}
    for key in (f"label{date}", "change_mask"):
        assert torch.equal(sample[key], whole[key])


def test_single_files_that_are_missing_stay_an_error(broken_root):
    shutil.rmtree(broken_root / "train/label2")
    (broken_root / "train/label1/00003.png").unlink()
    with pytest.raises(DataError, match=r"im1/00003\.png: no partner in .*label1"):
        index_pairs(broken_root / "train")


def test_the_other_date_has_no_loss():
    logits = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8), torch.randn(2, 8, 8)
    labels = torch.randint(0, 7, (2, 8, 8))
    criterion = ChangeCriterion(6)
    whole = criterion(logits, labels, labels, labels > 0)
    for date, given in ((1, (labels, None)), (2, (None, labels))):
        terms = criterion(logits, *given, labels > 0)
        name = f"semantic{date}"
        assert set(terms) == {"change", name, "total"}
        assert terms["total"] == 2 * whole["change"] + whole[name]


@pytest.mark.parametrize("date", [1, 2])
def test_scores_of_one_date_have_names_of_their_own(date):
    maps, truth = (random_maps(0), random_maps(1)), random_maps(2)
    counts = LabelCounts(6)
    counts.update(maps, {f"label{date}": truth, "change_mask": truth > 0})
    metrics = score_labels(counts.stack())
    alone = LabelCounts(6)
    alone.matrices["label1"].update(maps[date - 1], truth)
    expected = compute_metrics(alone.matrices["label1"].counts).to_dict()
    values = metrics.to_dict()
    assert values.pop("miou") == expected["miou"]
    assert values[f"score_date{date}"] == metrics.rank == expected["score"]
    assert not {"score", "sek", "f_scd", "oa", "kappa", "class_iou"} & values.keys()
    assert metrics_from_dict(metrics.to_dict()).to_dict() == metrics.to_dict()
    row = metrics.to_row(SECOND_CLASSES.names)
    assert f"iou_water_date{date}" in row and "iou_changed" in row
    assert not any(name.startswith("class_iou") for name in row)


def test_both_dates_keep_their_names():
    maps, labels = (random_maps(0), random_maps(1)), (random_maps(2), random_maps(3))
    counts = LabelCounts(6)
    counts.update(maps, dict(zip(("label1", "label2"), labels, strict=True)))
    metrics = score_labels(counts.stack())
    assert metrics.date is None and "score" in metrics.to_dict()
    assert score_labels(LabelCounts(6).stack()) is None


@pytest.fixture(scope="module")
def outdir(one_date_root, tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("one_date_run")
    train.main(train_options(one_date_root, outdir))
    return outdir


def test_train_and_test(one_date_root, outdir, capsys):
    (best,) = best_files(outdir)
    values = read_checkpoint(best)["metrics"]
    assert best.name == f"{PREFIX}_{100 * values['score_date1']:.2f}.pth"
    assert [c.path for c in find_best_checkpoints(outdir / "models")] == [best]
    assert "Score of date 1 only" in describe(open_checkpoint(best))
    with next((outdir / "logs").glob("*/metrics.csv")).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert "loss_semantic1" in row and "loss_semantic2" not in row
    assert {"score_date1", "sek_date1", "f_scd_date1", "miou"} <= row.keys()
    assert not {"score", "sek", "f_scd", "oa"} & row.keys()
    for finished in (False, True):
        capsys.readouterr()
        metrics = predict.main(options(one_date_root, outdir))
        printed = capsys.readouterr().out
        assert "labels of date 1 only:  Score" in printed
        assert ("finished already" in printed) == finished
        assert metrics.date == 1 and metrics.score == pytest.approx(values["score_date1"], abs=1e-3)
    for date in ("im1", "im2"):  # both dates are predicted
        assert len(list((outdir / "masks/test" / date).iterdir())) == 4
    assert "score_date1" in json.loads((outdir / "masks/test/metrics.json").read_text())


def test_training_says_so_and_labelling_needs_both(one_date_root, outdir, capsys):
    (best,) = best_files(outdir)
    train.main(train_options(one_date_root, outdir, "--load-from", best))
    assert "training: labels of date 1 only" in capsys.readouterr().out
    with pytest.raises(DataError, match="no label2; a vote"):
        label.main(options(one_date_root, outdir))


def test_a_date_that_one_split_alone_lacks_is_a_warning(one_date_root, sample_root):
    classes = load_classes(sample_root)
    one, both = (index_pairs(root / "train") for root in (one_date_root, sample_root))
    assert missing_labels(sample_root, classes, both, both) == []
    for train_pairs, val_pairs in ((one, both), (both, one)):
        (line,) = missing_labels(sample_root, classes, train_pairs, val_pairs)
        assert line.startswith("warning: training and validation differ, is a folder missing?")
    lines = missing_labels(sample_root, classes, one, one)
    assert len(lines) == 2 and not any(line.startswith("warning") for line in lines)


def test_a_run_goes_on_with_the_dates_it_had(one_date_root, sample_root, outdir, tmp_path):
    shutil.copytree(outdir, tmp_path / "out")
    argv = train_options(sample_root, tmp_path / "out", "--resume")
    with pytest.raises(OptionError, match=r"dates with labels were .*\[1\].*, now .*\[1, 2\]"):
        train.main(argv)
    train.main(train_options(one_date_root, tmp_path / "out", "--resume"))
    latest = latest_file(tmp_path / "out")
    state = read_checkpoint(latest)
    assert state.pop("labelled_dates") == {"training": [1], "validation": [1]}
    torch.save(state, latest)  # as older runs left it
    train.main(argv)


def test_pseudo_masks_are_not_measured_on_one_date(one_date_root, tmp_path):
    with pytest.raises(DataError, match="no label2; a vote"):
        measure_pseudo_labels(one_date_root, tmp_path)


def test_report_names_the_date(one_date_root, outdir):
    predict.main(options(one_date_root, outdir))
    page = report.main([str(outdir)]).read_text(encoding="utf-8")
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
