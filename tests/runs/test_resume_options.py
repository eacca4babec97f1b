"""train.py --resume: goes on as if never interrupted, and with the same options alone."""

import csv
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch

import train
from engine.ensemble import describe
from models.checkpoint import open_checkpoint
from tests.helpers.runs import best_files
from tests.helpers.script_runs import SMALL, assert_metrics, assert_same_state, train_argv
from utils.errors import CheckpointError, OptionError
from utils.tensor_files import read_checkpoint


@pytest.fixture(scope="module")
def interrupted(sample_root, tmp_path_factory) -> Path:
    """An outdir whose run ended in its second epoch. Read only."""
    from engine.training import Trainer

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
    named, interrupted, fcn_run, sample_root, tmp_path, capsys
):
    outdir = tmp_path / "out"
    shutil.copytree(interrupted, outdir)
    latest = outdir / "models" / f"fcn_{SMALL}_latest.pth"
    assert read_checkpoint(latest)["epoch"] == 1
    torch.manual_seed(99)
    resume = ("--resume", latest) if named else ("--resume",)
    metrics = train.main(train_argv(sample_root, outdir, "--epochs", 2, *resume))
    assert "in epoch 1 of 2" in capsys.readouterr().out
    assert_metrics(metrics, fcn_run.metrics)
    assert_same_state(outdir, fcn_run.outdir)
    assert [path.name for path in best_files(outdir)] == [fcn_run.best.name]
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
        (("--epochs", 2, "--tta"), "tta False"),
    ],
)
def test_resuming_with_other_options_is_refused(options, named, interrupted, sample_root):
    before = (interrupted / "models" / f"fcn_{SMALL}_latest.pth").read_bytes()
    with pytest.raises(OptionError, match=f"the run to resume had {named};"):
        train.main(train_argv(sample_root, interrupted, "--resume", *options))
    assert (interrupted / "models" / f"fcn_{SMALL}_latest.pth").read_bytes() == before


def test_resuming_from_a_best_checkpoint_is_refused(fcn_run, sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="holds no training state"):
        train.main(train_argv(sample_root, tmp_path, "--epochs", 2, "--resume", fcn_run.best))


def test_resuming_on_another_class_list_is_refused(fcn_run, custom_root, tmp_path):
    latest = fcn_run.outdir / "models" / f"fcn_{SMALL}_latest.pth"
    with pytest.raises(OptionError, match="other classes"):
        train.main(train_argv(custom_root, tmp_path, "--epochs", 2, "--resume", latest))


def test_resuming_from_a_missing_file_is_an_error(sample_root, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train.main(train_argv(sample_root, tmp_path, "--resume", tmp_path / "none.pth"))


def test_resume_without_a_run_starts_one(sample_root, tmp_path):
    train.main(train_argv(sample_root, tmp_path, "--resume"))
    assert len(best_files(tmp_path)) == 1


def test_a_resumed_run_does_not_keep_the_checkpoint_it_was_read_from(
    interrupted, sample_root, tmp_path, monkeypatch
):
    from engine import run as run_files
    from engine import training

    outdir = tmp_path / "out"
    shutil.copytree(interrupted, outdir)
    find_resume, kept = run_files.find_resume, []

    def watched(*args):
        saved = find_resume(*args)
        kept.extend(weakref.ref(value) for value in saved["model"].values())
        return saved

    def stop(*_args):
        assert kept and not any(tensor() is not None for tensor in kept)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_files, "find_resume", watched)
    monkeypatch.setattr(training, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(train_argv(sample_root, outdir, "--epochs", 2, "--resume"))


def test_finished_run_can_be_resumed_and_stays_as_it_is(fcn_run, sample_root, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    assert_metrics(
        train.main(train_argv(sample_root, outdir, "--epochs", 2, "--resume")), fcn_run.metrics
    )
    assert "(finished already)" in capsys.readouterr().out
    assert_same_state(outdir, fcn_run.outdir)
    latest = describe(open_checkpoint(outdir / "models" / f"fcn_{SMALL}_latest.pth"))
    assert ", best Score " in latest
    assert ", best Score " not in describe(open_checkpoint(fcn_run.best))


def test_resuming_with_other_pseudo_masks_is_refused(sample_root, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        for date in (1, 2):
            shutil.copytree(sample_root / "train" / f"label{date}", root / f"im{date}")
    more = ("--use-pseudo-label", "--pseudo-label-root")
    train.main(train_argv(sample_root, tmp_path / "out", *more, first))
    with pytest.raises(OptionError, match=f"had pseudo_label_root {first};"):
        train.main(train_argv(sample_root, tmp_path / "out", *more, second, "--resume"))


def test_a_checkpoint_from_before_an_option_was_fixed_can_be_resumed(
    interrupted, sample_root, tmp_path
):
    outdir = tmp_path / "out"
    shutil.copytree(interrupted, outdir)
    latest = outdir / "models" / f"fcn_{SMALL}_latest.pth"
    state = read_checkpoint(latest)
    for name in ("tta", "pseudo_label_root"):
        del state["options"][name]
    torch.save(state, latest)
    train.main(train_argv(sample_root, outdir, "--epochs", 2, "--resume"))
    assert read_checkpoint(latest)["epoch"] == 2


def test_options_name_the_data_so_that_it_is_found_from_anywhere(
    fcn_run, sample_root, tmp_path, monkeypatch
):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    (path,) = outdir.glob("logs/*/options.json")
    path.unlink()
    monkeypatch.chdir(sample_root.parent)
    train.main(train_argv(Path(sample_root.name), outdir, "--epochs", 2, "--resume"))
    assert json.loads(path.read_text())["data_root"] == str(sample_root.resolve())
