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
from models.checkpoint import load_model
from tests.helpers.change_sets import OF_CLASSES, SIDE, masks_in_both
from tests.helpers.faults import CrashError, before_step, crash
from tests.helpers.runs import (
    PREFIX,
    VAL_NAMES,
    Run,
    assert_same_run,
    best_files,
    latest_file,
    options,
    resume,
    train_options,
)
from tools import check_data, pseudo_accuracy, report, score
from utils.errors import CheckpointError, DataError, OptionError
from utils.tensor_files import read_checkpoint


@pytest.fixture(scope="module")
def run(binary_root, tmp_path_factory) -> Run:
    """Two epochs of training on change masks, and the masks of the test set. Read only."""
    outdir = tmp_path_factory.mktemp("binary_run")

    def argv(outdir: Path, *more: object) -> list[str]:
        return train_options(binary_root, outdir, "--epochs", 2, *more)

    train.main(argv(outdir))
    return Run(outdir, argv, predict.main(options(binary_root, outdir, "--tta")))


# --- scripts --------------------------------------------------------------------------------


def test_training_says_so_and_keeps_no_score_of_classes(run, tmp_path, capsys):
    state = read_checkpoint(run.best)
    assert run.best.name == f"{PREFIX}_{100 * state['metrics']['f1']:.2f}.pth"
    assert state["config"]["num_classes"] == 0
    assert not any(OF_CLASSES.search(name) for name in state["metrics"])
    with next((run.outdir / "logs").glob("*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(OF_CLASSES.search(name) for name in rows[0])
    assert max(float(row["f1"]) for row in rows) == state["metrics"]["f1"]
    assert load_model(run.best, "cpu").semantic_head is None
    metrics = train.main(run.argv(tmp_path, "--load-from", run.best, "--save-mask"))
    printed = capsys.readouterr().out
    assert "binary change labels (from train/label): the change branch is trained alone" in printed
    assert not re.search("Score|SeK|F_scd", printed)
    assert metrics.f1 == pytest.approx(state["metrics"]["f1"], abs=1e-6)
    assert len(list((tmp_path / "masks/val/change").iterdir())) == 4


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path, monkeypatch):
    more = ("--checkpoint-every", 1, "--cache", "disk")
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        before_step(patch, 5, crash)
        train.main(run.argv(tmp_path, *more))
    resume(run, tmp_path, *more)
    assert_same_run(tmp_path, run.outdir)


def test_finished_masks_are_skipped(run, binary_root, tmp_path, capsys):
    shutil.copytree(run.outdir, tmp_path / "out")
    folder = tmp_path / "out/masks/test"
    argv = options(binary_root, tmp_path / "out", "--tta")
    predict.main(argv)  # from a folder of its own
    before = {path: path.stat().st_mtime_ns for path in (folder / "change").iterdir()}
    expected = (folder / "metrics.json").read_text()
    capsys.readouterr()
    predict.main(argv)
    assert "4 pairs were finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "metrics.json").read_text() == expected
    predict.main([*argv, "--overwrite", "--time-limit", "1000"])
    assert all(path.stat().st_mtime_ns != time for path, time in before.items())
    for path in (run.outdir / "masks/test/change").glob("*.png"):  # the limit is kept
        masks = [Image.open(each).tobytes() for each in (folder / "change" / path.name, path)]
        assert masks[0] == masks[1]


def test_a_run_with_a_head_of_one_class_is_not_gone_on_with(run, tmp_path):
    shutil.copytree(run.outdir, tmp_path / "out")
    state = read_checkpoint(latest_file(run.outdir))
    state["config"]["num_classes"] = 1
    torch.save(state, latest_file(tmp_path / "out"))
    with pytest.raises(OptionError, match="semantic classes is 1, that of these data 0"):
        train.main(run.argv(tmp_path / "out", "--resume"))


def test_what_needs_classes_is_refused(run, binary_root, sample_root, fcn_run, tmp_path):
    for main, argv in (
        (label.main, options(binary_root, run.outdir)),
        (pseudo_accuracy.main, ["--data-root", str(binary_root), "--masks", str(tmp_path)]),
    ):
        with pytest.raises(DataError, match="nothing to vote; pseudo labels need classes"):
            main(argv)
    with pytest.raises(OptionError, match="pseudo labels are classes"):
        train.main(run.argv(run.outdir, "--use-pseudo-label"))
    for main in (label.main, predict.main):
        with pytest.raises(CheckpointError, match="predicts change alone, the data set has class"):
            main(options(sample_root, tmp_path, "--checkpoints", run.best))
    with pytest.raises(CheckpointError, match=rf"{fcn_run.best}: predicts classes"):
        predict.main(options(binary_root, tmp_path, "--checkpoints", run.best, fcn_run.best))


def test_training_of_classes_starts_from_a_model_of_change(run, sample_root, tmp_path, capsys):
    train.main(train_options(sample_root, tmp_path, "--pretrain-from", run.best))
    assert f"starting from {run.best}; semantic_head starts anew" in capsys.readouterr().out
    assert read_checkpoint(best_files(tmp_path)[0])["config"]["num_classes"] == 6


# --- tools ----------------------------------------------------------------------------------


def test_masks_are_black_and_white_and_score_as_they_were_scored(run, binary_root, tmp_path):
    folder = run.outdir / "masks" / "test"
    assert sorted(path.stem for path in (folder / "change").iterdir()) == VAL_NAMES
    assert not (folder / "im1").exists()
    for path in (folder / "change").iterdir():
        with Image.open(path) as image:
            assert image.mode == "L" and set(np.unique(image)) <= {0, 255}
    written = json.loads((folder / "metrics.json").read_text())
    assert written["epoch_choice"] == "epoch chosen on these pairs"
    for prediction, truth in ((folder, binary_root / "val"), (folder / "change",) * 2):
        argv = ["--prediction", str(prediction), "--label", str(truth), "--bootstrap", "20"]
        argv += ["--versus", str(folder), "--json", str(tmp_path / "scores.json")]
        score.main([*argv, "--csv", str(tmp_path / "rows.csv")])
        result = json.loads((tmp_path / "scores.json").read_text())
        assert "transitions" not in result and np.sum(result["confusion"]) == 4 * SIDE**2
        assert not any(OF_CLASSES.search(name) for name in result["scores"])
        assert set(result["differences"]) == set(result["scores"])
        if truth != prediction:
            found = {name: scores["value"] for name, scores in result["scores"].items()}
            scored = {name: written[name] for name in found if name in written}
            assert {name: found[name] for name in scored} == pytest.approx(scored)
            assert set(scored) >= {"f1", "miou", "kappa", "precision", "recall"}
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert not any(OF_CLASSES.search(name) for name in next(csv.reader(file)))
    with pytest.raises(OptionError, match="--matrix transitions: change masks"):
        score.main([*argv, "--matrix", "transitions"])


def test_which_labels_are_scored(broken_root, tmp_path, capsys):
    root = broken_root / "val"
    argv = ["--prediction", str(root), "--label", str(root), "--bootstrap", "0"]
    (root / "label").mkdir()
    score.main(argv)  # classes, though there is a folder `label`
    assert "Score" in capsys.readouterr().out
    masks_in_both(broken_root)
    Image.new("L", (SIDE, SIDE)).save(root / "label/00000.png")
    score.main([*argv, "--json", str(tmp_path / "scores.json")])  # label1 and label2 come first
    result = json.loads((tmp_path / "scores.json").read_text())
    assert "f1" in result["scores"] and np.sum(result["confusion"]) == 4 * SIDE**2
    (root / "label2/00002.png").unlink()
    with pytest.raises(DataError, match=r"label1/00002\.png: no partner in .*label2"):
        score.main(argv)


def test_report_tells_of_change_alone(run):
    page = report.main([str(run.outdir)]).read_text(encoding="utf-8")
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
