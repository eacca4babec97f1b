import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import label
import test as predict
import train
from datasets.classes import SECOND_CLASSES, ClassList, load_classes, read_label
from models import ModelConfig, build_model, load_model
from utils import cli
from utils.checkpoint import read_checkpoint
from utils.distributed import World
from utils.errors import CheckpointError, DataError, OptionError, UserError
from utils.losses import default_class_weights
from utils.metrics import ConfusionMatrix, Metrics, compute_metrics
from utils.options import REPO

SMALL = "mobilenetv2_050"
FCN = ("--model", "fcn", "--backbone", SMALL)
ALONE = World(0, 1, torch.device("cpu"))
FAST = ("--amp", "off", "--device", "cpu", "--workers", "0")
SCRIPTS = ("train.py", "label.py", "test.py")
TRAIN_NAMES = [f"{i:05d}" for i in range(12)]
VAL_NAMES = TRAIN_NAMES[:4]


def train_argv(data: Path, outdir: Path, *options: object, model: tuple = FCN) -> list[str]:
    base = ("--data-root", data, "--outdir", outdir, *FAST, "--batch-size", 4, "--no-tensorboard")
    epochs = () if "--epochs" in options else ("--epochs", 1)
    return [str(part) for part in (*model, *base, *epochs, *options)]


def argv(data: Path, outdir: Path, *options: object) -> list[str]:
    return [str(part) for part in ("--data-root", data, "--outdir", outdir, *FAST, *options)]


def best_files(outdir: Path) -> list[Path]:
    files = sorted((outdir / "models").glob("*.pth"))
    return [path for path in files if not path.stem.endswith("_latest")]


def read_masks(folder: Path, classes: ClassList = SECOND_CLASSES) -> dict[str, np.ndarray]:
    return {
        f"{date}/{path.stem}": read_label(path, classes)
        for date in ("im1", "im2")
        for path in sorted((folder / date).glob("*.png"))
    }


def keys(names: list[str]) -> set[str]:
    return {f"{date}/{name}" for date in ("im1", "im2") for name in names}


def score_of(folder: Path, truth: Path) -> Metrics:
    """Score masks on disk against labels on disk."""
    confusion = ConfusionMatrix(7)
    masks = read_masks(folder)
    assert masks
    for key, mask in masks.items():
        date, name = key.split("/")
        expected = read_label(truth / f"label{date[-1]}" / f"{name}.png", SECOND_CLASSES)
        confusion.update(torch.from_numpy(mask), torch.from_numpy(expected))
    return compute_metrics(confusion.counts)


