"""train.py: what a run leaves, logs, keeps and starts from."""

import csv
import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from datasets.classes import SECOND_CLASSES
from engine.metrics import Metrics
from models.change_detector import ModelConfig, build_model
from models.checkpoint import load_model
from models.losses import default_class_weights
from tests.helpers.runs import best_files
from tests.helpers.script_runs import (
    SMALL,
    TRAIN_NAMES,
    VAL_NAMES,
    assert_metrics,
    assert_same_state,
    keys,
    read_masks,
    score_of,
    train_argv,
)
from utils.errors import OptionError
from utils.tensor_files import read_checkpoint


def test_training_leaves_one_best_and_the_latest_checkpoint(fcn_run):
    score = f"{100 * fcn_run.metrics.score:.2f}"
    files = {path.name for path in (fcn_run.outdir / "models").iterdir()}
    assert files == {f"fcn_{SMALL}_{score}.pth", f"fcn_{SMALL}_latest.pth"}


def test_training_logs_a_row_per_epoch_and_its_options(fcn_run):
    (folder,) = (fcn_run.outdir / "logs").iterdir()
    assert folder.name.startswith(f"fcn_{SMALL}_")
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert max(float(row["score"]) for row in rows) == fcn_run.metrics.score
    for row in rows:
        total = 2 * float(row["loss_change"])
        total += float(row["loss_semantic1"]) + float(row["loss_semantic2"])
        assert float(row["loss_total"]) == pytest.approx(total, rel=1e-4)
        assert 0 <= float(row["iou_low vegetation"]) <= 1
    assert 1.5e-4 > float(rows[0]["lr"]) > float(rows[1]["lr"]) >= 0
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    assert options["model"] == "fcn"
    assert options["backbone"] == SMALL
    assert options["batch_size"] == 4
    assert options["epochs"] == 2


def test_checkpoint_tells_what_it_is_and_rebuilds_itself(fcn_run):
    state = read_checkpoint(fcn_run.best)
    assert state["config"] == ModelConfig("fcn", SMALL).to_dict()
    assert state["classes"] == SECOND_CLASSES.to_dict()
    assert state["split"]["protocol"] == "folders"
    assert state["split"]["train"] == [f"train/{name}" for name in TRAIN_NAMES]
    assert state["split"]["val"] == [f"val/{name}" for name in VAL_NAMES]
    assert state["epoch"] in (1, 2)
    assert_metrics(Metrics(**state["metrics"]), fcn_run.metrics)
    model = load_model(fcn_run.best)
    assert model.config == ModelConfig("fcn", SMALL)
    tensors = model.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in state["model"].items())


def test_training_changes_all_weights(fcn_run):
    trained = load_model(fcn_run.outdir / "models" / f"fcn_{SMALL}_latest.pth").state_dict()
    torch.manual_seed(0)
    start = build_model(ModelConfig("fcn", SMALL)).state_dict()
    same = [n for n, v in trained.items() if v.is_floating_point() and torch.equal(v, start[n])]
    assert not same


def test_the_best_epoch_is_kept_and_only_that(sample_root, tmp_path, monkeypatch, capsys):
    from engine import training

    scores = iter([0.1, 0.3, 0.2])
    evaluate = training.evaluate

    def scripted(*args):
        return dataclasses.replace(evaluate(*args), score=next(scores))

    monkeypatch.setattr(training, "evaluate", scripted)
    best = train.main(train_argv(sample_root, tmp_path, "--epochs", 3))
    assert best.score == 0.3
    (path,) = best_files(tmp_path)
    assert path.name == f"fcn_{SMALL}_30.00.pth"
    assert read_checkpoint(path)["epoch"] == 2
    latest = read_checkpoint(tmp_path / "models" / f"fcn_{SMALL}_latest.pth")
    assert latest["epoch"] == 3
    assert latest["best_file"] == path.name
    assert f"best: {path}" in capsys.readouterr().out


