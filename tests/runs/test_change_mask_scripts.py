"""Change masks through train.py, test.py and the tools."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import label
import test as predict
import train
from datasets.task import is_mask_folder, load_classes
from engine.ensemble import open_ensemble
from engine.training import Record
from models.checkpoint import load_model
from tests.helpers.change_sets import OF_CLASSES, SIDE, masks_in_both, small_model
from tests.helpers.runs import (
    PREFIX,
    assert_same_run,
    best_files,
    latest_file,
    options,
    train_options,
)
from tools import check_data, pseudo_accuracy, report, score
from tools.scoring.folders import find_masks
from utils.errors import CheckpointError, DataError, OptionError
from utils.tensor_files import read_checkpoint


@pytest.fixture(scope="module")
def outdir(binary_root, tmp_path_factory) -> Path:
    """Two epochs of training on change masks, and the masks of the test set. Read only."""
    outdir = tmp_path_factory.mktemp("binary_run")
    train.main(train_options(binary_root, outdir, "--epochs", 2))
    predict.main(options(binary_root, outdir, "--tta"))
    return outdir


def test_names_of_a_binary_list_mean_nothing(outdir):
    (best,) = best_files(outdir)
    names = {"names": ["same", "built"]}
    assert open_ensemble([best], names)[0].path == best


def test_training_says_so_and_keeps_no_score_of_classes(binary_root, outdir, capsys):
    (best,) = best_files(outdir)
    state = read_checkpoint(best)
    assert best.name == f"{PREFIX}_{100 * state['metrics']['f1']:.2f}.pth"
    assert state["config"]["num_classes"] == 0
    assert not any(OF_CLASSES.search(name) for name in state["metrics"])
    with next((outdir / "logs").glob("*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(OF_CLASSES.search(name) for name in rows[0])
    assert max(float(row["f1"]) for row in rows) == state["metrics"]["f1"]
    assert load_model(best).semantic_head is None
    argv = train_options(binary_root, outdir, "--load-from", best, "--save-mask")
    metrics = train.main(argv)
    printed = capsys.readouterr().out
    assert "binary change labels (from train/label): the change branch is trained alone" in printed
    assert not re.search("Score|SeK|F_scd", printed)
    assert metrics.f1 == pytest.approx(state["metrics"]["f1"], abs=1e-6)
    assert len(list((outdir / "masks/val/change").iterdir())) == 4


def test_masks_are_black_and_white_and_score_as_they_were_scored(binary_root, outdir, tmp_path):
    folder = outdir / "masks" / "test"
    assert sorted(path.name for path in (folder / "change").iterdir()) == [
        f"{i:05d}.png" for i in range(4)
    ]
    assert not (folder / "im1").exists()
    for path in (folder / "change").iterdir():
        with Image.open(path) as image:
            assert image.mode == "L" and set(np.unique(image)) <= {0, 255}
    printed = json.loads((folder / "metrics.json").read_text())
    for prediction, truth in ((folder, binary_root / "val"), (folder / "change",) * 2):
        argv = ["--prediction", str(prediction), "--label", str(truth), "--bootstrap", "20"]
        result = score.main([*argv, "--versus", str(folder), "--csv", str(tmp_path / "rows.csv")])
        assert "transitions" not in result and np.sum(result["confusion"]) == 4 * SIDE**2
        assert not any(OF_CLASSES.search(name) for name in result["scores"])
        assert set(result["differences"]) == set(result["scores"])
        if truth != prediction:
            found = {name: result["scores"][name]["value"] for name in printed}
            assert found == pytest.approx(printed)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert not any(OF_CLASSES.search(name) for name in next(csv.reader(file)))


def test_score_text_and_what_change_masks_cannot(binary_root, outdir, capsys):
    argv = ["--prediction", str(outdir / "masks/test"), "--label", str(binary_root / "val")]
    score.main([*argv, "--bootstrap", "0"])
    printed = capsys.readouterr().out
    assert "every pixel once" in printed and "F1 " in printed
    assert not re.search("Score|SeK|F_scd|per class|from→to", printed)
    with pytest.raises(OptionError, match="--matrix transitions: change masks"):
        score.main([*argv, "--matrix", "transitions"])


def test_labels_of_classes_beside_a_folder_label_are_scored_as_such(broken_root, capsys):
    root = broken_root / "val"
    (root / "label").mkdir()
    score.main(["--prediction", str(root), "--label", str(root), "--bootstrap", "0"])
    assert "Score" in capsys.readouterr().out
    masks_in_both(broken_root)
    Image.new("L", (SIDE, SIDE)).save(root / "label/00000.png")
    assert is_mask_folder(root)
    masks = find_masks(root, binary=True)
    assert masks["00001"] == (root / "label1/00001.png", root / "label2/00001.png")


@pytest.mark.parametrize("date", [1, 2])
def test_a_mask_of_one_date_alone_is_not_scored(date, broken_root):
    masks_in_both(broken_root)
    (broken_root / f"val/label{date}/00002.png").unlink()
    with pytest.raises(
        DataError, match=rf"label{3 - date}/00002\.png: no partner in .*label{date}"
    ):
        find_masks(broken_root / "val", binary=True)


def test_finished_masks_are_skipped(binary_root, outdir, tmp_path, capsys):
    shutil.copytree(outdir, tmp_path / "out")
    folder = tmp_path / "out/masks/test"
    predict.main(options(binary_root, tmp_path / "out", "--tta"))  # copies have another age
    before = {path: path.stat().st_mtime_ns for path in (folder / "change").iterdir()}
    expected = (folder / "metrics.json").read_text()
    capsys.readouterr()
    predict.main(options(binary_root, tmp_path / "out", "--tta"))
    assert "4 pairs were finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "metrics.json").read_text() == expected
    predict.main(options(binary_root, tmp_path / "out", "--tta", "--overwrite"))
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())


@pytest.mark.parametrize(
    ("crash_at", "more"),
    [((1, True), ()), ((2, False), ("--checkpoint-every", 1, "--cache", "disk"))],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    crash_at, more, binary_root, outdir, tmp_path, monkeypatch
):
    class CrashError(Exception):
        pass

    save = Record.save_latest

    def crash(record, trainer):
        save(record, trainer)
        if (trainer.epoch, trainer.validated) == crash_at:
            raise CrashError

    argv = train_options(binary_root, tmp_path, "--epochs", 2, *more)
    monkeypatch.setattr(Record, "save_latest", crash)
    with pytest.raises(CrashError):
        train.main(argv)
    monkeypatch.setattr(Record, "save_latest", save)
    train.main([*argv, "--resume"])
    assert_same_run(tmp_path, outdir)


def test_a_time_limit_that_is_kept_changes_no_mask(binary_root, outdir, tmp_path):
    more = ("--tta", "--time-limit", 1000, "--checkpoints", *best_files(outdir))
    predict.main(options(binary_root, tmp_path, *more))
    paths = sorted((outdir / "masks/test/change").glob("*.png"))
    assert len(paths) == 4
    for path in paths:
        found = tmp_path / "masks/test/change" / path.name
        assert found.read_bytes() == path.read_bytes()


def test_a_run_with_a_head_of_one_class_is_not_gone_on_with(binary_root, outdir, tmp_path):
    shutil.copytree(outdir, tmp_path / "out")
    state = read_checkpoint(latest_file(outdir))
    state["config"]["num_classes"] = 1
    torch.save(state, latest_file(tmp_path / "out"))
    with pytest.raises(OptionError, match="semantic classes is 1, that of these data 0"):
        train.main(train_options(binary_root, tmp_path / "out", "--epochs", 2, "--resume"))


def test_what_needs_classes_is_refused(binary_root, sample_root, outdir, tmp_path):
    (best,) = best_files(outdir)
    with pytest.raises(DataError, match="nothing to vote; pseudo labels need classes"):
        label.main(options(binary_root, outdir))
    with pytest.raises(DataError, match="nothing to vote; pseudo labels need classes"):
        pseudo_accuracy.main(["--data-root", str(binary_root), "--masks", str(tmp_path)])
    with pytest.raises(OptionError, match="pseudo labels are classes"):
        train.main(train_options(binary_root, outdir, "--use-pseudo-label"))
    for main in (label.main, predict.main):
        with pytest.raises(CheckpointError, match="predicts change alone, the data set has class"):
            main(options(sample_root, tmp_path, "--checkpoints", best))
    semantic = small_model(6)
    state = {"format": 1, "config": semantic.config.to_dict(), "model": semantic.state_dict()}
    torch.save(state, tmp_path / "semantic.pth")
    both = ["--checkpoints", best, tmp_path / "semantic.pth"]
    with pytest.raises(CheckpointError, match=r"semantic\.pth: predicts classes"):
        predict.main(options(binary_root, tmp_path, *both))


def test_training_of_classes_starts_from_a_model_of_change(sample_root, outdir, tmp_path, capsys):
    start = outdir / "models" / f"{PREFIX}_latest.pth"
    train.main(train_options(sample_root, tmp_path, "--pretrain-from", start))
    assert f"starting from {start}; semantic_head starts anew" in capsys.readouterr().out
    assert read_checkpoint(best_files(tmp_path)[0])["config"]["num_classes"] == 6


def test_report_tells_of_change_alone(outdir, binary_root):
    page = report.main([str(outdir)]).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["gallery"]["binary"] and data["gallery"]["total"] == 4
    pair = data["gallery"]["pairs"][0]
    assert len(pair["predictions"]) == len(pair["labels"]) == 1
    columns = {chart["column"]: chart["title"] for chart in data["charts"]}
    assert columns["f1"] == "F1" and not any(OF_CLASSES.search(name) for name in columns)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert ">F1<" in shown
    assert not re.search(r">(Score|SeK|F_scd)<|from → to|IoU per class", shown)


def test_check_and_converted_copy(binary_root, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(binary_root, root)
    for path in root.glob("*/label/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)  # 0 and 1
    argv = ["--outdir", str(tmp_path / "check"), "--workers", "1"]
    assert check_data.main([str(root), *argv]) == 0
    printed = capsys.readouterr().out
    assert "binary change labels" in printed and "from \\ to" not in printed
    found = json.loads((tmp_path / "check/report.json").read_text())
    assert found["findings"] == [] and found["splits"]["train"]["changed_pixels"] > 0
    assert "transitions" not in found["splits"]["train"]
    assert check_data.main([str(root), "--convert", str(tmp_path / "copy"), *argv]) == 0
    for path in binary_root.glob("*/label/*.png"):
        copy = tmp_path / "copy" / path.relative_to(binary_root)
        assert np.array_equal(np.asarray(Image.open(copy)), np.asarray(Image.open(path)))
    assert load_classes(tmp_path / "copy").is_binary