def assert_metrics(metrics: Metrics, expected: Metrics, tolerance: float = 1e-12) -> None:
    found, wanted = metrics.to_dict(), expected.to_dict()
    assert found.pop("class_iou") == pytest.approx(wanted.pop("class_iou"), abs=tolerance)
    assert found == pytest.approx(wanted, abs=tolerance)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run."""

    outdir: Path
    best: Path
    metrics: Metrics


@pytest.fixture(scope="module")
def run(sample_root, tmp_path_factory) -> Run:
    """Two epochs of an FCN. Read only."""
    outdir = tmp_path_factory.mktemp("run")
    metrics = train.main(train_argv(sample_root, outdir, "--epochs", 2))
    (best,) = best_files(outdir)
    return Run(outdir, best, metrics)


@pytest.fixture(scope="module")
def ensemble(run, sample_root, tmp_path_factory) -> Path:
    """An outdir with the checkpoints of two runs. Read only."""
    outdir = tmp_path_factory.mktemp("ensemble") / "out"
    shutil.copytree(run.outdir, outdir)
    model = ("--model", "pspnet", "--backbone", "hrnet_w18_small", "--lightweight")
    train.main(train_argv(sample_root, outdir, model=model))
    return outdir


@pytest.fixture
def outdir(ensemble, tmp_path) -> Path:
    """A copy of the ensemble's outdir for one test."""
    shutil.copytree(ensemble, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def custom_root(sample_root, tmp_path_factory) -> Path:
    """The sample set with two classes of its own and labels as indices."""
    root = tmp_path_factory.mktemp("custom") / "root"
    shutil.copytree(sample_root, root)
    for path in root.glob("*/label?/*.png"):
        mask = read_label(path, SECOND_CLASSES)
        Image.fromarray(((mask + 2) // 3).astype(np.uint8)).save(path)  # 1..3 → 1, 4..6 → 2
    names, colors = ("same", "open", "built"), ([0, 0, 0], [10, 200, 30], [200, 10, 30])
    entries = [{"name": name, "color": c} for name, c in zip(names, colors, strict=True)]
    (root / "classes.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def custom_run(custom_root, tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("custom_run")
    train.main(train_argv(custom_root, outdir))
    return outdir


# --- train.py -------------------------------------------------------------------------------


def test_training_leaves_one_best_and_the_latest_checkpoint(run):
    score = f"{100 * run.metrics.score:.2f}"
    files = {path.name for path in (run.outdir / "models").iterdir()}
    assert files == {f"fcn_{SMALL}_{score}.pth", f"fcn_{SMALL}_latest.pth"}


def test_training_logs_a_row_per_epoch_and_its_options(run):
    (folder,) = (run.outdir / "logs").iterdir()
    assert folder.name.startswith(f"fcn_{SMALL}_")
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert max(float(row["score"]) for row in rows) == run.metrics.score
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


def test_checkpoint_tells_what_it_is_and_rebuilds_itself(run):
    state = read_checkpoint(run.best)
    assert state["config"] == ModelConfig("fcn", SMALL).to_dict()
    assert state["classes"] == SECOND_CLASSES.to_dict()
    assert state["split"]["protocol"] == "folders"
    assert state["split"]["train"] == [f"train/{name}" for name in TRAIN_NAMES]
    assert state["split"]["val"] == [f"val/{name}" for name in VAL_NAMES]
    assert state["epoch"] in (1, 2)
    assert_metrics(Metrics(**state["metrics"]), run.metrics)
    model = load_model(run.best)
    assert model.config == ModelConfig("fcn", SMALL)
    tensors = model.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in state["model"].items())


def test_training_changes_all_weights(run):
    trained = load_model(run.outdir / "models" / f"fcn_{SMALL}_latest.pth").state_dict()
    torch.manual_seed(0)
    start = build_model(ModelConfig("fcn", SMALL)).state_dict()
    same = [n for n, v in trained.items() if v.is_floating_point() and torch.equal(v, start[n])]
    assert not same


def test_the_best_epoch_is_kept_and_only_that(sample_root, tmp_path, monkeypatch, capsys):
    from utils import fit

    scores = iter([0.1, 0.3, 0.2])
    evaluate = fit.evaluate

    def scripted(*args):
        return dataclasses.replace(evaluate(*args), score=next(scores))

    monkeypatch.setattr(fit, "evaluate", scripted)
    best = train.main(train_argv(sample_root, tmp_path, "--epochs", 3))
    assert best.score == 0.3
    (path,) = best_files(tmp_path)
    assert path.name == f"fcn_{SMALL}_30.00.pth"
    assert read_checkpoint(path)["epoch"] == 2
    latest = read_checkpoint(tmp_path / "models" / f"fcn_{SMALL}_latest.pth")
    assert latest["epoch"] == 3
    assert latest["best_file"] == path.name
    assert f"best: {path}" in capsys.readouterr().out


def test_second_run_keeps_the_best_of_the_first(run, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(run.outdir, outdir)
    time.sleep(1)  # runs are named by the second they start in
    train.main(train_argv(sample_root, outdir, "--seed", 1))
    kept = outdir / "models" / run.best.name
    assert kept.read_bytes() == run.best.read_bytes()
    assert len(best_files(outdir)) == 2
    runs = {read_checkpoint(path)["run"] for path in best_files(outdir)}
    assert len(runs) == 2


def test_same_seed_same_weights(run, sample_root, tmp_path):
    train.main(train_argv(sample_root, tmp_path, "--epochs", 2))
    assert_same_state(run.outdir, tmp_path)


def test_loaded_checkpoint_scores_as_in_training(run, sample_root, tmp_path):
    assert_metrics(
        train.main(train_argv(sample_root, tmp_path, "--load-from", run.best)), run.metrics
    )
    assert not (tmp_path / "models").exists()


def test_saved_masks_have_the_printed_score(run, sample_root, tmp_path, capsys):
    options = ("--load-from", run.best, "--save-mask", "--tta")
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


def assert_same_state(outdir: Path, other: Path) -> None:
    """The latest checkpoints of two runs agree in every bit that matters."""
    states = [read_checkpoint(d / "models" / f"fcn_{SMALL}_latest.pth") for d in (outdir, other)]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    optimizers = [state["training"]["optimizer"]["state"] for state in states]
    assert optimizers[0].keys() == optimizers[1].keys()
    for index, moments in optimizers[0].items():
        for name, value in moments.items():
            assert torch.equal(value, optimizers[1][index][name])
    assert states[0]["metrics"] == states[1]["metrics"]
    assert states[0]["best_file"] == states[1]["best_file"]
    (rng,), (other_rng,) = (state["training"]["rng"] for state in states)
    assert torch.equal(rng["cpu"], other_rng["cpu"])


@pytest.fixture(scope="module")
def interrupted(sample_root, tmp_path_factory) -> Path:
    """An outdir whose run ended in its second epoch. Read only."""
    from utils.trainer import Trainer

    outdir = tmp_path_factory.mktemp("interrupted")
    train_epoch = Trainer.train_epoch

    def stop_in_second(self, loader, after_step):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, loader, after_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop_in_second)
        with pytest.raises(KeyboardInterrupt):
            train.main(train_argv(sample_root, outdir, "--epochs", 2))
    return outdir


@pytest.mark.parametrize("named", [False, True])
def test_resumed_run_ends_like_an_uninterrupted_one(
    named, interrupted, run, sample_root, tmp_path, capsys
):
    outdir = tmp_path / "out"
    shutil.copytree(interrupted, outdir)
    latest = outdir / "models" / f"fcn_{SMALL}_latest.pth"
    assert read_checkpoint(latest)["epoch"] == 1
    torch.manual_seed(99)
    resume = ("--resume", latest) if named else ("--resume",)
    metrics = train.main(train_argv(sample_root, outdir, "--epochs", 2, *resume))
    assert "in epoch 1 of 2" in capsys.readouterr().out
    assert_metrics(metrics, run.metrics)
    assert_same_state(outdir, run.outdir)
    assert [path.name for path in best_files(outdir)] == [run.best.name]
    (log,) = (outdir / "logs").iterdir()  # both parts write to one folder
    with (log / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--epochs", 3), "epochs 2"),
        (("--epochs", 2, "--lr", 0.01), "lr 0.00015"),
        (("--epochs", 2, "--seed", 5), "seed 0"),
        (("--epochs", 2, "--crop-size", 32), "crop_size None"),
        (("--epochs", 2, "--class-weights", "1,1,1,1,1,1"), "class_weights None"),
    ],
)
def test_resuming_with_other_options_is_refused(options, named, interrupted, sample_root):
    before = (interrupted / "models" / f"fcn_{SMALL}_latest.pth").read_bytes()
    with pytest.raises(OptionError, match=f"the run to resume had {named};"):
        train.main(train_argv(sample_root, interrupted, "--resume", *options))
    assert (interrupted / "models" / f"fcn_{SMALL}_latest.pth").read_bytes() == before


def test_resuming_from_a_best_checkpoint_is_refused(run, sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="holds no training state"):
        train.main(train_argv(sample_root, tmp_path, "--epochs", 2, "--resume", run.best))


def test_resuming_on_another_class_list_is_refused(run, custom_root, tmp_path):
    latest = run.outdir / "models" / f"fcn_{SMALL}_latest.pth"
    with pytest.raises(OptionError, match="other classes"):
        train.main(train_argv(custom_root, tmp_path, "--epochs", 2, "--resume", latest))


def test_resuming_from_a_missing_file_is_an_error(sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train.main(train_argv(sample_root, tmp_path, "--resume", tmp_path / "none.pth"))


def test_resume_without_a_run_starts_one(sample_root, tmp_path):
    train.main(train_argv(sample_root, tmp_path, "--resume"))
    assert len(best_files(tmp_path)) == 1


def test_finished_run_can_be_resumed_and_stays_as_it_is(run, sample_root, tmp_path):
    outdir = tmp_path / "out"
    shutil.copytree(run.outdir, outdir)
    assert_metrics(
        train.main(train_argv(sample_root, outdir, "--epochs", 2, "--resume")), run.metrics
    )
    assert_same_state(outdir, run.outdir)


def test_starting_from_another_run(run, sample_root, tmp_path, capsys):
    train.main(train_argv(sample_root, tmp_path, "--pretrain-from", run.best, "--lr", 1e-12))
    assert f"starting from {run.best}" in capsys.readouterr().out
    trained, start = load_model(best_files(tmp_path)[0]), load_model(run.best)
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


# --- label.py -------------------------------------------------------------------------------


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"im{date}/{path.stem}": read_label(path, load_classes(folder.parent))
        for date in (1, 2)
        for path in sorted((folder / f"label{date}").glob("*.png"))
    }


@pytest.mark.parametrize(
    "options", [(), ("--no-tta", "--vote", "soft"), ("--vote", "soft", "--min-confidence", "1")]
)
def test_pseudo_masks_keep_the_ground_truth(options, outdir, sample_root, capsys):
    coverage = label.main(argv(sample_root, outdir, *options))
    masks, labels = read_masks(outdir / "masks" / "train"), labels_of(sample_root / "train")
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
    for best in best_files(outdir):  # one of each run
        assert best.name in printed
    assert "with 2 models" in printed


def test_unlabelled_pixels_get_one_vote_for_both_dates(outdir, sample_root):
    label.main(argv(sample_root, outdir, "--no-tta"))
    masks, labels = read_masks(outdir / "masks" / "train"), labels_of(sample_root / "train")
    for name in TRAIN_NAMES:
        free = labels[f"im1/{name}"] == 0
        assert np.array_equal(masks[f"im1/{name}"][free], masks[f"im2/{name}"][free])


def test_named_checkpoints_only(outdir, sample_root, capsys):
    path = best_files(outdir)[0]
    label.main(argv(sample_root, outdir, "--no-tta", "--checkpoints", path))
    assert "with 1 models" in capsys.readouterr().out


def test_pseudo_masks_are_trained_on(outdir, sample_root):
    label.main(argv(sample_root, outdir, "--no-tta", "--vote", "soft"))
    before = len(best_files(outdir))
    train.main(train_argv(sample_root, outdir, "--use-pseudo-label", "--seed", 3))
    assert len(best_files(outdir)) == before + 1


def test_missing_folder_of_pseudo_masks_is_an_error(sample_root, tmp_path):
    with pytest.raises(OptionError, match=r"no pseudo masks there; run label\.py first"):
        train.main(train_argv(sample_root, tmp_path, "--use-pseudo-label"))
    assert not (tmp_path / "models").exists()


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
    script, run, custom_run, sample_root, tmp_path
):
    checkpoints = (run.best, *best_files(custom_run))
    with pytest.raises(CheckpointError, match="trained on the classes same, open, built"):
        script.main(argv(sample_root, tmp_path, "--checkpoints", *checkpoints))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [label, predict])