def test_second_run_keeps_the_best_of_the_first(fcn_run, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    time.sleep(1)  # runs are named by the second they start in
    train.main(train_argv(sample_root, outdir, "--seed", 1))
    kept = outdir / "models" / fcn_run.best.name
    assert kept.read_bytes() == fcn_run.best.read_bytes()
    assert len(best_files(outdir)) == 2
    runs = {read_checkpoint(path)["run"] for path in best_files(outdir)}
    assert len(runs) == 2


def test_same_seed_same_weights(fcn_run, sample_root, tmp_path):
    train.main(train_argv(sample_root, tmp_path, "--epochs", 2))
    assert_same_state(fcn_run.outdir, tmp_path)


def test_loaded_checkpoint_scores_as_in_training(fcn_run, sample_root, tmp_path):
    assert_metrics(
        train.main(train_argv(sample_root, tmp_path, "--load-from", fcn_run.best)), fcn_run.metrics
    )
    assert not (tmp_path / "models").exists()


def test_saved_masks_have_the_printed_score(fcn_run, sample_root, tmp_path, capsys):
    options = ("--load-from", fcn_run.best, "--save-mask", "--tta")
    metrics = train.main(train_argv(sample_root, tmp_path, *options))
    folder = tmp_path / "masks" / "val"
    assert set(read_masks(folder)) == keys(VAL_NAMES)
    assert_metrics(score_of(folder, sample_root / "val"), metrics)
    assert f"Score {100 * metrics.score:.2f}" in capsys.readouterr().out
    with Image.open(folder / "im1" / "00000.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:21] == [c for color in SECOND_CLASSES.colors for c in color]


def test_training_with_save_mask_writes_those_of_the_best_model(sample_root, tmp_path):
    best = train.main(train_argv(sample_root, tmp_path, "--save-mask"))
    assert_metrics(score_of(tmp_path / "masks" / "val", sample_root / "val"), best)


def test_starting_from_another_run(fcn_run, sample_root, tmp_path, capsys):
    train.main(train_argv(sample_root, tmp_path, "--pretrain-from", fcn_run.best, "--lr", 1e-12))
    assert f"starting from {fcn_run.best}" in capsys.readouterr().out
    trained, start = load_model(best_files(tmp_path)[0]), load_model(fcn_run.best)
    for value, other in zip(trained.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6)


def test_custom_classes(custom_run):
    (path,) = best_files(custom_run)
    state = read_checkpoint(path)
    assert state["config"]["num_classes"] == 2
    assert state["classes"]["names"] == ["same", "open", "built"]
    (row,) = state_rows(custom_run)
    assert {"iou_open", "iou_built"} <= set(row)


def state_rows(outdir: Path) -> list[dict]:
    (path,) = (outdir / "logs").glob("*/metrics.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_class_weights_of_the_published_recipe():
    names = SECOND_CLASSES.names[1:]
    assert default_class_weights(names, pseudo_labels=False) == (2, 1, 2, 2, 1, 1)
    assert default_class_weights(names, pseudo_labels=True) is None  # ones
    assert default_class_weights(("open",), pseudo_labels=False) is None
    given = train.parse_args(["--class-weights", "1,2,3,4,5,6.5"])
    assert given.class_weights == (1, 2, 3, 4, 5, 6.5)


def test_class_weights_of_wrong_length(sample_root, tmp_path):
    with pytest.raises(OptionError, match=r"--class-weights: 2 weights for 6 classes \(water"):
        train.main(train_argv(sample_root, tmp_path, "--class-weights", "1,2"))


def test_pspnet_with_batches_of_one_is_refused(sample_root, tmp_path):
    model = ("--model", "pspnet", "--backbone", SMALL)
    with pytest.raises(OptionError, match="--batch-size ≥ 2"):
        train.main(train_argv(sample_root, tmp_path, "--batch-size", 1, model=model))


def test_compiled_steps_keep_what_activations_they_choose(capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_args(["--compile", "--checkpoint-activations"])
    assert stop.value.code == 2
    assert "not allowed with argument --compile" in capsys.readouterr().err
