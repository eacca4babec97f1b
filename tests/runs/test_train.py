"""train.py: what a run leaves, logs, keeps and starts from."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from datasets.classes import SECOND_CLASSES
from engine.metrics import metrics_from_dict
from models.change_detector import ModelConfig, build_model
from models.checkpoint import load_model
from models.losses import default_class_weights
from tests.helpers.runs import (
    BACKBONE,
    PREFIX,
    TRAIN_NAMES,
    VAL_NAMES,
    assert_metrics,
    best_files,
    csv_rows,
    keys,
    latest_file,
    read_masks,
    score_of,
    train_options,
)
from utils.errors import OptionError
from utils.tensor_files import read_checkpoint

# --- what a run leaves ----------------------------------------------------------------------


def test_a_run_leaves_one_best_and_the_latest_checkpoint(fcn_run):
    score = f"{100 * fcn_run.metrics.score:.2f}"
    files = {path.name for path in (fcn_run.outdir / "models").iterdir()}
    assert files == {f"{PREFIX}_{score}.pth", f"{PREFIX}_latest.pth"}


def test_a_run_logs_a_row_per_epoch_its_options_and_pictures(fcn_run):
    (folder,) = (fcn_run.outdir / "logs").iterdir()
    assert folder.name.startswith(f"{PREFIX}_")
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert max(float(row["score"]) for row in rows) == fcn_run.metrics.score
    for row in rows:
        total = 2 * float(row["loss_change"])
        total += float(row["loss_semantic1"]) + float(row["loss_semantic2"])
        assert float(row["loss_total"]) == pytest.approx(total, rel=1e-4)
        assert 0 <= float(row["iou_low vegetation"]) <= 1
        assert float(row["train_s"]) > 0 and float(row["val_s"]) > 0
    assert 1.5e-4 > float(rows[0]["lr"]) > float(rows[1]["lr"]) >= 0
    found = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    asked = {"model": "fcn", "backbone": BACKBONE, "batch_size": 4, "epochs": 2, "val_list": None}
    assert {name: found[name] for name in asked} == asked
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Images("validation")] == [1, 2]
    assert [event.step for event in events.Scalars("score")] == [1, 2]
    assert "iou_building" in events.Tags()["scalars"]


def test_a_checkpoint_tells_what_it_is_and_rebuilds_itself(fcn_run):
    state = read_checkpoint(fcn_run.best)
    assert state["config"] == ModelConfig("fcn", BACKBONE).to_dict()
    assert state["classes"] == SECOND_CLASSES.to_dict()
    assert state["split"]["protocol"] == "folders"
    assert state["split"]["train"] == [f"train/{name}" for name in TRAIN_NAMES]
    assert state["split"]["val"] == [f"val/{name}" for name in VAL_NAMES]
    assert state["epoch"] in (1, 2)
    assert_metrics(metrics_from_dict(state["metrics"]), fcn_run.metrics)
    model = load_model(fcn_run.best, "cpu")
    assert model.config == ModelConfig("fcn", BACKBONE)
    tensors = model.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in state["model"].items())


def test_training_changes_all_weights(fcn_run):
    trained = read_checkpoint(latest_file(fcn_run.outdir))["model"]
    torch.manual_seed(0)
    start = build_model(ModelConfig("fcn", BACKBONE)).state_dict()
    same = [n for n, v in trained.items() if v.is_floating_point() and torch.equal(v, start[n])]
    assert not same


@pytest.mark.parametrize(("score", "kept"), [(-0.5, 2), (0.9, 1)])
def test_the_best_epoch_is_kept_and_only_that(score, kept, half_outdir, fcn_run, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(half_outdir, outdir)
    state = read_checkpoint(latest_file(outdir))
    state["training"]["best"]["score"] = state["metrics"]["score"] = score  # of the first epoch
    torch.save(state, latest_file(outdir))
    best = train.main(fcn_run.argv(outdir, "--resume"))
    (path,) = best_files(outdir)
    assert read_checkpoint(path)["epoch"] == kept
    assert best.score == (score if kept == 1 else float(csv_rows(outdir)[1]["score"]))
    latest = read_checkpoint(latest_file(outdir))
    assert (latest["epoch"], latest["best_file"]) == (2, path.name)
    assert f"best: {path}" in capsys.readouterr().out


def test_a_second_run_keeps_the_best_of_the_first(fcn_run, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    best = train.main(train_options(sample_root, outdir, "--seed", 1, "--save-mask"))
    assert (outdir / "models" / fcn_run.best.name).read_bytes() == fcn_run.best.read_bytes()
    assert len({read_checkpoint(path)["run"] for path in best_files(outdir)}) == 2
    assert_metrics(score_of(outdir / "masks" / "val", sample_root / "val"), best)


@pytest.mark.parametrize("tta", [(), ("--tta",)])
def test_a_loaded_checkpoint_scores_as_in_training(tta, fcn_run, sample_root, tmp_path, capsys):
    more = ("--load-from", fcn_run.best, "--save-mask", *tta)
    metrics = train.main(train_options(sample_root, tmp_path, *more))
    if not tta:
        assert_metrics(metrics, fcn_run.metrics)
    folder = tmp_path / "masks" / "val"
    assert set(read_masks(folder)) == keys(VAL_NAMES)
    assert_metrics(score_of(folder, sample_root / "val"), metrics)
    assert f"Score {100 * metrics.score:.2f}" in capsys.readouterr().out
    with Image.open(folder / "im1" / "00000.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:21] == [c for color in SECOND_CLASSES.colors for c in color]
    assert not list(tmp_path.glob("models/*"))


# --- what a run starts from -----------------------------------------------------------------


def test_starting_from_another_run(fcn_run, sample_root, tmp_path, capsys):
    train.main(train_options(sample_root, tmp_path, "--pretrain-from", fcn_run.best, "--lr", 1e-12))
    assert f"starting from {fcn_run.best}" in capsys.readouterr().out
    trained, start = (load_model(path, "cpu") for path in (*best_files(tmp_path), fcn_run.best))
    for value, other in zip(trained.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6)


def test_custom_classes(custom_run):
    (path,) = best_files(custom_run)
    state = read_checkpoint(path)
    assert state["config"]["num_classes"] == 2
    assert state["classes"]["names"] == ["same", "open", "built"]
    (row,) = csv_rows(custom_run)
    assert {"iou_open", "iou_built"} <= set(row)


def test_class_weights_of_the_published_recipe():
    names = SECOND_CLASSES.names[1:]
    assert default_class_weights(names, pseudo_labels=False) == (2, 1, 2, 2, 1, 1)
    assert default_class_weights(names, pseudo_labels=True) is None  # ones
    assert default_class_weights(("open",), pseudo_labels=False) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--class-weights", "1,2"), r"--class-weights: 2 weights for 6 classes \(water"),
        (("--model", "pspnet", "--batch-size", 1), "--batch-size ≥ 2"),
        (("--batch-size", 5, "--accumulate", 2), "--batch-size 5 cannot be divided among 1 proc"),
        (("--batch-size", 16, "--accumulate", 16), "12 training pairs are too few for 16 parts"),
        (("--device", "tpu"), "--device tpu: not usable here"),
        (("--load-from", "a.pth", "--bands", 4), "^--load-from: the checkpoint knows its bands"),
    ],
)
def test_options_that_do_not_fit_are_refused(more, said, sample_root, tmp_path):
    with pytest.raises(OptionError, match=said):
        train.main(train_options(sample_root, tmp_path, *more))
    assert not list(tmp_path.glob("models/*"))


def test_repeated_overflow_is_reported(sample_root, tmp_path, monkeypatch, capsys):
    scale = 65536.0

    def halve(_scaler: torch.amp.GradScaler) -> None:
        nonlocal scale
        scale /= 2

    monkeypatch.setattr(torch.amp.GradScaler, "update", halve)
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda _: scale)
    for size, reported in ((4, False), (2, True)):  # 3 and 6 steps
        train.main(train_options(sample_root, tmp_path, "--batch-size", size))
        assert ("fp16 overflowed repeatedly" in capsys.readouterr().out) == reported