def test_no_checkpoints_is_an_error(script, sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="train a model first"):
        script.main(argv(sample_root, tmp_path))


# --- test.py --------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [(), ("--tta",)])
def test_prediction_without_labels(tta, outdir, unlabelled_val_root, capsys):
    assert predict.main(argv(unlabelled_val_root, outdir, *tta)) is None
    assert set(read_masks(outdir / "masks" / "test")) == keys(VAL_NAMES)
    assert "mIoU" not in capsys.readouterr().out


def test_prediction_with_labels_scores_as_in_training(run, sample_root, tmp_path):
    metrics = predict.main(argv(sample_root, tmp_path, "--checkpoints", run.best))
    # Folded batch norm rounds otherwise; a pixel on a border may fall to the other side.
    assert_metrics(metrics, run.metrics, tolerance=1e-3)
    assert_metrics(score_of(tmp_path / "masks" / "test", sample_root / "val"), metrics)


def test_prediction_of_the_validation_pairs(run, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text("00003.png\n00005.png\n", encoding="utf-8")
    options = ("--split", "val", "--val-list", names, "--checkpoints", run.best)
    metrics = predict.main(argv(sample_root, tmp_path, *options))
    folder = tmp_path / "masks" / "val"
    assert set(read_masks(folder)) == keys(["00003", "00005"])
    assert_metrics(score_of(folder, sample_root / "train"), metrics)
    assert not (tmp_path / "masks" / "test").exists()


def test_batch_size_does_not_change_the_masks(outdir, sample_root):
    found = []
    for size in (1, 4):
        predict.main(argv(sample_root, outdir, "--tta", "--test-batch-size", size))
        found.append(read_masks(outdir / "masks" / "test"))
    differing = sum(int((found[0][key] != found[1][key]).sum()) for key in found[0])
    assert differing <= 2  # of 32,768: convolutions may round otherwise


def test_generous_time_limit_changes_nothing(run, sample_root, tmp_path, capsys):
    options = ("--tta", "--checkpoints", run.best, "--test-batch-size", 2)
    free = predict.main(argv(sample_root, tmp_path, *options))
    capsys.readouterr()
    limited = predict.main(argv(sample_root, tmp_path, *options, "--time-limit", 1000))
    assert_metrics(limited, free)
    printed = capsys.readouterr().out
    assert "views" not in printed
    assert "missed" not in printed


def test_impossible_time_limit_leaves_one_view_and_says_so(run, sample_root, tmp_path, capsys):
    options = ("--tta", "--checkpoints", run.best, "--test-batch-size", 2, "--time-limit", 0.001)
    metrics = predict.main(argv(sample_root, tmp_path, *options))
    printed = capsys.readouterr().out
    assert "1 of 6 views from pair 0 on, to end in time" in printed
    assert "time limit of 0.001 s missed" in printed
    assert set(read_masks(tmp_path / "masks" / "test")) == keys(VAL_NAMES)
    # The one view is the image as it is; smaller batches may round otherwise.
    assert_metrics(metrics, run.metrics, tolerance=1e-3)


# --- options and the way errors are shown ---------------------------------------------------


def test_defaults_are_the_published_ones():
    args = train.parse_args([])
    assert args.data_root == REPO / "data" / "dataset"
    assert args.outdir == REPO / "outdir"
    assert args.pretrained_dir == REPO / "data" / "pretrained_models"
    assert (args.model, args.backbone, args.lightweight) == ("pspnet", "hrnet_w18", False)
    assert (args.batch_size, args.val_batch_size, args.epochs) == (8, 16, 30)
    assert (args.lr, args.weight_decay) == (1.5e-4, 1e-4)
    for script in (label, predict):
        args = script.parse_args([])
        assert args.data_root == REPO / "data" / "dataset"
        assert args.test_batch_size == 16
        assert args.checkpoints is None
    assert label.parse_args([]).tta
    assert label.parse_args([]).vote == "hard"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_starts_without_torch(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    status = stop.code or 0\n"
        "heavy = {'torch', 'timm', 'numpy', 'albumentations'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")
    assert "--data-root" in done.stdout
    assert "example" in done.stdout
    assert done.stderr == "heavy: []\n"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (train, ["--batch-size", "0"]),
        (train, ["--epochs", "-1"]),
        (train, ["--epochs", "two"]),
        (train, ["--lr", "nan"]),
        (train, ["--lr", "0"]),
        (train, ["--lr", "inf"]),
        (train, ["--weight-decay", "-1"]),
        (train, ["--model", "unet"]),
        (train, ["--class-weights", "1,,2"]),
        (train, ["--class-weights", "1,0,2"]),
        (train, ["--workers", "-1"]),
        (train, ["--crop-size", "1.5"]),
        (train, ["--light"]),
        (label, ["--vote", "loud"]),
        (label, ["--vote", "soft", "--min-confidence", "1.5"]),
        (label, ["--min-confidence", "0.5"]),
        (label, ["--checkpoints"]),
        (predict, ["--time-limit", "0"]),
        (predict, ["--split", "train"]),
        (predict, ["--test-batch-size", "0"]),
    ],
)
def test_bad_options_exit_with_status_2(script, options, capsys):
    with pytest.raises(SystemExit) as stop:
        script.parse_args(options)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message


def test_user_errors_are_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def fail() -> None:
        raise UserError("a.png: broken;\n  copy it again")

    with pytest.raises(SystemExit) as stop:
        cli.run(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a.png: broken; copy it again\n"


def test_interruption_is_status_130(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(interrupt)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--debug"])

    def fail() -> None:
        raise UserError("broken")

    with pytest.raises(UserError):
        cli.run(fail)


def test_a_broken_cache_of_the_compiler_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def load_broken(graph: object, inputs: object) -> None:
        raise ImportError("a.main.so: file too short")

    def compiled() -> None:
        torch.compile(lambda x: x + 1, backend=load_broken)(torch.ones(1))

    with pytest.raises(SystemExit) as stop:
        cli.run(compiled)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: compiling failed (ImportError: a.main.so: file too short); remove {tmp_path}, "
        "where a killed program may have left a broken file, or do without: no --compile in "
        "training, --compile off elsewhere\n"
    )


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(fail)


def test_unknown_device_is_an_error(sample_root, tmp_path):
    with pytest.raises(OptionError, match="--device tpu: not usable here"):
        train.main(train_argv(sample_root, tmp_path, "--device", "tpu"))
