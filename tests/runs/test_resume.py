"""train.py --resume: in every bit as if never interrupted, and with the same options alone."""

import gc
import json
import os
import shutil
import signal
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from models.checkpoint import load_model
from tests.helpers.faults import CrashError, before_prediction, before_step, crash
from tests.helpers.processes import ended, eventually, start_script
from tests.helpers.runs import (
    EPOCHS,
    STEPS,
    assert_metrics,
    assert_same_run,
    assert_same_values,
    best_files,
    latest_file,
    resume,
    train_options,
)
from utils.errors import CheckpointError, OptionError
from utils.tensor_files import read_checkpoint

slow = pytest.mark.slow

# --- crashes --------------------------------------------------------------------------------


def crash_in(step: int, argv: list[str]) -> None:
    """Train up to a step that fails before the weights change."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
        before_step(patch, step, crash)
        train.main(argv)


@pytest.mark.parametrize(
    ("variant", "every", "step"),
    [
        ("plain", 1, 3),
        ("plain", 2, 6),
        ("plain", 3, 5),  # nothing saved within an epoch
        ("worker", 1, 5),
        ("accumulate", 1, 6),
        *(pytest.param("plain", 1, step, marks=slow) for step in (2, 4, 5, 6)),
        pytest.param("plain", 3, 3, marks=slow),  # nothing saved: starts anew
        pytest.param("worker", 1, 3, marks=slow),
        pytest.param("accumulate", 1, 3, marks=slow),
        pytest.param("cache", 1, 5, marks=slow),
    ],
)
def test_a_crash_at_any_step(variant, every, step, whole_run, tmp_path):
    run = whole_run(variant)
    crash_in(step, run.argv(tmp_path, "--checkpoint-every", every))
    resume(run, tmp_path)
    assert_same_run(tmp_path, run.outdir)


def test_several_crashes_of_one_run(fcn_run, tmp_path):
    for step in (2, 3, 2):
        crash_in(step, fcn_run.argv(tmp_path, "--checkpoint-every", 1, "--resume"))
    resume(fcn_run, tmp_path)
    assert_same_run(tmp_path, fcn_run.outdir)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=slow), 2])
def test_a_crash_in_validation(epoch, fcn_run, tmp_path):
    with before_prediction(epoch, crash), pytest.raises(CrashError):
        train.main(fcn_run.argv(tmp_path, "--checkpoint-every", 1))
    assert not read_checkpoint(latest_file(tmp_path))["training"]["validated"]
    resume(fcn_run, tmp_path)
    assert_same_run(tmp_path, fcn_run.outdir)


def test_a_crash_between_the_best_and_the_latest_file(fcn_run, tmp_path, monkeypatch):
    # The best is written, the latest does not know it yet.
    replace, latest = os.replace, []

    def crashing(source: Path, target: Path) -> None:
        if str(target) == str(latest_file(tmp_path)):
            latest.append(target)
            if len(latest) == EPOCHS:
                raise CrashError
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(CrashError):
        patch.setattr(os, "replace", crashing)
        train.main(fcn_run.argv(tmp_path))
    resume(fcn_run, tmp_path)
    state, expected = (read_checkpoint(latest_file(d)) for d in (tmp_path, fcn_run.outdir))
    assert_same_values(state["model"], expected["model"])
    assert state["metrics"] == expected["metrics"]
    best = tmp_path / "models" / state["best_file"]
    assert read_checkpoint(best)["metrics"] == expected["metrics"]


def test_an_outdir_that_was_moved_can_be_resumed(half_outdir, fcn_run, tmp_path):
    shutil.copytree(half_outdir, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    resume(fcn_run, tmp_path / "second")
    assert_same_run(tmp_path / "second", fcn_run.outdir)


def test_dropout_is_active_in_these_runs(fcn_run):
    saved = read_checkpoint(latest_file(fcn_run.outdir))
    torch.manual_seed(0)
    assert not torch.equal(saved["training"]["rng"][0]["cpu"], torch.get_rng_state())
    model = load_model(latest_file(fcn_run.outdir), "cpu")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]


def test_a_killed_process(fcn_run, tmp_path):
    outdir = tmp_path / "out"
    argv = fcn_run.argv(outdir, "--checkpoint-every", 1)
    with ended(start_script("train.py", argv, tmp_path / "printed", slow_steps)) as child:
        eventually(lambda: latest_file(outdir).exists(), 120, 0.01)
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    state = read_checkpoint(latest_file(outdir))["training"]
    assert (state["epoch"], state["step"]) < (EPOCHS, STEPS)
    resume(fcn_run, outdir)
    assert_same_run(outdir, fcn_run.outdir)


def slow_steps() -> None:
    """Leave time to kill a process between two steps."""
    step = torch.optim.Adam.step

    def slow(self, *args, **kwargs):
        time.sleep(0.3)
        return step(self, *args, **kwargs)

    torch.optim.Adam.step = slow


# --- options and files ----------------------------------------------------------------------


def test_a_named_file_is_resumed_and_the_log_goes_on(half_outdir, fcn_run, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(half_outdir, outdir)
    metrics = train.main(fcn_run.argv(outdir, "--resume", latest_file(outdir)))
    assert "in epoch 1 of 2" in capsys.readouterr().out
    assert_metrics(metrics, fcn_run.metrics)
    assert_same_run(outdir, fcn_run.outdir)  # csv_rows: both parts write to one folder


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--epochs", 3), "epochs 2"),
        (("--lr", 0.01), "lr 0.00015"),
        (("--crop-size", 32), "crop_size None"),
        (("--class-weights", "1,1,1,1,1,1"), "class_weights None"),
        (("--tta",), "tta False"),
        (("--bands", "1,2"), "bands"),
        (("--use-pseudo-label", "--pseudo-label-root", "train"), "use_pseudo_label False"),
    ],
)
def test_resuming_with_other_options_is_refused(
    more, named, half_outdir, fcn_run, sample_root, tmp_path, monkeypatch
):
    for date in (1, 2):
        shutil.copytree(sample_root / f"train/label{date}", tmp_path / f"train/im{date}")
    monkeypatch.chdir(tmp_path)
    before = latest_file(half_outdir).read_bytes()
    with pytest.raises(OptionError, match=f"the run to resume had {named}"):
        train.main(fcn_run.argv(half_outdir, "--resume", *more))
    assert latest_file(half_outdir).read_bytes() == before


@pytest.mark.parametrize(
    ("file", "error", "said"),
    [
        ("best", CheckpointError, "holds no training state"),
        ("none.pth", CheckpointError, "no such checkpoint"),
        ("custom", OptionError, "other classes"),
    ],
)
def test_resuming_from_a_file_that_is_no_part_of_this_run(
    file, error, said, fcn_run, custom_run, tmp_path
):
    path = {"best": fcn_run.best, "custom": latest_file(custom_run)}.get(file, tmp_path / file)
    with pytest.raises(error, match=said):
        train.main(fcn_run.argv(tmp_path, "--resume", path))


def test_resume_without_a_run_starts_one(sample_root, tmp_path):
    train.main(train_options(sample_root, tmp_path, "--resume"))
    assert len(best_files(tmp_path)) == 1


def test_a_resumed_run_does_not_keep_the_checkpoint_it_was_read_from(
    half_outdir, fcn_run, tmp_path, monkeypatch
):
    outdir, load, kept = tmp_path / "out", torch.load, []
    shutil.copytree(half_outdir, outdir)

    def watched(*args, **options):
        saved = load(*args, **options)
        kept.extend(weakref.ref(value) for value in saved["model"].values())
        return saved

    def stop() -> None:
        gc.collect()
        assert kept and not any(tensor() is not None for tensor in kept)
        raise CrashError

    monkeypatch.setattr(torch, "load", watched)
    before_step(monkeypatch, 1, stop)
    with pytest.raises(CrashError):
        train.main(fcn_run.argv(outdir, "--resume"))


def test_a_finished_run_stays_as_it_is(fcn_run, sample_root, tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(fcn_run.outdir, outdir)
    (path,) = outdir.glob("logs/*/options.json")
    path.unlink()
    monkeypatch.chdir(sample_root.parent)
    metrics = train.main(fcn_run.argv(outdir, "--resume", "--data-root", sample_root.name))
    assert_metrics(metrics, fcn_run.metrics)
    assert "(finished already)" in capsys.readouterr().out
    assert_same_run(outdir, fcn_run.outdir)
    # The data is found from anywhere.
    assert json.loads(path.read_text())["data_root"] == str(sample_root.resolve())


def test_resuming_with_other_pseudo_masks_is_refused(sample_root, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        for date in (1, 2):
            shutil.copytree(sample_root / "train" / f"label{date}", root / f"im{date}")
    argv = train_options(sample_root, tmp_path / "out", "--use-pseudo-label")
    train.main([*argv, "--pseudo-label-root", str(first)])
    with pytest.raises(OptionError, match=f"had pseudo_label_root {first};"):
        train.main([*argv, "--pseudo-label-root", str(second), "--resume"])


def test_a_checkpoint_from_before_an_option_was_fixed_can_be_resumed(
    half_outdir, fcn_run, tmp_path
):
    outdir = tmp_path / "out"
    shutil.copytree(half_outdir, outdir)
    state = read_checkpoint(latest_file(outdir))
    for name in ("tta", "pseudo_label_root"):
        del state["options"][name]
    torch.save(state, latest_file(outdir))
    resume(fcn_run, outdir)
    assert_same_run(outdir, fcn_run.outdir)


def test_starting_anew_beside_a_latest_file_says_so(half_outdir, sample_root, tmp_path, capsys):
    outdir = tmp_path / "out"
    shutil.copytree(half_outdir, outdir)
    train.main(train_options(sample_root, outdir))
    assert f"starting anew; {latest_file(outdir)} of an earlier run" in capsys.readouterr().out
    assert (
        read_checkpoint(latest_file(outdir))["run"]
        != read_checkpoint(latest_file(half_outdir))["run"]
    )


def test_a_resumed_run_decodes_as_before(sample_root, custom_root, half_outdir, fcn_run, tmp_path):
    argv = train_options(custom_root, tmp_path, "--decode", "joint")
    train.main(argv)
    [best], latest = best_files(tmp_path), read_checkpoint(latest_file(tmp_path))
    # Six classes made two, so that changes of a pixel may stay within one.
    assert 0 < latest["decoding"]["same_class"] < 1
    assert latest["decoding"] == read_checkpoint(best)["decoding"]
    train.main([*argv[: argv.index("--decode")], "--resume"])  # as it was, unasked
    assert read_checkpoint(latest_file(tmp_path))["decoding"] == latest["decoding"]
    with pytest.raises(OptionError, match="the run to resume had decode joint; use the same"):
        train.main([*argv, "--decode", "independent", "--resume"])
    state = read_checkpoint(latest_file(half_outdir))
    assert state["decoding"]["same_class"] == 0.0
    del state["decoding"]  # as older versions left it
    (tmp_path / "old" / "models").mkdir(parents=True)
    torch.save(state, latest_file(tmp_path / "old"))
    with pytest.raises(OptionError, match="the run to resume had decode independent;"):
        train.main(fcn_run.argv(tmp_path / "old", "--resume", "--decode", "joint"))
    resume(fcn_run, tmp_path / "old")
    found = read_checkpoint(latest_file(tmp_path / "old"))["decoding"]
    assert found["name"] == "independent"
